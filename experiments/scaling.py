"""Train a grid of small models, fit a scaling law, and say what to train. See --help for every option."""

from lit_llm.cli import run_command

if __name__ == "__main__":
    run_command("scaling")
