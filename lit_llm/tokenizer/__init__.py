"""Byte-level BPE and character tokenizers: text to ids, ids to text, and how they are trained and stored."""

from lit_llm.tokenizer.begin import (
    begin_ids,
    conversation_ids,
    first_token_source,
    joined_with_next,
    prompt_ids,
    read_as_letters,
)
from lit_llm.tokenizer.chat import ChatFormat, Message, Rendered, with_chat_tokens
from lit_llm.tokenizer.chat_template import CHATML_TEMPLATE
from lit_llm.tokenizer.tokenizer import SPECIAL_TOKENS, Tokenizer
from lit_llm.tokenizer.training import train_bpe, train_character

__all__ = [
    "CHATML_TEMPLATE",
    "SPECIAL_TOKENS",
    "ChatFormat",
    "Message",
    "Rendered",
    "Tokenizer",
    "begin_ids",
    "conversation_ids",
    "first_token_source",
    "joined_with_next",
    "prompt_ids",
    "read_as_letters",
    "train_bpe",
    "train_character",
    "with_chat_tokens",
]
