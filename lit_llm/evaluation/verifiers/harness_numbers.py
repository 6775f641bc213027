"""Whether a number is right by the two filters of lm-evaluation-harness's task gsm8k, as published figures are."""

from __future__ import annotations

import re

_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_IGNORED = (re.compile(","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))


def strict_match(text: str, answer: str) -> bool:
    """Whether the first number behind "#### " is spelled like the right one, but for commas and a full stop."""
    found = _STRICT.search(text)
    return found is not None and _bare(found[1]) == _bare(answer)


def flexible_extract(text: str, answer: str) -> bool:
    """Whether what looks like a number last in a text is spelled like the right one, but for commas, $ and a full stop.

    What looks like one may be a lone "$." or "..", and 7.0 is not 7.
    """
    found = _FLEXIBLE.findall(text)
    return bool(found) and _bare(found[-1]) == _bare(answer)


def _bare(text: str) -> str:
    for pattern in _IGNORED:
        text = pattern.sub("", text)
    return text.lower()
