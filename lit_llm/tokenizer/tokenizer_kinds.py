"""Which kind of tokenizer the content of a tokenizer.json describes."""

from __future__ import annotations

from typing import Any, Literal

from lit_llm.config import UserError
from lit_llm.tokenizer.alphabet import FALLBACK_TOKENS

Kind = Literal["bpe", "sentencepiece", "character"]
"""Byte-level BPE (GPT-2, Llama 3, Qwen), SentencePiece's BPE (Llama 2, Mistral, Gemma), one token per character."""

SPACE = "▁"
"""What a SentencePiece vocabulary spells a space as."""


def kind_of(state: dict[str, Any]) -> Kind:
    """The kind of a tokenizer.

    Raises:
        UserError: it is none of them.
    """
    model, decoder = state["model"], _decoder_steps(state)
    if model["type"] == "BPE":
        if "ByteLevel" in decoder:
            return "bpe"
        spelled = all(len(token) == 1 or token in FALLBACK_TOKENS for token in model["vocab"])
        complete = not model["byte_fallback"] or all(token in model["vocab"] for token in FALLBACK_TOKENS)
        if spelled and complete and not model["merges"] and not state["pre_tokenizer"] and state["normalizer"] is None:
            return "character"
        if "Metaspace" in decoder or decoder.get("Replace", {}).get("pattern") == {"String": SPACE}:
            return "sentencepiece"
    raise UserError(
        f"a {model['type']} tokenizer that is neither byte-level BPE nor SentencePiece's nor one token per character"
    )


def puts_space_first(state: dict[str, Any]) -> bool:
    """Whether a SentencePiece tokenizer reads a text as if a space stood before it (Llama 2 does, Gemma does not)."""
    decoder = _decoder_steps(state)
    if "Metaspace" in decoder:
        return decoder["Metaspace"].get("prepend_scheme", "always") != "never"
    strip = decoder.get("Strip", {})
    return "Replace" in decoder and strip.get("content") == " " and strip.get("start", 0) > 0


def without_prefix_space(state: dict[str, Any]) -> dict[str, Any] | None:
    """The state without the space that GPT-2's splitting puts before a text (`add_prefix_space`); None without one."""
    splitting = state["pre_tokenizer"] or {"type": "none"}
    steps = splitting.get("pretokenizers") or [splitting]
    # A later step would put a space before each part that the first one makes, wherever the text stands.
    if steps[0]["type"] != "ByteLevel" or not steps[0].get("add_prefix_space"):
        return None
    steps = [{**steps[0], "add_prefix_space": False}, *steps[1:]]
    return {**state, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


def puts_space_once(state: dict[str, Any]) -> bool:
    """Whether that space stands before the very first word only, and not before what follows a special token, too."""
    steps = state["pre_tokenizer"] or {"type": "none"}
    return any(step.get("prepend_scheme") == "first" for step in (steps, *steps.get("pretokenizers", ())))


def _decoder_steps(state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    decoder = state["decoder"] or {"type": "none"}
    return {step["type"]: step for step in (decoder, *decoder.get("decoders", ()))}
