"""Turn a checkpoint of a run into a model folder. See --help for every option."""

from lit_llm.cli import main
from lit_llm.cli.export import export
from lit_llm.config import ExportConfig

if __name__ == "__main__":
    main(ExportConfig, export)
