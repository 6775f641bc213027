"""The decoder. Pure torch; of ours it imports the configuration alone."""

from lit_llm.model.cache import CacheStep, KVCache
from lit_llm.model.decoder import Decoder

__all__ = ["CacheStep", "Decoder", "KVCache"]
