"""From a checkpoint or a model folder to a model folder, on one process and without a process group."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_llm.cli.quantization import SAMPLE, quantize_and_tell, read_quality_text
from lit_llm.config import ExportConfig, ModelConfig, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lit_llm.tokenizer import Tokenizer


@dataclass
class _Source:
    """What is to be exported."""

    model: ModelConfig
    weights: dict[str, Tensor]
    tokenizer: Path
    generation: dict[str, Any] | None
    """Content of its generation_config.json, where it has one."""
    name: str


def export(config: ExportConfig) -> None:
    """Write a model folder and say where it is.

    Raises:
        UserError: there is no whole checkpoint, or no tokenizer, the output holds a model already, or transformers has
            no such architecture and `config.format` asks for it.
    """
    import torch

    from lit_llm.interop import save_model_folder, why_not_huggingface
    from lit_llm.tokenizer import Tokenizer

    output, path = Path(config.output), Path(config.checkpoint)
    if config.format == "gguf" and output.suffix != ".gguf":
        output = output / "model.gguf"
    taken = output if config.format == "gguf" else output / "config.json"
    if taken.exists() and not config.overwrite:
        raise UserError(f"{output} already holds a model; --overwrite true replaces it, --output FOLDER writes another")
    if (path / "config.json").is_file():
        source = _read_folder(path, config.tokenizer)
    else:
        source = _read_checkpoint(find_checkpoint(path), config.tokenizer)
    tokenizer = Tokenizer.load(source.tokenizer)
    if config.format == "gguf":
        _write_gguf(config, output, source, tokenizer)
        return
    dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
    quantization = None if config.quantize == "none" else config.quantize
    if quantization is not None:
        source.weights, dtype = _quantized(config, source, tokenizer, dtype), None
    save_model_folder(
        output,
        source.model,
        source.weights,
        tokenizer,
        form=config.format,
        dtype=dtype,
        max_shard_bytes=config.max_shard_bytes,
        generation=source.generation,
        quantization=quantization,
    )
    if quantization is not None:
        print(f"for this package alone: the weights are quantized ({quantization})")
    reason = why_not_huggingface(source.model, tokenizer) if config.format == "auto" and not quantization else None
    if reason is not None:
        print(f"for this package alone: {reason}")
    print(f"model folder  {output} ({source.name})")


def _quantized(
    config: ExportConfig, source: _Source, tokenizer: Tokenizer, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    import torch

    from lit_llm.model import Decoder

    texts = [] if config.quality_text is None else [read_quality_text(config.quality_text)]
    with torch.device("meta"):
        model = Decoder(source.model)
    model.load_state_dict(
        {name: weight.to(dtype or weight.dtype) for name, weight in source.weights.items()}, assign=True
    )
    model.tie()
    source.weights = {}  # each is released as it is quantized
    name = "a built-in text" if config.quality_text is None else config.quality_text
    quantize_and_tell(model.eval(), tokenizer, config.quantize, texts or [SAMPLE], name)
    return model.state_dict()


def _write_gguf(config: ExportConfig, output: Path, source: _Source, tokenizer: Tokenizer) -> None:
    from lit_llm.interop.gguf import save_gguf

    stored = str(next(iter(source.weights.values())).dtype).removeprefix("torch.")
    kinds = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
    kind = kinds.get(stored if config.dtype == "auto" else config.dtype, "F32")
    save_gguf(output, source.model, source.weights, tokenizer, kind)
    print(f"GGUF file  {output} ({kind}, {output.stat().st_size:,} bytes; {source.name})")


def _read_folder(path: Path, tokenizer: str | None) -> _Source:
    from lit_llm.interop import load_weights, read_generation_config, read_model_config

    model = read_model_config(path)
    place = path if tokenizer is None else Path(tokenizer)
    return _Source(model, load_weights(path, model), place, read_generation_config(path), str(path))


def _read_checkpoint(path: Path, tokenizer: str | None) -> _Source:
    from lit_llm.config import from_plain
    from lit_llm.modules.base import CONFIG_KEY
    from lit_llm.training.checkpoint_io import read_checkpoint

    checkpoint = read_checkpoint(path, keys=("state_dict",), mmap=True)
    run = checkpoint.get(CONFIG_KEY)
    if run is None:
        raise UserError(f"{path} does not say which model it is of: it was not written by this package")
    model = from_plain(ModelConfig, run["model"])
    prefix = "model."
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
    place = tokenizer_of(run) if tokenizer is None else Path(tokenizer)
    return _Source(model, weights, place, None, f"step {checkpoint['global_step']} of {path}")


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the newest whole one of a run folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    from lit_llm.training.checkpoint_files import damage, newest_whole, step_of

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


def tokenizer_of(run: dict[str, Any]) -> Path:
    """Where the tokenizer of a run's data is.

    Raises:
        UserError: it is not there any more.
    """
    paths = run.get("data", {}).get("paths") or []
    folder = Path(paths[0]) / "tokenizer" if paths else None
    if folder is None or not folder.is_dir():
        raise UserError(f"the tokenizer of the run is not at {folder}; give one with --tokenizer FOLDER")
    return folder
