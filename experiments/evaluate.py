"""Measure a trained model on texts, answers, preferences and benchmark tasks. See --help for every option."""

from lit_llm.cli import main
from lit_llm.cli.evaluate import evaluate
from lit_llm.config import EvaluateConfig

if __name__ == "__main__":
    main(EvaluateConfig, evaluate)
