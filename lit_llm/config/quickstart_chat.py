"""The second demonstration: a model that answers already, made better at what it is to answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lit_llm.config.errors import UserError
from lit_llm.config.fetch_model import FetchModelConfig
from lit_llm.config.files import from_home


@dataclass
class QuickstartChatConfig:
    """Take a small model that chats through evaluation, LoRA on conversations, DPO on preferences, and evaluation."""

    model: str | None = None
    """Model folder or GGUF file to begin with; null: SmolLM2-135M-Instruct (Apache-2.0, 98 MB), which is fetched as
    fetch_model.py does where it is not there yet."""
    instructions: str | None = None
    """Conversations in any of the forms that sft.py reads; null: functions of the Python standard library on this
    machine, each asked for by its docstring."""
    preferences: str | None = None
    """Preferences in any of the forms that dpo.py reads; null: the same functions, preferred to spoiled ones."""
    minutes: float = 12.0
    """Time to spend in all on this machine; the number of steps is set from measurements."""
    run_name: str = "quickstart_chat"
    """Folder of the run inside output_root; the stages have folders in it."""
    output_root: str = "checkpoints"
    """Folder that runs land in."""
    seed: int = 1337
    """Seed of the additions' weights, and of the order of the data."""
    ckpt_path: str | None = None
    """Resume: "last" goes on with what was interrupted; "last_or_begin" begins where there is no run yet."""
    overwrite: bool = False
    """Delete what an earlier run left, and start again."""

    def __post_init__(self) -> None:
        self.output_root = from_home(self.output_root)
        if not self.minutes > 0:
            raise UserError(f"minutes is {self.minutes}; it must be above 0")
        if self.ckpt_path not in (None, "last", "last_or_begin"):
            raise UserError(
                f"ckpt_path is {self.ckpt_path}; the quickstart resumes its own run alone: last, or last_or_begin"
            )
        if self.ckpt_path is not None and self.overwrite:
            raise UserError("ckpt_path resumes a run and overwrite deletes it; give one of the two")
        if (self.instructions is None) != (self.preferences is None):
            given, other = (
                ("preferences", "instructions") if self.instructions is None else ("instructions", "preferences")
            )
            raise UserError(f"{given} is given without {other}; a model learns both of one kind: give both, or neither")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output_root) / self.run_name

    @property
    def fetched(self) -> FetchModelConfig:
        """What is fetched where no model is given."""
        fetched = FetchModelConfig()
        fetched.output = str(Path(self.output_root) / fetched.names[0])
        return fetched

    @property
    def start(self) -> str:
        """The model to begin with."""
        return str(self.fetched.file) if self.model is None else self.model
