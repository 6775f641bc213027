"""Writing text with a decoder."""

from lit_llm.generation.engine import generate
from lit_llm.generation.samplers import choose, filtered_probabilities

__all__ = ["choose", "filtered_probabilities", "generate"]
