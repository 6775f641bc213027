"""A model to be used and not trained: found, read, and quantized where that is asked for."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from lit_llm.config import LoadConfig, UserError
from lit_llm.stages.quantization import QualityText, quality_texts, quantize_and_tell

if TYPE_CHECKING:
    import torch

    from lit_llm.model import Decoder
    from lit_llm.tokenizer import Tokenizer


@dataclass
class LoadedModel:
    """A decoder in evaluation mode, and what goes with it."""

    model: Decoder
    tokenizer: Tokenizer
    stop_tokens: list[int]
    """Ids of the tokens that end a text, by the folder's generation_config.json and the tokenizer."""
    folder: Path
    device: str


def load(
    config: LoadConfig, own: QualityText | None = None, *, compile: bool = False, reward_models: bool = False
) -> LoadedModel:
    """Read the model that `config` names; what quantization changes is said on stderr.

    Args:
        config: the model's folder, device, type and quantization.
        own: what the model is going to read, on which the loss of quantization is measured.
        compile: the model will be compiled, for which weights stay as they are and a tied head is quantized, too.
        reward_models: a model that gives scores instead of text is read as well.

    Raises:
        UserError: there is no model, it is a reward model where none can be used, or it cannot be used on this machine
            as asked.
    """
    from lit_llm.interop import load_model_folder, read_model_config, stop_token_ids
    from lit_llm.model.packed_linear import pack_weights

    device = device_of(config)
    folder = find_model(config.model)
    if not reward_models:
        read_model_config(folder).check_gives_text(str(folder))
    model, tokenizer = load_model_folder(folder, device=device, dtype=dtype_of(config))
    if config.quantize != "none":
        tell_speed(config.quantize, device)
        measured = quality_texts(tokenizer, folder, config.quality_text, own)
        quantize_and_tell(model, tokenizer, config.quantize, measured, tied_head=compile)
    if not compile:
        pack_weights(model)
    return LoadedModel(model.eval(), tokenizer, list(stop_token_ids(folder, tokenizer)), folder, device)


def tell_speed(kind: str, device: str) -> None:
    """Say on stderr where quantized weights save memory and no time."""
    if device == "cuda":
        print(
            f"{kind} on CUDA saves memory, not time: bfloat16 (--dtype bfloat16) was faster in each measurement so far",
            file=sys.stderr,
        )


def tell_begin_token(config: LoadConfig, tokenizer: Tokenizer) -> None:
    """Say on stderr where texts begin with a token that transformers would not put there by itself."""
    from lit_llm.tokenizer import begin_ids

    begin = begin_ids(tokenizer, config.begin_token)
    if begin and config.begin_token == "auto" and not tokenizer.rule_ids:
        name = tokenizer.token_bytes(begin[0]).decode(errors="replace")
        print(
            f"texts begin with {name}, as documents did in training; --begin_token never leaves it out", file=sys.stderr
        )


def dtype_of(config: LoadConfig) -> torch.dtype | None:
    """What the stored weights are converted to; None where they stay as they are."""
    import torch

    return {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]


def device_of(config: LoadConfig) -> str:
    """Resolve the device that `config` asks for: "cpu" or "cuda".

    Raises:
        UserError: it is CUDA, and there is none.
    """
    import torch

    on_gpu = config.accelerator == "cuda" or (config.accelerator == "auto" and torch.cuda.is_available())
    if on_gpu and not torch.cuda.is_available():
        raise UserError("accelerator is cuda, but torch finds no CUDA device here; use cpu or auto")
    return "cuda" if on_gpu else "cpu"


def find_model(path: str) -> Path:
    """Find the model folder that `path` means: itself, or the one inside a run folder."""
    folder = Path(path)
    if not (folder / "config.json").exists() and (folder / "model" / "config.json").exists():
        return folder / "model"
    return folder


def run_of(path: str) -> Path | None:
    """Find the folder of the run that has written the model that `path` means, where the model still lies in it."""
    model = find_model(path).resolve()
    return model.parent if model.name == "model" and (model.parent / "config.yaml").is_file() else None


def is_only_pretrained(folder: Path) -> bool:
    """Whether the model folder lies in the folder of a pretraining run that began with nothing."""
    try:
        options = yaml.safe_load((folder.parent / "config.yaml").read_text(encoding="utf-8"))
        # every later stage has options of low-rank adapters
        return "schedule" in options and "lora" not in options and options["init_from"] is None
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return False


def results_folder(path: str) -> Path:
    """Where what is measured of the model that `path` means goes: its run, else its folder, else beside a GGUF file."""
    from lit_llm.interop import is_gguf

    model = find_model(path)
    return run_of(path) or (model.with_suffix("") if is_gguf(model) else model)
