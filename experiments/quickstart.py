"""From text to a trained model in a few minutes: tokenizer, shards, pretraining, report. See --help."""

from lit_llm.cli import main
from lit_llm.cli.quickstart import quickstart
from lit_llm.config import QuickstartConfig

if __name__ == "__main__":
    main(QuickstartConfig, quickstart)
