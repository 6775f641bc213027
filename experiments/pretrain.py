"""Pretrain a decoder on shards. See --help for every option."""

from lit_llm.cli import main
from lit_llm.cli.stages import pretrain
from lit_llm.config import PretrainConfig

if __name__ == "__main__":
    main(PretrainConfig, pretrain)
