"""Talk with a trained model in the terminal. See --help for every option, and /help while talking."""

from lit_llm.cli import main
from lit_llm.cli.chat import chat
from lit_llm.config import ChatConfig

if __name__ == "__main__":
    main(ChatConfig, chat)
