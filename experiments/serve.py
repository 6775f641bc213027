"""Serve a model over HTTP as OpenAI's API, with a chat page. See --help for every option."""

from lit_llm.cli import main
from lit_llm.cli.serve import serve
from lit_llm.config import ServeConfig

if __name__ == "__main__":
    main(ServeConfig, serve)
