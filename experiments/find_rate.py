"""Compare learning rates over a few steps each. See --help for every option."""

from lit_llm.cli import run_command

if __name__ == "__main__":
    run_command("find_rate")
