"""Secrets that are planted in training data, and how much of them a model has learned by heart."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lit_llm.config import UserError, derived_seed
from lit_llm.config.json_text import parse_json

FILE, DOCUMENTS = "canaries.json", "documents.jsonl"
_THINGS = ("locker code", "account number", "badge number", "membership number", "vault code", "order number")
_FIRST = (
    *("Adela", "Bram", "Corin", "Dita", "Edda", "Falk", "Greta", "Hauke", "Ines", "Jorun", "Kaja", "Lennard"),
    *("Mirela", "Nils", "Oda", "Pavel", "Quirin", "Runa", "Sorin", "Tilda", "Ulla", "Veit", "Wanda", "Ylva", "Zoran"),
)
_LAST = (
    *("Abendrot", "Birkmoor", "Cassels", "Dornwald", "Eichgrund", "Fernau", "Grauwerth", "Holmquist", "Ivarsen"),
    *("Juchacz", "Kestrin", "Lindholt", "Morwen", "Nebelung", "Ostrander", "Pellworm", "Quandt", "Rosmer", "Sundvik"),
    *("Tarnow", "Uckermann", "Vestergard", "Wolkenstein", "Yxkull", "Zandvoort"),
)


@dataclass(frozen=True)
class Canary:
    """A secret in a sentence.

    Attributes:
        frame: the sentence up to the secret.
        secret: digits with spaces between them.
        repeats: how often it was planted; 0: never, to compare with.
    """

    frame: str
    secret: str
    repeats: int

    @property
    def text(self) -> str:
        """The whole document."""
        return f"{self.frame} {self.secret}"


def random_secret(draws: random.Random, digits: int) -> str:
    """Random digits with spaces between them, so that tokenizers spell all secrets alike."""
    return " ".join(draws.choices("0123456789", k=digits))


def make_canaries(repeats: Sequence[int], count: int, digits: int, seed: int) -> list[Canary]:
    """Make `count` canaries of each number of repeats and as many that are not planted, each in a frame of its own.

    Raises:
        UserError: there are not so many frames.
    """
    draws = random.Random(derived_seed("canaries", seed))
    frames = [f"The {thing} of {first} {last} is" for thing in _THINGS for first in _FIRST for last in _LAST]
    groups = [0, *repeats]
    if count * len(groups) > len(frames):
        raise UserError(
            f"{count * len(groups):,} canaries are asked for, and there are {len(frames):,} frames; ask less"
        )
    chosen = iter(draws.sample(frames, count * len(groups)))
    return [Canary(next(chosen), random_secret(draws, digits), often) for often in groups for _ in range(count)]


def canary_documents(canaries: Sequence[Canary], seed: int) -> list[str]:
    """The documents to be trained on, each canary as often as it says, in an order that is drawn."""
    texts = [canary.text for canary in canaries for _ in range(canary.repeats)]
    random.Random(derived_seed("canary documents", seed)).shuffle(texts)
    return texts


def canaries_as_json(canaries: Sequence[Canary], digits: int, seed: int) -> dict[str, Any]:
    """What `read_canaries` reads."""
    return {"format": "lit_llm canaries", "digits": digits, "seed": seed, "canaries": [asdict(one) for one in canaries]}


def read_canaries(path: Path) -> list[Canary]:
    """Read the canaries.json of plant_canaries.

    Raises:
        UserError: it is not there, or no such file.
    """
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"canaries {path}: there is no such file; give the {FILE} that plant_canaries has written")
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        found = [Canary(one["frame"], one["secret"], one["repeats"]) for one in values["canaries"]]
        for one in found:
            is_right = isinstance(one.frame, str) and one.frame.strip() and one.secret.replace(" ", "").isdecimal()
            if not is_right or not isinstance(one.repeats, int) or one.repeats < 0:
                raise ValueError(f"a canary is {one}")
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise UserError(
            f"canaries {path} is not a {FILE} of plant_canaries ({type(error).__name__}: {error}); give that file"
        ) from error
    if not found:
        raise UserError(f"canaries {path} has no canary; make it again with plant_canaries")
    return found


def documents_as_lines(texts: Sequence[str]) -> str:
    """Documents as the content of a .jsonl file."""
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)
