"""Checks of the regular expressions in a tokenizer.json: some take for ever on a few hundred characters.

The engine behind `tokenizers` backtracks, and no thread of it can be told to stop. So each expression that is not one
of the usual ones is tried out first, in a process that may be killed, on the texts that make backtracking explode: long
runs of what the expression speaks of, and then something else. Expressions whose time grows with the square of a run
pass: published tokenizers have such.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from lit_llm.config import UserError
from lit_llm.config.serialization import shown

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
USUAL = frozenset(_WORDS % digits for digits in (r"\p{N}{1,3}", r"\p{N}"))
"""The expressions of Llama 3 and of Qwen 2 and 3, whose time grows with the text and no faster."""

MOST_PATTERNS = 32
MOST_CHARACTERS = 4_000
"""How many expressions a tokenizer may have, and how long each may be; DeepSeek's are the longest that are known."""
SECONDS = 5
"""Processor time at most for trying out a tokenizer's expressions: usual ones take some tenths of a second."""
PATIENCE = 120
"""Seconds of real time at most for the same on a busy machine."""

_TRY_OUT = """
import json, re, sys
request = json.loads(sys.stdin.buffer.read())
sys.path[:] = request["path"]
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (request["seconds"], request["seconds"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, ValueError):
    pass
from tokenizers import Regex, normalizers
for pattern in request["patterns"]:
    step = normalizers.Replace(Regex(pattern), "")
    literals = [character for character in dict.fromkeys(pattern) if character.isprintable()][:48]
    words = re.findall(r"[^\\W_]{2,16}", pattern)
    words += [word[start : start + 2] for word in words for start in range(len(word) - 1)]
    words = list(dict.fromkeys(words))[:32]
    units = dict.fromkeys(["a", "A", "1", " ", "\\n", "\\r\\n", "!", "é", "ß", "日", "\\u0301", *literals, *words])
    for size in (40, 2_000):
        for unit in units:
            for end in ("", "!", "a", "\\x00", "\\n"):
                step.normalize_str(unit * size + end)
"""


def patterns_of(state: Any) -> Iterator[str]:
    """Every regular expression in the content of a tokenizer.json, wherever it stands.

    Raises:
        UserError: one is no text.
    """
    places = [state.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")]
    while places:
        place = places.pop()
        if isinstance(place, list):
            places.extend(place)
        elif isinstance(place, dict):
            if "Regex" in place:
                if not isinstance(place["Regex"], str):
                    raise UserError(f"a regular expression is {shown(place['Regex'])}; it must be text")
                yield place["Regex"]
            places.extend(place.values())


def check_patterns(state: Any) -> None:
    """Refuse a tokenizer whose regular expressions could hang the process.

    Args:
        state: content of tokenizer.json.

    Raises:
        UserError: one is too long, broken, or takes a time that explodes with the length of a text.
    """
    found = tuple(sorted(set(patterns_of(state)) - USUAL))
    longest = max(map(len, found), default=0)
    if len(found) > MOST_PATTERNS or longest > MOST_CHARACTERS:
        raise UserError(
            f"{len(found)} regular expressions of up to {longest} characters; there may be {MOST_PATTERNS} of "
            f"{MOST_CHARACTERS}"
        )
    for pattern in found:
        problem = _problem(pattern)
        if problem is not None:
            raise UserError(f"the regular expression {shown(pattern)} {problem}")


@lru_cache(maxsize=256)
def _problem(pattern: str) -> str | None:
    """What is wrong with an expression, or None."""
    request = {"patterns": [pattern], "path": sys.path, "seconds": SECONDS}
    try:
        tried = subprocess.run(
            [sys.executable, "-c", _TRY_OUT],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        tried = None
    if tried is not None and tried.returncode == 0:
        return None
    said = "" if tried is None else tried.stderr.decode(errors="replace")
    if "Oniguruma error" in said:  # of the compiler, which no text has reached
        return f"is broken ({said.rpartition('Oniguruma error: ')[2].splitlines()[0]}); correct it"
    return "takes a time that explodes with the length of a text; do not use this tokenizer"
