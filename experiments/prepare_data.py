"""Encode a corpus into shards. See --help, or --help-all for every option."""

from lit_llm.cli import run_command

if __name__ == "__main__":
    run_command("prepare_data")
