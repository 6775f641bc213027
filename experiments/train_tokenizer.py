"""Train a tokenizer on a corpus. See --help for every option."""

from lit_llm.cli import main
from lit_llm.cli.stages import train_tokenizer
from lit_llm.config import TokenizerTrainingConfig

if __name__ == "__main__":
    main(TokenizerTrainingConfig, train_tokenizer)
