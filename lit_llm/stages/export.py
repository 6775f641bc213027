"""From a checkpoint or a model folder to a model folder, on one process and without a process group."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_llm.config import DataConfig, ExportConfig, ModelConfig, UserError, flatten
from lit_llm.config.files import replace_file
from lit_llm.evaluation.model_card import CARD, ModelCard, license_of, stage_of_options, write_card
from lit_llm.evaluation.safety.report import carry_summary
from lit_llm.interop import (
    GenerationSettings,
    delete_model,
    describe_model,
    ends_of,
    generation_settings,
    is_gguf,
    load_tokenizer,
    load_weights,
    read_model_config,
    save_adapter,
    save_model_folder,
    why_remote_code,
    without_value_head,
)
from lit_llm.model import Decoder
from lit_llm.stages.checkpoints import TrainedModel, read_trained_model
from lit_llm.stages.hub import check_token, push
from lit_llm.stages.quantization import quality_texts, quantize_and_tell, read_quality_text
from lit_llm.tokenizer import Tokenizer
from lit_llm.tokenizer.chat import with_chat_tokens
from lit_llm.training.curves import METRICS_FILE
from lit_llm.training.step_lines import read_step_lines


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        kind: "model folder", "GGUF file", "ONNX file", "torch program", "Ollama folder" or "adapter folder".
        path: where it is.
        source: what it was made from, in words.
        note: what else there is to know of who can load it; None where there is nothing.
        page: its address on the Hub, where it was uploaded.
    """

    kind: str
    path: Path
    source: str
    note: str | None = None
    page: str | None = None


@dataclass
class _Source:
    """What is to be exported."""

    model: ModelConfig
    weights: dict[str, Tensor]
    tokenizer: Tokenizer
    settings: GenerationSettings
    name: str
    trained: TrainedModel | None = None
    """The checkpoint that it comes from; None for a model folder."""


def export(config: ExportConfig) -> Exported:
    """Write a model folder, a GGUF file, a program or an adapter folder, and upload it where that is asked for.

    Raises:
        UserError: there is no whole checkpoint, or no tokenizer, the output holds a model already, or what is asked for
            cannot hold such a model; or the upload fails.
    """
    if config.push_to_hub is not None:
        check_token()  # before the work of the export
    exported = _write(config)
    if config.push_to_hub is None:
        return exported
    return replace(exported, page=push(exported.path, config.push_to_hub, private=config.private))


def _write(config: ExportConfig) -> Exported:
    output, path = Path(config.output), Path(config.checkpoint)
    file = config.file
    taken = [] if file is None else [file]
    if file is None or (file.suffix != ".gguf" and file != output):
        taken += [output / "config.json", output / "adapter_config.json"]
    if any(each.exists() for each in taken) and not config.overwrite:
        raise UserError(
            f"{file or output} already holds a model; --overwrite true replaces it, --output FOLDER writes another"
        )
    is_file = is_gguf(path) and path.suffix == ".gguf"  # checkpoints are files, too
    is_model = is_file or any((path / name).is_file() for name in ("config.json", "adapter_config.json"))
    if config.lora == "adapter":
        if is_model:
            raise UserError(f"{path} is a model; lora adapter is for a checkpoint of a run with lora")
        return _write_adapter(config, output, read_trained_model(path))
    source = _read_folder(path, config.tokenizer) if is_model else _whole(config, path)
    tokenizer = source.tokenizer
    if file is not None:
        return _write_file(config, file, source)
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
        settings=source.settings,
        quantization=quantization,
    )
    _write_card(config, output, source.model, source.trained, quantization)
    return Exported("model folder", output, source.name, _note(config, source, quantization))


def _note(config: ExportConfig, source: _Source, quantization: str | None) -> str | None:
    if quantization is not None:
        return f"for this package alone: the weights are quantized ({quantization})"
    reason = why_remote_code(source.model, source.tokenizer)
    if reason is None and config.format == "lit_llm":
        reason = "it is of our own form"
    return reason and f"transformers loads it with trust_remote_code=True, by the code in the folder: {reason}"


def _quantized(
    config: ExportConfig, source: _Source, tokenizer: Tokenizer, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    measured = quality_texts(tokenizer, Path(config.checkpoint), config.quality_text)
    calibration = None
    if config.calibration_text is not None:
        calibration = read_quality_text(config.calibration_text, "calibration_text")
    model = _decoder(source, dtype)  # its weights are released one by one as they are quantized
    quantize_and_tell(model, tokenizer, config.quantize, measured, calibration=calibration)
    return model.state_dict()


def _write_file(config: ExportConfig, file: Path, source: _Source) -> Exported:
    """A whole model in one file, and in a folder of its own what goes with that."""
    if config.format in ("gguf", "ollama"):
        kind = _save_gguf(config, file, source)
    else:
        source.model.check_gives_text("what is to be exported")
        kind = _save_program(config, file, source)
    text = f"{kind}, {file.stat().st_size:,} bytes; {source.name}"
    if file != Path(config.output):  # a folder of its own, which may have a card
        _write_card(config, file.parent, source.model, source.trained, kind if kind.startswith("Q8_0") else None)
    if config.format != "ollama":
        names = {"gguf": "GGUF file", "onnx": "ONNX file", "torch_export": "torch program"}
        return Exported(names[config.format], file, text)
    return Exported("Ollama folder", file.parent, text, f"ollama create NAME -f {file.with_name('Modelfile')}")


def _save_gguf(config: ExportConfig, file: Path, source: _Source) -> str:
    """Write a GGUF file, and a Modelfile for Ollama; returns how its matrices are stored."""
    from lit_llm.interop.gguf import save_gguf
    from lit_llm.interop.ollama import modelfile

    stored = str(next(iter(source.weights.values())).dtype).removeprefix("torch.")
    kinds: dict[str, Any] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
    kind = kinds.get(stored if config.dtype == "auto" else config.dtype, "F32")
    found = source.settings.generation.get("eos_token_id") or []
    ends = found if isinstance(found, list) else [found]
    license_name = _license(config, source.trained)
    text = None
    if config.format == "ollama":  # refused, if it is, before the work
        text = modelfile(
            file.name,
            source.tokenizer,
            [*ends, *ends_of(source.tokenizer)],
            source.settings.generation,
            source.model.max_position_embeddings,
            license_name,
        )
    held = save_gguf(file, source.model, source.weights, source.tokenizer, kind, ends, license_name)
    if text is not None:
        replace_file(file.with_name("Modelfile"), text)
    return held


def _save_program(config: ExportConfig, file: Path, source: _Source) -> str:
    """Write a program, and in a folder of its own what runtimes read beside it; returns the type of its weights."""
    from lit_llm.interop.programs import save_onnx, save_torch_program

    dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
    model = _decoder(source, dtype)
    (save_onnx if config.format == "onnx" else save_torch_program)(file, model)
    stored = model.embedding.weight.dtype
    if file != Path(config.output):
        describe_model(file.parent, source.model, source.tokenizer, stored, source.settings)
    return str(stored).removeprefix("torch.")


def _decoder(source: _Source, dtype: torch.dtype | None) -> Decoder:
    """The model in evaluation mode, whose weights are released from the source."""
    with torch.device("meta"):
        model = Decoder(source.model)
    model.load_state_dict(
        {name: weight.to(dtype or weight.dtype) for name, weight in source.weights.items()}, assign=True
    )
    model.tie()
    source.weights = {}
    return model.eval().requires_grad_(False)


def _write_adapter(config: ExportConfig, output: Path, trained: TrainedModel) -> Exported:
    if not trained.lora.active:
        raise UserError(f"{trained.name} has no adapter: the run trained all weights; leave lora at merged")
    tokenizer = _tokenizer(trained.run, config.tokenizer)
    base = trained.base_folder()
    if output.resolve() == base:
        raise UserError(f"{output} is the model that the adapter is for; give --output another folder")
    save_adapter(output, trained.model, trained.lora, trained.weights, str(base), tokenizer)
    delete_model(output)  # with it the folder would be a model's
    _write_card(config, output, trained.model, trained, None)
    return Exported("adapter folder", output, trained.name)


def _write_card(
    config: ExportConfig, folder: Path, model: ModelConfig, trained: TrainedModel | None, quantization: str | None
) -> None:
    """The model card of what was written, from what the checkpoint and its run folder say."""
    if trained is None:
        start: str | None = config.checkpoint
        card = ModelCard(folder.name, model)
    else:
        start = trained.run.get("init_from")
        run = trained.path.parents[1]  # RUN/checkpoints/step_00000100.ckpt
        lines = read_step_lines(run / METRICS_FILE)
        results = next((line for line in lines if line["step"] == trained.step), {})
        card = ModelCard(
            folder.name,
            model,
            stage_of_options(trained.run),
            flatten(trained.run),
            results={name: value for name, value in results.items() if isinstance(value, float)},
            facts=[("steps", f"{trained.step:,}")],
        )
    card.start, card.quantization = start, quantization
    measured = Path(config.checkpoint) if trained is None else _finished_model(trained)
    card.license = _license(config, trained)
    write_card(card, folder)
    if measured is not None:
        carry_summary(measured, folder, quantization)


def _license(config: ExportConfig, trained: TrainedModel | None) -> str | None:
    """The license that is given, or else that of the model which this one was made from."""
    start = config.checkpoint if trained is None else trained.run.get("init_from")
    return config.license or (None if start is None else license_of(Path(start)))


def _finished_model(trained: TrainedModel) -> Path | None:
    """The model folder of the run, where it holds what the checkpoint holds: the card says of how many steps it is."""
    folder = trained.path.parents[1] / "model"
    card = folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    return folder if f"| steps | {trained.step:,} |" in text else None


def _read_folder(path: Path, tokenizer: str | None) -> _Source:
    model = read_model_config(path)
    found = load_tokenizer(path if tokenizer is None else Path(tokenizer))
    return _Source(model, load_weights(path, model), found, generation_settings(found, path), str(path))


def _whole(config: ExportConfig, path: Path) -> _Source:
    """The model of a checkpoint or of a run, additions merged, without the head of a critic."""
    trained = read_trained_model(path)
    model, weights = without_value_head(trained.model, trained.whole_weights())
    tokenizer = _tokenizer(trained.run, config.tokenizer)
    return _Source(model, weights, tokenizer, _settings(trained, tokenizer), trained.name, trained)


def _settings(trained: TrainedModel, tokenizer: Tokenizer) -> GenerationSettings:
    """Those of the folder that the run started from, as the model folder at its end has them."""
    place = trained.run.get("init_from")
    source = None if place is None else Path(place)
    if source is not None and not source.exists():
        print(
            f"the tokens that end a text and the sampling are the tokenizer's: {place}, which had others, is not there",
            file=sys.stderr,
        )
        source = None
    return generation_settings(tokenizer, source, learned_turns="lora" in trained.run)


def _tokenizer(run: dict[str, Any], given: str | None) -> Tokenizer:
    """The tokenizer in the folder `given`, or else the one that a run has written with.

    Raises:
        UserError: it is not there any more.
    """
    if given is not None:
        return load_tokenizer(Path(given))
    if "lora" not in run or run["init_from"] is None:
        return Tokenizer.load(tokenizer_of(run))
    # the stages after pretraining have the tokenizer of their model
    tokenizer = load_tokenizer(Path(run["init_from"]))
    return with_chat_tokens(tokenizer) if run["data"].get("add_chat_tokens") else tokenizer


def tokenizer_of(run: dict[str, Any]) -> Path:
    """Where the tokenizer of a run's data is.

    Raises:
        UserError: it is not there any more.
    """
    paths = DataConfig.folders_in(run.get("data", {}))
    folder = Path(paths[0]) / "tokenizer" if paths else None
    if folder is None or not folder.is_dir():
        raise UserError(f"the tokenizer of the run is not at {folder}; give one with --tokenizer FOLDER")
    return folder
