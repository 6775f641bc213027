"""The curves of several runs in one page, and what differs between them: compare.py RUN RUN.

See --help for every option.
"""

from lit_llm.cli import run_command

if __name__ == "__main__":
    run_command("compare")
