"""What a run has trained, read from its checkpoint without Lightning, a process group or the run's data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_llm.config import CONFIG_KEY, LoraConfig, ModelConfig, UserError, from_plain
from lit_llm.interop import starting_adapter
from lit_llm.model import Decoder
from lit_llm.model.lora import merged_state, rounded_base
from lit_llm.modules.decoder_module import BASE_KEY
from lit_llm.modules.weights import copy_weights, digest_of_parts
from lit_llm.training.checkpoint_files import damage, newest_whole, step_of
from lit_llm.training.checkpoint_io import read_checkpoint


@dataclass
class TrainedModel:
    """What a checkpoint says of the model that a run trains; see `read_trained_model`."""

    path: Path
    """The checkpoint."""
    step: int
    """Optimizer steps that the run had made."""
    run: dict[str, Any]
    """The run's configuration, as a plain dict."""
    model: ModelConfig
    """The architecture."""
    lora: LoraConfig
    """With the rank of the additions, where the run has some."""
    weights: dict[str, Tensor]
    """By the decoder's names: all of the model's, or with low-rank additions those that were trained. They are mapped
    to the file and must not be written to."""
    base_digest: str | None = None
    """`digest_of_parts` of the model that additions were trained over, where the checkpoint has it."""

    @property
    def name(self) -> str:
        """The checkpoint, for a line of text."""
        return f"step {self.step} of {self.path}"

    def whole_weights(self) -> dict[str, Tensor]:
        """A state_dict of `Decoder(self.model)`, with additions summed into their weights, in the type of training.

        Raises:
            UserError: the run trained additions, and the model that it started from is not there any more, or another
                one is.
        """
        return _merged(self) if self.lora.active else self.weights

    def decoder(self) -> Decoder:
        """The model itself, in evaluation mode, with memory of its own.

        Raises:
            UserError: as `whole_weights`.
        """
        with torch.device("meta"):
            decoder = Decoder(self.model)
        decoder.load_state_dict({name: weight.clone() for name, weight in self.whole_weights().items()}, assign=True)
        decoder.tie()
        return decoder.eval()

    def base_folder(self) -> Path:
        """The model folder that the run started from.

        Raises:
            UserError: it is not there any more, or has other weights by now.
        """
        place = self.run.get("init_from")
        if place is None or not Path(place).exists():
            raise UserError(
                f"{self.name} holds what the run trained, and not the model that it started from, which is not at "
                f"{place}; put that model folder back"
            )
        if self.base_digest not in (None, digest_of_parts(Path(place))):
            raise UserError(
                f"{self.name} was trained over other weights than {place} has by now; put that model folder back"
            )
        return Path(place).resolve()


def read_trained_model(path: Path | str) -> TrainedModel:
    """The configuration and the weights in a checkpoint of a run, whole or sharded.

        decoder = read_trained_model("checkpoints/my-run").decoder()

    Args:
        path: a checkpoint (step_00000100.ckpt), or the folder of a run, which means its newest whole one.

    Raises:
        UserError: there is no checkpoint, it is damaged, or it was not written by this package.
    """
    path = find_checkpoint(Path(path))
    checkpoint = read_checkpoint(path, keys=("state_dict",), mmap=True)
    run = checkpoint.get(CONFIG_KEY)
    if run is None:
        raise UserError(f"{path} does not say which model it is of: it was not written by this package")
    model = from_plain(ModelConfig, run["model"])
    lora = from_plain(LoraConfig, run.get("lora", {}))
    if lora.active and lora.rank == 0:
        lora, _ = starting_adapter(lora, model)
    prefix = "model."
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
    return TrainedModel(path, checkpoint["global_step"], run, model, lora, weights, checkpoint.get(BASE_KEY))


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the newest whole one of a run folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if (path / "checkpoints").is_dir():
        newest = newest_whole(path / "checkpoints")
        if newest is None:
            raise UserError(f"{path} has no checkpoint yet")
        return newest
    if not path.exists() or (path.is_dir() and step_of(path) is None):
        raise UserError(f"{path} is neither a checkpoint (checkpoints/RUN/checkpoints/step_*.ckpt) nor a run folder")
    problem = damage(path)
    if problem is not None:
        raise UserError(f"{path} is not a whole checkpoint ({problem})")
    return path


def _merged(trained: TrainedModel) -> dict[str, Tensor]:
    """All weights of the model that the run trained, in the type that it trained them in."""
    base = trained.base_folder()
    with torch.device("meta"):
        model = Decoder(trained.model)
    if trained.run.get("trainer", {}).get("precision") == "bf16-true":
        model.to(torch.bfloat16)
    model.to_empty(device="cpu")
    model.tie()
    copy_weights(base, model)
    heads = {"head.weight": trained.model.output == "score", "value_head.weight": trained.model.value_head}
    missing = [name for name, is_new in heads.items() if is_new and name not in trained.weights]
    if missing:
        raise UserError(f"{trained.name} lacks {missing[0]}, which the run must have trained")
    weights = rounded_base(model.state_dict(), trained.lora)
    return merged_state({**weights, **trained.weights}, trained.lora)
