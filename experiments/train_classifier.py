"""Train a classifier of quality on two corpora, good text and text as it comes. See --help for every option."""

from lit_llm.cli import run_command

if __name__ == "__main__":
    run_command("train_classifier")
