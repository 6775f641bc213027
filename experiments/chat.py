"""Talk with a trained model in the terminal. See --help, or --help-all for every option, and /help while talking."""

from lit_llm.cli import run_command

if __name__ == "__main__":
    run_command("chat")
