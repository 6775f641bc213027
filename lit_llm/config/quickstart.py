"""The main job: from text to a trained model in a few minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lit_llm.config.errors import UserError


@dataclass
class QuickstartConfig:
    """Train a tokenizer and a small decoder on text, and compare it with a compressor."""

    corpus: str = "stdlib"
    """The text: "stdlib" (the Python standard library's source on this machine), a file, folder, glob or hf:NAME."""
    text_field: str = "text"
    """Field of a .jsonl, .parquet or Hugging Face row that holds the text."""
    minutes: float = 4.0
    """Time to spend in all on this machine, most of it in training; the number of steps is set from a measurement."""
    vocab_size: int = 4096
    """Tokens of the byte-level BPE."""
    run_name: str = "quickstart"
    """Folder of the run inside output_root."""
    output_root: str = "checkpoints"
    """Folder that runs land in."""
    seed: int = 1337
    """Seed of the weights and of the order of the data."""
    ckpt_path: str | None = None
    """Resume: "last" for the newest whole checkpoint of this run."""
    overwrite: bool = False
    """Delete what an earlier run of this name left, and start again."""

    def __post_init__(self) -> None:
        if self.minutes <= 0:
            raise UserError(f"minutes is {self.minutes}; it must be above 0")
        if self.vocab_size < 260:
            raise UserError(
                f"vocab_size is {self.vocab_size}; byte-level BPE needs at least 260 (256 bytes, 4 specials)"
            )
        if self.ckpt_path not in (None, "last"):
            raise UserError(f"ckpt_path is {self.ckpt_path}; the quickstart resumes its own run alone: last")
        if self.ckpt_path is not None and self.overwrite:
            raise UserError("ckpt_path resumes a run and overwrite deletes it; give one of the two")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output_root) / self.run_name
