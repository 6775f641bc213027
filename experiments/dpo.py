"""Align a model with preferences directly (DPO). See --help for every option."""

from lit_llm.cli import main
from lit_llm.cli.post_training import dpo
from lit_llm.config import DPOConfig

if __name__ == "__main__":
    main(DPOConfig, dpo)
