"""Train a reward model on preferences. See --help for every option."""

from lit_llm.cli import main
from lit_llm.cli.post_training import reward
from lit_llm.config import RewardConfig

if __name__ == "__main__":
    main(RewardConfig, reward)
