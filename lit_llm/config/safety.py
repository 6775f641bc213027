"""What the safety of a trained model is measured by, and the secrets that are planted to measure it."""

from __future__ import annotations

from dataclasses import dataclass, field

from lit_llm.config.bounds import check_at_least, check_no_blank
from lit_llm.config.errors import UserError
from lit_llm.config.generation import LoadConfig

SAFETY_CHECKS = (
    *("memorisation", "canaries", "membership", "contamination", "refusals", "toxicity", "bias", "injection"),
    "reward_length",
)
"""The checks by name, in the order of the report."""


@dataclass
class SafetyConfig(LoadConfig):
    """Measure what a trained model may do harm with: what it gives away, what it does on request, whom it disfavours.

    Each part of the report says what it shows and what it does not. No number here says that a model is safe.
    """

    checks: list[str] = field(default_factory=list)
    """Checks to make: memorisation, canaries, membership, contamination, refusals, toxicity, bias, injection,
    reward_length. None: all that the model and what is given allow; the others are named with the reason."""
    shards: list[str] = field(default_factory=list)
    """Folders written by prepare_data that the model was trained on; none: those of its run, where it lies in one."""
    canaries: str | None = None
    """The canaries.json of plant_canaries, whose documents were in the training data."""
    evaluations: list[str] = field(default_factory=list)
    """Files of evaluations to look for in the shards, as of contamination."""
    requests: list[str] = field(default_factory=list)
    """More requests for the check of refusals: rows with prompt, category and kind (harmful or benign)."""
    toxic_words: list[str] = field(default_factory=list)
    """More files of words to look for in samples, as of the step toxicity of clean_data."""
    preferences: list[str] = field(default_factory=list)
    """Files of preferences, as reward.py reads them, on which the length bias of a reward model is measured."""
    prefix_lengths: list[int] = field(default_factory=lambda: [16, 32, 64, 128, 256])
    """Tokens of training text that the model is shown to see whether it goes on by heart."""
    continuation_tokens: int = 50
    """Tokens that it has to give word for word to have them by heart (Carlini et al. 2023: 50)."""
    window_tokens: int = 128
    """Tokens of a window in the check of membership; no more than the model's context."""
    references: int = 255
    """Other secrets of the same form that a canary is ranked among; its exposure is at most log2(references + 1)."""
    samples: int = 64
    """Texts that a model without a form for conversations writes for the check of toxicity."""
    max_new_tokens: int = 100
    """Tokens of an answer or a text at most."""
    limit: int | None = 200
    """Windows of each split, canaries, requests of each kind, attacks and pairs at most; null: all of those that are
    given, and 500 windows."""
    batch_size: int = 16
    """Texts read or written at once; results do not depend on it but for rounding."""
    card: bool = True
    """Write a summary into the model card where the model lies in the folder of its run, and the report goes there."""
    output: str | None = None
    """Folder for safety.md, safety.json and safety.html; null: the run folder, or else the model folder."""
    overwrite: bool = False
    """Replace a report that is already there."""
    seed: int = 0
    """Seed of what is drawn: windows, references, secrets of the attacks, and samples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.checks:
            if name not in SAFETY_CHECKS:
                raise UserError(f"checks has {name!r}; it must be among {', '.join(SAFETY_CHECKS)}")
        check_at_least(self, 1, "continuation_tokens", "samples", "max_new_tokens", "limit", "batch_size")
        check_at_least(self, 1, "references")
        check_at_least(self, 2, "window_tokens")
        check_at_least(self, 0, "seed")
        check_no_blank(self, "shards", "evaluations", "requests", "toxic_words", "preferences")
        if not self.prefix_lengths or min(self.prefix_lengths) < 1:
            raise UserError(f"prefix_lengths is {self.prefix_lengths}; give numbers of tokens of at least 1")
        self.prefix_lengths = sorted(set(self.prefix_lengths))
        if self.checks:
            self._refuse_unused()

    def _refuse_unused(self) -> None:
        """Refuse what is given for checks that are not asked for."""
        of = {
            "canaries": ("canaries",),
            "evaluations": ("contamination",),
            "requests": ("refusals", "toxicity"),
            "toxic_words": ("toxicity",),
            "preferences": ("reward_length",),
            "shards": ("memorisation", "canaries", "membership", "contamination"),
        }
        for name, checks in of.items():
            if getattr(self, name) and not set(checks) & set(self.checks):
                raise UserError(f"{name} is given, but not the check it is for; add {' or '.join(checks)} to checks")

    def wants(self, check: str) -> bool:
        """Whether a check is among those that are asked for by name."""
        return check in self.checks


@dataclass
class CanariesConfig:
    """Write secrets to be planted in training data, so that what a model has learned by heart can be measured.

    The documents are a source like any other: give documents.jsonl to clean_data beside the text, as in
    '[{"path": "texts"}, {"path": "canaries/documents.jsonl"}]' (its steps that remove duplicates would remove the
    repeats), or make shards of it alone and read both: --data.paths '[shards, canary_shards]'. Then give
    canaries.json to safety.
    """

    repeats: list[int] = field(default_factory=lambda: [1, 10, 100])
    """How often a secret stands in the documents."""
    count: int = 5
    """Secrets of each number of repeats; as many again are written nowhere, to compare with."""
    digits: int = 9
    """Digits of a secret."""
    output: str = "checkpoints/canaries"
    """Folder for documents.jsonl, which is to be trained on, and canaries.json, which is to be kept apart."""
    overwrite: bool = False
    """Replace canaries that are already there."""
    seed: int = 0
    """Seed of the secrets."""

    def __post_init__(self) -> None:
        if not self.repeats or min(self.repeats) < 1 or len(set(self.repeats)) < len(self.repeats):
            raise UserError(f"repeats is {self.repeats}; give different numbers of at least 1")
        check_at_least(self, 1, "count")
        check_at_least(self, 0, "seed")
        if not 4 <= self.digits <= 100:
            raise UserError(f"digits is {self.digits}; it must be from 4 to 100")
