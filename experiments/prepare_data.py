"""Encode a corpus into shards. See --help for every option."""

from lit_llm.cli import main
from lit_llm.cli.stages import prepare_data
from lit_llm.config import PrepareConfig

if __name__ == "__main__":
    main(PrepareConfig, prepare_data)
