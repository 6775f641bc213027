"""Write text with a trained model. See --help for every option."""

from lit_llm.cli import main
from lit_llm.cli.generate import generate
from lit_llm.config import GenerateConfig

if __name__ == "__main__":
    main(GenerateConfig, generate)
