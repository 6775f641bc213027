"""Write secrets to be planted in training data. See --help, or --help-all."""

from lit_llm.cli import run_command

if __name__ == "__main__":
    run_command("plant_canaries")
