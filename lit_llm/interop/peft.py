"""An adapter folder of Hugging Face PEFT holds adapter_config.json and adapter_model.safetensors for a base model.

Their layers have the names that transformers gives them in the base: those of its own architecture, or ours where the
base is a folder of our own form, which it loads by the code in the folder.

Source: PEFT 0.21, `peft/tuners/lora`; the names in a file are those of the checkpoint format in its documentation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lit_llm.config import PROJECTIONS, LoraConfig, ModelConfig, UserError
from lit_llm.config.files import whole_file, write_json
from lit_llm.config.serialization import check_types, shown
from lit_llm.interop.configuration import family_of
from lit_llm.interop.families import Family
from lit_llm.interop.gguf_reading.configuration import config_values
from lit_llm.interop.gguf_reading.container import is_gguf, open_gguf
from lit_llm.interop.gguf_reading.tokenizer import read_gguf_tokenizer
from lit_llm.interop.json_files import read_object
from lit_llm.interop.peft_files import CONFIG, WEIGHTS, check_values, read_tensors, read_values
from lit_llm.interop.reading import MODEL_TYPE, OWN_PREFIX, source_of
from lit_llm.model import Decoder
from lit_llm.model.lora import is_adapter, is_target, merged_weight
from lit_llm.tokenizer import Tokenizer

PREFIX = "base_model.model."
MOST_ADAPTERS = 8
"""The most adapters that may lie on top of each other."""
_SUFFIXES = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "lora_magnitude": "lora_magnitude_vector"}
MERGE = "merge the additions into a model folder instead (export.py --lora merged)"
_FIELDS = ("rank", "alpha", "targets", "rslora", "dora")


@dataclass(frozen=True)
class _Adapter:
    """The content of an adapter folder under our names."""

    config: LoraConfig
    weights: dict[str, Tensor]


def save_adapter(
    folder: Path,
    model_config: ModelConfig,
    lora_config: LoraConfig,
    weights: Mapping[str, Tensor],
    base_model: str,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write an adapter folder that PEFT loads, each file whole or not at all.

    For a model with output "score" the head is written, too, and PEFT's task is SEQ_CLS. A value head has no place in
    the folder and is left out.

    Args:
        folder: made if it is not there.
        model_config: the decoder's configuration.
        lora_config: the adapter's options, with the rank of the additions.
        weights: the state_dict of a decoder with additions, or only its trained tensors; tensors are whole.
        base_model: folder or name on the Hub of what the additions are added to.
        tokenizer: written into the folder, too, where it is given.

    Raises:
        UserError: transformers fuses the layers that the additions are to; the model has more tokens than its base; the
            base is an adapter folder itself; or a file cannot be written.
    """
    family = _family(model_config, MERGE, in_our_form=_is_in_our_form(Path(base_model)))
    _check_vocabulary(Path(base_model), model_config)
    if base_of(Path(base_model)) is not None:  # PEFT does not merge that adapter before it adds this one
        raise UserError(f"{base_model}, which the additions are to, is an adapter folder itself; {MERGE}")
    scores = model_config.output == "score"
    tensors = {_stored_name(name, family): tensor for name, tensor in weights.items() if is_adapter(name)}
    if scores:
        tensors[_stored_head(family)] = weights["head.weight"]
    names = sorted({name.rsplit(".", 2)[1] for name in weights if is_adapter(name)})
    values = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if scores else "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora_config.rank,
        "lora_alpha": lora_config.alpha,
        "lora_dropout": lora_config.dropout,
        "use_rslora": lora_config.rslora,
        "use_dora": lora_config.dora,
        "target_modules": names,
        "modules_to_save": ["score"] if scores else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / WEIGHTS, tensors)
        write_json(folder / CONFIG, values)
        if tokenizer is not None:
            tokenizer.save(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the adapter folder {folder}: {error}") from error


def load_adapter(folder: Path, model_config: ModelConfig) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Load an adapter that is to be trained further: its options, and its additions (and head of scores) in our names.

    Args:
        folder: written by `save_adapter` or by PEFT.
        model_config: the configuration of the decoder that it is for.

    Raises:
        UserError: a file is missing or broken, the adapter is of a kind that we do not compute or of another model, or
            a layer has an addition in some blocks only.
    """
    config, weights = read_adapter(folder, model_config)
    for name in config.targets:
        found = sum(1 for module in weights if module.endswith(f".{name}.lora_A"))
        if found != model_config.num_layers:
            raise UserError(
                f"{folder} adapts {name} in {found} of {model_config.num_layers} blocks; that can be merged "
                "(give the folder to export.py), but not trained further"
            )
    return config, weights


def read_adapter(folder: Path, model_config: ModelConfig) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Load an adapter that is to be computed with: as `load_adapter`, but an addition may be in some blocks only.

    Raises:
        UserError: a file is missing or broken, or the adapter is of a kind that we do not compute or of another model.
    """
    adapter = _read(folder, model_config)
    return adapter.config, adapter.weights


def starting_adapter(config: LoraConfig, model_config: ModelConfig) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Give what training starts from: `config` with rank, alpha, targets and kind of `config.adapter`, and its values.

    Args:
        config: the run's options; its dropout and quantized base count, whatever the adapter was trained with.
        model_config: the decoder's configuration.

    Returns:
        The options, and tensors to load into the decoder once `prepare_dora` has run; none where no adapter is given.

    Raises:
        UserError: as `load_adapter`; or an option contradicts the adapter.
    """
    if config.adapter is None:
        return config, {}
    found, weights = load_adapter(Path(config.adapter), model_config)
    for name in _FIELDS:
        given, theirs = getattr(config, name), getattr(found, name)
        same = config.projections == found.projections if name == "targets" else given == theirs
        if not same and given != getattr(LoraConfig(), name):
            raise UserError(f"lora.{name} is {given}, but {config.adapter} has {theirs}; leave the option out")
    return replace(config, **{name: getattr(found, name) for name in _FIELDS}), weights


def base_of(folder: Path) -> Path | None:
    """Find the model folder that an adapter folder is for; None where `folder` is no adapter folder.

    Raises:
        UserError: the base is no folder on this machine.
    """
    if not (folder / CONFIG).is_file() or (folder / "config.json").is_file():
        return None
    seen = [folder.resolve()]
    base = last = _named_base(folder)
    while not _is_model(last):  # the base is an adapter itself
        if last.resolve() in seen or len(seen) > MOST_ADAPTERS:
            raise UserError(f"{folder} is an adapter of adapters that never come to a model; correct {folder / CONFIG}")
        seen.append(last.resolve())
        last = _named_base(last)
    return base


def model_files(folder: Path) -> list[Path]:
    """List the files that say what a model computes, of a model folder or a GGUF file.

    Those of an adapter folder are followed by those of its base.

    Raises:
        UserError: the base is no folder on this machine.
    """
    if is_gguf(folder):
        return [folder]
    base, weights = base_of(folder), sorted(folder.glob("*.safetensors"))
    return [*weights, folder / "config.json"] if base is None else [*weights, folder / CONFIG, *model_files(base)]


def _named_base(folder: Path) -> Path:
    """Find the folder that an adapter folder names as its base."""
    name = read_values(folder).get("base_model_name_or_path")
    for base in (Path(str(name)), folder / str(name)):
        has_model = _is_model(base) or (base / CONFIG).is_file()
        if name and has_model and base.resolve() != folder.resolve():
            return base
    raise UserError(
        f"{folder} is an adapter of {shown(name, 300)}, which is no model folder here; download that model and set "
        f"base_model_name_or_path in {folder / CONFIG} to its folder"
    )


def _is_model(path: Path) -> bool:
    return path.is_file() or (path / "config.json").is_file()


def adapted_config(folder: Path, base: ModelConfig) -> ModelConfig:
    """Give the configuration of the model that an adapter folder and its base make together."""
    if read_values(folder).get("task_type") == "SEQ_CLS" and base.output != "score":
        return base.as_score()
    return base


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer of a model folder, a GGUF file or an adapter folder, which may have that of its base.

    Raises:
        UserError: the tokenizer is missing or broken.
    """
    if is_gguf(folder):
        return read_gguf_tokenizer(folder)
    base = base_of(folder)
    if base is None or (folder / "tokenizer.json").is_file():
        return Tokenizer.load(folder)
    return load_tokenizer(base)


def merged_weights(
    folder: Path, config: ModelConfig, weights: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Read the tensors of a base with the additions of an adapter folder added; each keeps its type.

    Raises:
        UserError: as `load_adapter`, but an addition may be in some blocks only.
    """
    adapter = _read(folder, config)
    head = {name: tensor for name, tensor in adapter.weights.items() if not is_adapter(name)}
    for name, weight in weights:
        module, _, kind = name.rpartition(".")
        if name not in head:
            yield name, merged_weight(module, weight, adapter.weights, adapter.config) if kind == "weight" else weight
    yield from head.items()


def _family(config: ModelConfig, fix: str, in_our_form: bool) -> Family | None:
    """Find the architecture of transformers whose names the layers have; None where they have ours."""
    family, _ = (None, "") if in_our_form else family_of(replace(config, value_head=False))
    if family is not None and any(stored.transposed for stored in family.weights.values()):
        raise UserError(
            f"an adapter of {family.model_type} is of fused layers (c_attn), which are three of ours (q_proj, k_proj, "
            f"v_proj); {fix}"
        )
    return family


def _check_vocabulary(base: Path, config: ModelConfig) -> None:
    """Refuse a model with more tokens than its base: their rows would be missing where the adapter is read."""
    if is_gguf(base):
        rows = config_values(open_gguf(base))["vocab_size"]
    elif (base / "config.json").is_file():
        rows = read_object(base / "config.json").get("vocab_size", config.vocab_size)
    else:
        return
    if rows < (config.vocab_size or 0):
        raise UserError(f"the model has {config.vocab_size} tokens and its base {base} has rows for {rows}; {MERGE}")


def _is_in_our_form(folder: Path) -> bool:
    path = folder / "config.json"
    return path.is_file() and read_object(path).get("model_type") == MODEL_TYPE


def _stored_name(name: str, family: Family | None) -> str:
    module, _, part = name.rpartition(".")
    theirs = source_of(f"{module}.weight", family).name.removesuffix("weight")
    return PREFIX + (OWN_PREFIX if family is None else "") + theirs + _SUFFIXES[part]


def _stored_head(family: Family | None) -> str:
    return PREFIX + ("score.weight" if family is None else source_of("head.weight", family).name)


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    with whole_file(path) as partial:
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(whole, partial, metadata={"format": "pt"})


def _read(folder: Path, model_config: ModelConfig) -> _Adapter:
    values = read_values(folder)
    check_values(folder / CONFIG, values)
    tensors = read_tensors(folder)
    in_our_form = any(name.startswith(f"{PREFIX}{OWN_PREFIX}blocks.") for name in tensors)
    family = _family(model_config, "adapt a model of another architecture, or have PEFT merge the adapter", in_our_form)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in Decoder(model_config).state_dict().items()}
    weights = _renamed(folder, tensors, shapes, family, model_config)
    _check_parts(folder, weights, shapes, values)
    adapted = {name.rsplit(".", 2)[1] for name in weights if is_adapter(name)}
    try:
        config = LoraConfig(
            rank=values["r"],
            alpha=values.get("lora_alpha", 8),
            dropout=values.get("lora_dropout", 0.0),
            targets=[name for name in PROJECTIONS if name in adapted],
            rslora=bool(values.get("use_rslora")),
            dora=bool(values.get("use_dora")),
        )
        check_types(config, "lora.")
    except (UserError, TypeError) as error:
        raise UserError(f"{folder / CONFIG}: {error}") from error
    return _Adapter(config, weights)


def _renamed(
    folder: Path,
    tensors: dict[str, Tensor],
    shapes: dict[str, tuple[int, ...]],
    family: Family | None,
    model_config: ModelConfig,
) -> dict[str, Tensor]:
    """Give the tensors our names, and refuse those that have no place in the model."""
    modules = [name.removesuffix(".weight") for name in shapes if is_target(name, LoraConfig(rank=1))]
    ours = {_stored_name(f"{module}.{part}", family): f"{module}.{part}" for module in modules for part in _SUFFIXES}
    if model_config.output == "score":
        ours[_stored_head(family)] = "head.weight"
    unknown = sorted(set(tensors) - set(ours))
    if PREFIX + "score.weight" in unknown:
        raise UserError(f"{folder} is an adapter of a reward model (it has a head of scores); give a language model's")
    if unknown:
        raise UserError(
            f"{folder / WEIGHTS} holds {unknown[0]}, which is no addition to a layer of this model's blocks; merge it "
            "with PEFT (merge_and_unload)"
        )
    return {ours[name]: tensor for name, tensor in tensors.items()}


def _check_parts(
    folder: Path, weights: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], values: dict[str, Any]
) -> None:
    """Refuse additions that lack a part, or do not fit their layers."""
    parts = list(_SUFFIXES) if values.get("use_dora") else list(_SUFFIXES)[:2]
    modules = dict.fromkeys(name.rpartition(".")[0] for name in weights if is_adapter(name))
    if not modules:
        raise UserError(f"{folder / WEIGHTS} holds no addition")
    wanted = {"head.weight": shapes["head.weight"]} if "head.weight" in weights else {}
    for module in modules:
        out_features, in_features = shapes[f"{module}.weight"]
        sizes = ((values["r"], in_features), (out_features, values["r"]), (out_features,))
        wanted |= {f"{module}.{part}": size for part, size in zip(parts, sizes, strict=False)}
    missing, left = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    reshaped = [name for name, size in wanted.items() if name in weights and tuple(weights[name].shape) != size]
    for what, names in (("lacks", missing), ("must not have", left), ("has another shape for", reshaped)):
        if names:
            raise UserError(f"{folder} does not fit the model or its {CONFIG}: it {what} {names[0]} (our name)")
