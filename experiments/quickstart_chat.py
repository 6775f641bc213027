"""A model that answers, measured, fine-tuned with LoRA, aligned with DPO, and measured again. See --help."""

from lit_llm.cli import run_command

if __name__ == "__main__":
    run_command("quickstart_chat")
