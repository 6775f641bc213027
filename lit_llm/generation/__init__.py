"""This room writes text with a decoder."""

from lit_llm.generation.automata import Automaton, Compilation
from lit_llm.generation.beam import Beam, beam_search
from lit_llm.generation.complete import complete, generate
from lit_llm.generation.constraints import Spellings, TextConstraint
from lit_llm.generation.engine import Engine
from lit_llm.generation.json_text import json_object
from lit_llm.generation.prefix_cache import PrefixCache, PrefixCounts
from lit_llm.generation.request import AllowedTokens, Completion, Event, LogProbs
from lit_llm.generation.samplers import choose, filtered_probabilities
from lit_llm.generation.speculative import Speculation, speculate

__all__ = [
    "AllowedTokens",
    "Automaton",
    "Beam",
    "Compilation",
    "Completion",
    "Engine",
    "Event",
    "LogProbs",
    "PrefixCache",
    "PrefixCounts",
    "Speculation",
    "Spellings",
    "TextConstraint",
    "beam_search",
    "choose",
    "complete",
    "filtered_probabilities",
    "generate",
    "json_object",
    "speculate",
]
