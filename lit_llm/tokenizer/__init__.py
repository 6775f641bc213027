"""Byte-level BPE and character tokenizers: text to ids, ids to text, and how they are trained and stored."""

from lit_llm.tokenizer.tokenizer import SPECIAL_TOKENS, Tokenizer
from lit_llm.tokenizer.training import train_bpe, train_character

__all__ = ["SPECIAL_TOKENS", "Tokenizer", "train_bpe", "train_character"]
