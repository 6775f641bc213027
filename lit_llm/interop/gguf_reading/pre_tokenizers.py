"""llama.cpp's names for how a byte-level tokenizer splits text into words, and what each of them means.

Source: the tokenizer.json of the published models that llama.cpp names them after, and llama.cpp's src/llama-vocab.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lit_llm.interop.families import QWEN2_PATTERN

LLAMA3_PATTERN = QWEN2_PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|")
_WORD = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
TEKKEN_PATTERN = rf"{_WORD}{_UPPER}*{_LOWER}+|{_WORD}{_UPPER}+{_LOWER}*|\p{{N}}|{_REST}"
GPT4O_PATTERN = rf"{_WORD}{_UPPER}*{_LOWER}+{_SUFFIX}|{_WORD}{_UPPER}+{_LOWER}*{_SUFFIX}|\p{{N}}{{1,3}}|{_REST}"


@dataclass(frozen=True)
class Splitting:
    """A way to split text into words."""

    pattern: str | None = None
    """The regular expression of a word; None for GPT-2's own, which `tokenizers` has."""
    digits: bool = False
    """Whether every digit is a word, before anything else."""
    normal_form: str | None = None
    """The Unicode normal form that text is brought into before."""
    ignore_merges: bool = False
    """Whether a word that is a token is taken as that without looking at merges."""
    begins: bool = False
    """Whether a text begins with a token of its own where the file does not say."""

    def pre_tokenizer(self) -> dict[str, Any]:
        """Write the pre_tokenizer of a tokenizer.json."""
        steps: list[dict[str, Any]] = []
        if self.digits:
            steps.append({"type": "Digits", "individual_digits": True})
        if self.pattern is not None:
            steps.append({"type": "Split", "pattern": {"Regex": self.pattern}, "behavior": "Isolated", "invert": False})
        own = self.pattern is None
        steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": own})
        return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


_LLAMA3 = Splitting(LLAMA3_PATTERN, ignore_merges=True, begins=True)
_QWEN2 = Splitting(QWEN2_PATTERN, normal_form="NFC")

SPLITTINGS: dict[str, Splitting] = {
    "gpt-2": Splitting(),
    "smollm": Splitting(digits=True),
    "starcoder": Splitting(digits=True),
    "refact": Splitting(digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "smaug-bpe": Splitting(LLAMA3_PATTERN),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "megrez": _QWEN2,
    "tekken": Splitting(TEKKEN_PATTERN, ignore_merges=True, begins=True),
    "gpt-4o": Splitting(GPT4O_PATTERN),
}
"""What is read, by its name in `tokenizer.ggml.pre`. The first of two with the same meaning is what is written."""


def name_of_splitting(state: dict[str, Any]) -> str | None:
    """Look up llama.cpp's name for how the content of a tokenizer.json splits text; None where it has none."""
    split, normal_form = state["pre_tokenizer"] or {}, (state["normalizer"] or {}).get("type")
    steps = split.get("pretokenizers", [split])
    patterns = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    digits = [step for step in steps if step["type"] == "Digits" and step["individual_digits"]]
    byte_level = [step for step in steps if step["type"] == "ByteLevel"]
    known = len(patterns) + len(digits) + len(byte_level) == len(steps) and len(byte_level) == 1
    if not known or len(patterns) > 1 or len(digits) > 1 or byte_level[0]["use_regex"] is bool(patterns):
        return None
    found = (patterns[0] if patterns else None, bool(digits), normal_form)
    names = (name for name, each in SPLITTINGS.items() if (each.pattern, each.digits, each.normal_form) == found)
    return next(names, None)
