"""Align a model with a reward by PPO or GRPO. See --help for every option."""

from lit_llm.cli import main
from lit_llm.cli.post_training import ppo
from lit_llm.config import PPOConfig

if __name__ == "__main__":
    main(PPOConfig, ppo)
