"""Measure what a model may do harm with. See --help, or --help-all."""

from lit_llm.cli import run_command

if __name__ == "__main__":
    run_command("safety")
