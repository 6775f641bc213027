"""The model folder: config.json, model.safetensors, tokenizer files, generation_config.json. No pickle is read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_llm.config import ModelConfig, UserError, from_plain, to_plain
from lit_llm.model import Decoder
from lit_llm.tokenizer import Tokenizer

MODEL_TYPE = "lit_llm"
WEIGHTS = "model.safetensors"


def save_model_folder(folder: Path, config: ModelConfig, weights: dict[str, Tensor], tokenizer: Tokenizer) -> None:
    """Write a model folder, each file whole or not at all.

    A tied head is left out: the configuration says that it is the embedding.

    Args:
        folder: made if it is not there.
        config: the decoder's configuration.
        weights: the decoder's state_dict.
        tokenizer: goes along.

    Raises:
        UserError: a file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    if config.tie_word_embeddings:
        tensors.pop("head.weight", None)
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{WEIGHTS}.partial"
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.replace(folder / WEIGHTS)
        _write_json(folder / "config.json", {"model_type": MODEL_TYPE, "dtype": dtype, **to_plain(config)})
        generation = {"eos_token_id": tokenizer.eot_id, "pad_token_id": tokenizer.pad_id}
        _write_json(folder / "generation_config.json", generation)
        tokenizer.save(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the model folder {folder}: {error}") from error


def read_model_config(folder: Path) -> ModelConfig:
    """The configuration in a model folder.

    Raises:
        UserError: the folder or its config.json is missing, broken, or of another model type.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a model folder: it has no config.json")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # bytes that are not UTF-8, too
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object")
    kind = values.pop("model_type", None)
    if kind != MODEL_TYPE:
        raise UserError(f"{path} has model_type {kind!r}; only {MODEL_TYPE!r} can be read")
    values.pop("dtype", None)
    try:
        return from_plain(ModelConfig, values)
    except (UserError, TypeError) as error:  # TypeError: a number written as text
        raise UserError(f"{path}: {error}") from error


def load_model_folder(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[Decoder, Tokenizer]:
    """The decoder, in evaluation mode, and the tokenizer of a model folder.

    Args:
        folder: written by `save_model_folder`.
        device: where the weights go.
        dtype: what they are converted to; None keeps them as stored.

    Raises:
        UserError: a file is missing or broken, or weights are missing, left over or of another shape.
    """
    config = read_model_config(folder)
    weights = load_weights(folder, config, device)
    with torch.device("meta"):
        model = Decoder(config)
    model.load_state_dict(weights, assign=True)
    if config.tie_word_embeddings:
        model.head.weight = model.embedding.weight
    if dtype is not None:
        model.to(dtype)
    return model.eval(), Tokenizer.load(folder)


def load_weights(folder: Path, config: ModelConfig, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """A state_dict for `Decoder(config)` from a model folder.

    Raises:
        UserError: the file is missing or broken, or weights are missing, left over or of another shape.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{folder} has no {WEIGHTS}")
    try:
        weights = load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if config.tie_word_embeddings and "embedding.weight" in weights:
        weights["head.weight"] = weights["embedding.weight"]
    with torch.device("meta"):
        expected = Decoder(config).state_dict()
    missing, unexpected = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    reshaped = [name for name in expected if name in weights and expected[name].shape != weights[name].shape]
    problems = [
        f"{what} {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if names
    ]
    if problems:
        raise UserError(f"{path} does not fit its config.json: weights {'; '.join(problems)}")
    return weights


def _write_json(path: Path, values: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
