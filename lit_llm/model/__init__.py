"""The decoder. Pure torch; of ours it imports the configuration alone."""

from lit_llm.model.cache import CacheStep, KVCache
from lit_llm.model.decoder import Decoder
from lit_llm.model.scores import last_scores, token_scores

__all__ = ["CacheStep", "Decoder", "KVCache", "last_scores", "token_scores"]
