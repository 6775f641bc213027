"""Show which text a step of a run has read, or a window of shards, and where its documents came from; see --help."""

from lit_llm.cli.commands import run_command

if __name__ == "__main__":
    run_command("inspect_data")
