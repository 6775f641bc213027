"""The main job: from text to a trained and aligned model in a few minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lit_llm.config.errors import UserError
from lit_llm.config.files import from_home

STAGES = ("pretrain", "sft", "reward", "dpo")
"""The stages of the quickstart, in order."""


@dataclass
class QuickstartConfig:
    """Pretrain a small decoder on Python, fine-tune it to write functions, and align it; or pretrain it on any text."""

    corpus: str = "stdlib"
    """The text: "stdlib" (the Python standard library's source on this machine), a file, folder, glob or
    hf:NAME[:CONFIG[:SPLIT]]."""
    text_field: str = "text"
    """Field of a .jsonl, .parquet or Hugging Face row that holds the text."""
    stages: list[str] | str | None = None
    """Stages to run, as pretrain,sft,reward,dpo; those that are finished are used as they are. Null: all of them on
    the standard library, and pretrain on other text, which need not have functions with docstrings to learn from."""
    minutes: float = 4.0
    """Time to spend in all on this machine, most of it in training; the number of steps is set from a measurement."""
    vocab_size: int = 4096
    """Tokens of the byte-level BPE."""
    run_name: str = "quickstart"
    """Folder of the run inside output_root; the stages after pretraining have folders in it."""
    output_root: str = "checkpoints"
    """Folder that runs land in."""
    seed: int = 1337
    """Seed of the weights, of the order of the data and of what is drawn."""
    ckpt_path: str | None = None
    """Resume: "last" goes on with the stage that was interrupted, from its newest whole checkpoint; "last_or_begin"
    begins where there is no run yet."""
    overwrite: bool = False
    """Delete what earlier runs left of these stages, and of those that build on them, and start again."""

    def __post_init__(self) -> None:
        self.output_root = from_home(self.output_root)
        if self.minutes <= 0:
            raise UserError(f"minutes is {self.minutes}; it must be above 0")
        if self.vocab_size < 260:
            raise UserError(
                f"vocab_size is {self.vocab_size}; byte-level BPE needs at least 260 (256 bytes, 4 specials)"
            )
        if self.ckpt_path not in (None, "last", "last_or_begin"):
            raise UserError(
                f"ckpt_path is {self.ckpt_path}; the quickstart resumes its own run alone: last, or last_or_begin"
            )
        if self.ckpt_path is not None and self.overwrite:
            raise UserError("ckpt_path resumes a run and overwrite deletes it; give one of the two")
        self.stages = self._chosen_stages()

    def _chosen_stages(self) -> list[str]:
        if self.stages is None:
            return list(STAGES) if self.corpus == "stdlib" else ["pretrain"]
        given = self.stages.strip("[] ").split(",") if isinstance(self.stages, str) else self.stages
        names = [name.strip() for name in given]
        for name in names:
            if name not in STAGES:
                raise UserError(f"stages has {name!r}; it takes {', '.join(STAGES)}")
        if not names:
            raise UserError(f"stages is empty; give one or more of {', '.join(STAGES)}, or leave it out")
        return [name for name in STAGES if name in names]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output_root) / self.run_name
