"""Fine-tune a model on conversations. See --help for every option."""

from lit_llm.cli import main
from lit_llm.cli.post_training import sft
from lit_llm.config import SFTConfig

if __name__ == "__main__":
    main(SFTConfig, sft)
