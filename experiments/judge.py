"""Models compared by a judge that reads their answers: win rates, strengths, and how far the judge can be trusted.

See --help for every option.
"""

from lit_llm.cli import run_command

if __name__ == "__main__":
    run_command("judge")
