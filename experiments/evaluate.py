"""Measure a trained model on texts, answers, preferences and benchmark tasks. See --help, or --help-all."""

from lit_llm.cli import run_command

if __name__ == "__main__":
    run_command("evaluate")
