"""The decoder and what it makes of tokens. Pure torch; it knows nothing of data, training or files."""

from lit_llm.model.attention import Attention, AttentionContext
from lit_llm.model.cache import CacheStep, KVCache
from lit_llm.model.decoder import Block, Decoder
from lit_llm.model.log_probs import TokenLogProbs, hidden_log_probs, token_log_probs
from lit_llm.model.scores import last_scores, token_scores

__all__ = [
    "Attention",
    "AttentionContext",
    "Block",
    "CacheStep",
    "Decoder",
    "KVCache",
    "TokenLogProbs",
    "hidden_log_probs",
    "last_scores",
    "token_log_probs",
    "token_scores",
]
