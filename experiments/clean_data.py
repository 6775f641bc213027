"""Make a clean corpus from raw sources. See --help, or --help-all for every option."""

from lit_llm.cli import run_command

if __name__ == "__main__":
    run_command("clean_data")
