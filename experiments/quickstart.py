"""From text to a trained model in a few minutes: tokenizer, shards, pretraining, report. See --help."""

from lit_llm.cli import run_command

if __name__ == "__main__":
    run_command("quickstart")
