"""Say which rows of evaluations a corpus has: contamination.py FILE FILE --corpus.path CORPUS.

See --help for every option.
"""

from lit_llm.cli import run_command

if __name__ == "__main__":
    run_command("contamination")
