"""Align a model with preferences directly (DPO). See --help, or --help-all for every option."""

from lit_llm.cli import run_command

if __name__ == "__main__":
    run_command("dpo")
