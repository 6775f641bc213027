"""A model folder holds config.json, weights as safetensors, a tokenizer and generation_config.json; no pickle is read.

Where Hugging Face transformers has the architecture, a folder that we write is one of theirs, and theirs are read as
they are: vLLM, SGLang, lm-evaluation-harness and TRL load it. Otherwise `model_type` is `lit_llm`, config.json holds
our fields, and the folder carries the code of the model, so that transformers and what is built on its
`AutoModelForCausalLM` (TRL, PEFT, the harness' HFLM) load it with `trust_remote_code=True`. vLLM and SGLang, which
compute attention in kernels of their own, do not. Quantized weights (`quantization` says how) are for this package
alone. No code of a folder is ever run here.

Wherever a model folder is read, an adapter folder of PEFT can be given instead, which stands for its base with the
adapter merged in; or one GGUF file, whose weights, quantized or not, become plain numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from lit_llm.config import ModelConfig, UserError, from_plain, to_plain
from lit_llm.config.files import write_json
from lit_llm.config.notices import tell_once
from lit_llm.config.serialization import shown
from lit_llm.interop import reading
from lit_llm.interop.configuration import family_of, read_config, write_config
from lit_llm.interop.families import FAMILIES, Family
from lit_llm.interop.generation_settings import GENERATION_CONFIG, GenerationSettings, ends_of, generation_settings
from lit_llm.interop.gguf_reading.configuration import config_values, family_of_file
from lit_llm.interop.gguf_reading.container import SUFFIX, is_gguf, open_gguf
from lit_llm.interop.gguf_reading.weights import GgufWeights
from lit_llm.interop.json_files import read_object
from lit_llm.interop.options import USUAL
from lit_llm.interop.peft import adapted_config, base_of, load_tokenizer, merged_weights
from lit_llm.interop.peft_files import delete_adapter
from lit_llm.interop.reading import MODEL_TYPE
from lit_llm.interop.remote_code import delete_remote_code, remote_code_values, write_remote_code
from lit_llm.interop.writing import MAX_SHARD_BYTES, delete_weights, outputs_of, write_weights
from lit_llm.model import Decoder
from lit_llm.model.quantization import KINDS, quantize
from lit_llm.tokenizer import Tokenizer

NOT_FIELDS = USUAL | {"model_type", "quantization", "auto_map"}
"""Keys of a config.json of our own form that are no fields of a ModelConfig; transformers adds some when it saves."""


def save_model_folder(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    *,
    form: Literal["auto", "huggingface", "lit_llm"] = "auto",
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    settings: GenerationSettings | None = None,
    quantization: str | None = None,
) -> str:
    """Write a model folder, each file whole or not at all; an adapter that was in it is deleted.

    A head that is tied to the embedding is not written, as the configuration says that the two are one.

    Args:
        folder: made if it is not there.
        config: the decoder's configuration.
        weights: the decoder's state_dict.
        tokenizer: written into the folder, too.
        form: "huggingface" for what transformers loads, by its own code where it has the architecture; "lit_llm" for
            our own, which it loads by the code in the folder; "auto" for the first wherever weights are not quantized.
        dtype: what weights are converted to; None keeps them.
        max_shard_bytes: a larger model is written as several files.
        settings: which tokens begin, end and pad a text, and how it is drawn; None takes them from the tokenizer. A
            reward model is padded with the tokenizer's padding in any case.
        quantization: how the weights are quantized, if they are; such a folder is always of our own form.

    Returns:
        The `model_type` that was written.

    Raises:
        UserError: a file cannot be written, `form` asks for what transformers loads and the weights are quantized or
            have a value head, or quantized weights are to be converted.
    """
    native = form == MODEL_TYPE or (form == "auto" and quantization is not None)
    _check_form(config, form, native, dtype, quantization)
    family, _ = (None, "") if native else _family_of(config, tokenizer)
    settings = _padded(settings or generation_settings(tokenizer), config, tokenizer)
    stored = str(dtype or next(iter(weights.values())).dtype).removeprefix("torch.")
    values = {**_config_values(config, family), "dtype": stored}
    values |= settings.ids if quantization is None else {"quantization": quantization}
    if family is not None:
        values["torch_dtype"] = stored
    needs_code = family is None and quantization is None
    if needs_code:
        values |= remote_code_values(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(folder, outputs_of(config, weights, family, quantization is not None), dtype, max_shard_bytes)
        write_json(folder / "config.json", values)
        write_json(folder / GENERATION_CONFIG, settings.generation)
        write_remote_code(folder) if needs_code else delete_remote_code(folder)
        tokenizer.save(folder)
        delete_adapter(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the model folder {folder}: {error}") from error
    return values["model_type"]


def delete_model(folder: Path) -> None:
    """Delete the model of a folder that has become an adapter's; the tokenizer stays.

    Raises:
        UserError: a file cannot be deleted.
    """
    try:
        for name in ("config.json", GENERATION_CONFIG):
            (folder / name).unlink(missing_ok=True)
        delete_weights(folder)
        delete_remote_code(folder)
    except OSError as error:
        raise UserError(f"cannot delete the model that {folder} held: {error}") from error


def _padded(settings: GenerationSettings, config: ModelConfig, tokenizer: Tokenizer) -> GenerationSettings:
    if config.output != "score":
        return settings
    # the score of a text is that of the last token before the padding
    return settings.with_padding(None if tokenizer.pad_id in ends_of(tokenizer) else tokenizer.pad_id)


def describe_model(
    folder: Path, config: ModelConfig, tokenizer: Tokenizer, dtype: torch.dtype, settings: GenerationSettings
) -> None:
    """Write what a model folder has besides weights, for what reads the model in another form.

    Args:
        folder: there already.
        config: the decoder's configuration.
        tokenizer: written into the folder.
        dtype: of the weights.
        settings: which tokens begin, end and pad a text, and how it is drawn.

    Raises:
        UserError: a file cannot be written.
    """
    family, _ = _family_of(config, tokenizer)
    values = {**_config_values(config, family), "dtype": str(dtype).removeprefix("torch."), **settings.ids}
    try:
        write_json(folder / "config.json", values)
        write_json(folder / GENERATION_CONFIG, settings.generation)
        tokenizer.save(folder)
        delete_adapter(folder)
    except OSError as error:
        raise UserError(f"cannot write the folder {folder}: {error}") from error


def _check_form(
    config: ModelConfig, form: str, native: bool, dtype: torch.dtype | None, quantization: str | None
) -> None:
    """Refuse a form that cannot hold the model."""
    if quantization is not None and dtype is not None:
        raise UserError(f"weights quantized as {quantization} cannot be converted; convert the full model first")
    if quantization is not None and not native:
        raise UserError(f"transformers cannot load our {quantization} weights; give the format auto or lit_llm")
    if form == "huggingface" and config.value_head:
        raise UserError("transformers has no place for a value head; leave it out (without_value_head)")


def why_remote_code(config: ModelConfig, tokenizer: Tokenizer) -> str | None:
    """Why transformers needs `trust_remote_code=True` for the folder of such a model, or None where it does not."""
    family, reason = _family_of(config, tokenizer)
    return reason if family is None else None


def read_model_config(folder: Path) -> ModelConfig:
    """Read the configuration in a model folder.

    Raises:
        UserError: the folder or its config.json is missing, broken, of another model type, or asks for what we do not
            compute.
    """
    base = base_of(folder)
    if base is not None:
        return adapted_config(folder, read_model_config(base))
    return _read_config(folder)[0]


def read_quantization(folder: Path) -> str | None:
    """Read how the weights in a model folder are quantized, or None where they are not.

    Raises:
        UserError: its config.json is broken, or names a quantization that we do not have.
    """
    if is_gguf(folder):
        return None  # what is quantized there becomes plain as it is read
    path = folder / "config.json"
    return _quantization(path, read_object(path))


def load_model_folder(
    folder: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[Decoder, Tokenizer]:
    """Load the decoder, in evaluation mode, and the tokenizer of a model folder.

    Weights that need no conversion stay mapped to the file; the others are converted one tensor at a time. Quantized
    weights compute exactly what they did when they were saved.

    Args:
        folder: written by `save_model_folder` or by transformers.
        device: where the weights go.
        dtype: what they are converted to; None keeps them as stored.

    Raises:
        UserError: a file is missing or broken, weights are missing, left over or of another shape, or the model is of
            a kind that we do not compute, or is quantized and to be converted.
    """
    folder = Path(folder)
    config = read_model_config(folder)
    with torch.device("meta"):
        model = Decoder(config)
    kind = read_quantization(folder) if base_of(folder) is None else None
    if kind is not None:
        _check_stored_dtype(folder, dtype)
        quantize(model, kind)
        weights = dict(reading.iterate_weights(folder, config, None, device, dtype, kind))
    else:
        weights = dict(iterate_weights(folder, config, device, dtype))
    model.load_state_dict(_with_tied_head(config, weights), assign=True)
    model.tie()
    return model.eval(), load_tokenizer(folder)


def iterate_weights(
    folder: Path, config: ModelConfig, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Read the tensors of `Decoder(config)` from a model folder, one at a time.

    A head that is tied to the embedding is left out. So is a head that the folder does not have (a head of scores where
    it holds a language model, or a value head): the caller keeps the one that it has drawn. A value head in the folder
    is passed over where `config` has none.

    Args:
        folder: a model folder.
        config: its configuration; fields that shape no weight may differ, and so may the heads.
        device: where each tensor goes.
        dtype: what each is converted to; None keeps it as stored.

    Raises:
        UserError: a file is missing or broken, weights are missing, left over or of another shape, or are quantized;
            or `config` is of a language model and the folder of a reward model.
    """
    base = base_of(folder)
    if base is not None:
        return merged_weights(folder, config, iterate_weights(base, config, device, dtype))
    kind = read_quantization(folder) if (folder / "config.json").is_file() else None
    if kind is not None:
        raise UserError(
            f"{folder} is quantized ({kind}): it can write text, and be neither trained nor converted; use the full "
            "model that it was made from"
        )
    found, family = _read_config(folder)
    heads: dict[str, Any] = {"value_head": found.value_head}
    without = set() if config.value_head else {"value_head.weight"}
    if found.output != config.output:
        if found.output == "score":
            raise UserError(f"{folder} is a reward model (it has no output head); give a language model")
        heads |= {"output": found.output, "tie_word_embeddings": found.tie_word_embeddings}
        without.add("head.weight")
    stored = replace(config, **heads)
    if is_gguf(folder):
        weights = GgufWeights(open_gguf(folder), config.width_per_head, device)
        return reading.convert_weights(weights, stored, family, dtype, None, without)
    return reading.iterate_weights(folder, stored, family, device, dtype, without=without)


def load_weights(
    folder: Path, config: ModelConfig, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Read a state_dict for `Decoder(config)` from a model folder.

    Args and raises: as `iterate_weights`.
    """
    return _with_tied_head(config, dict(iterate_weights(folder, config, device, dtype)))


def without_value_head(config: ModelConfig, weights: Mapping[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Take the value head of PPO's critic away, which transformers has no place for.

    Args:
        config: the decoder's configuration.
        weights: its state_dict.

    Returns:
        The configuration and the weights without a value head; the same as before where there is none.
    """
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("value_head.")}
    return replace(config, value_head=False), kept


def _with_tied_head(config: ModelConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    if config.tie_word_embeddings:
        weights["head.weight"] = weights["embedding.weight"]
    return weights


def _check_stored_dtype(folder: Path, dtype: torch.dtype | None) -> None:
    stored = read_object(folder / "config.json").get("dtype")
    if dtype is not None and str(dtype) != f"torch.{stored}":
        raise UserError(f"{folder} was quantized for {stored} and runs in that alone; leave dtype at auto")


def _read_config(folder: Path) -> tuple[ModelConfig, Family | None]:
    if is_gguf(folder):
        return _read_gguf_config(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a model folder: it has no config.json{_gguf_in(folder)}")
    values = read_object(path)
    kind = values.get("model_type")
    if not isinstance(kind, str) or (kind != MODEL_TYPE and kind not in FAMILIES):
        raise UserError(f"{path} has model_type {shown(kind)}; only {', '.join([MODEL_TYPE, *FAMILIES])} can be read")
    family = FAMILIES.get(kind)
    try:
        if family is not None:
            config, passed_over = read_config(values)
            family = family.scoring() if config.output == "score" else family
        else:
            native = {key: value for key, value in values.items() if key not in NOT_FIELDS}
            config, passed_over = from_plain(ModelConfig, native), []
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:  # a value of a type that no check expects
        raise UserError(f"{path} has a value that cannot be read: {error}") from error
    if passed_over:
        tell_once(f"{path}: passed over, as not changing the logits: {', '.join(map(_name, passed_over))}")
    reading.check_folder_outline(folder, config, family, _quantization(path, values))
    return config, family


def _read_gguf_config(path: Path) -> tuple[ModelConfig, Family]:
    file = open_gguf(path)
    family = family_of_file(file)
    try:
        config, _ = read_config(config_values(file))
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path} has a value that cannot be read: {error}") from error
    reading.check_outline(GgufWeights(file, config.width_per_head), config, family)
    return config, family


def _gguf_in(folder: Path) -> str:
    """Point to the GGUF files of a folder that is no model folder."""
    found = sorted(folder.glob(f"*{SUFFIX}"))
    which = "its GGUF file" if len(found) == 1 else f"one of its {len(found)} GGUF files"
    return f"; to read {which}, give {'' if len(found) == 1 else 'its name, as '}{found[0]}" if found else ""


def _name(key: str) -> str:
    """Make a key of an unknown file safe to print in a line of text."""
    return key if key.isascii() and key.isprintable() and len(key) <= 60 else shown(key)


def _quantization(path: Path, values: dict[str, Any]) -> str | None:
    """Read from the content of config.json how the weights are quantized."""
    kind = values.get("quantization") if values.get("model_type") == MODEL_TYPE else None
    if kind is not None and (not isinstance(kind, str) or kind not in KINDS):
        raise UserError(f"{path} has quantization {shown(kind)}; only {', '.join(KINDS)} can be read")
    return kind


def _family_of(config: ModelConfig, tokenizer: Tokenizer) -> tuple[Family | None, str]:
    family, reason = family_of(config)
    if family is None:
        return None, reason
    if config.output == "score" and tokenizer.pad_id in (None, *ends_of(tokenizer)):
        return None, (
            "transformers scores a text at its last token that is not the padding token, and this tokenizer has no "
            "padding token of its own; set pad_token in its tokenizer_config.json to a token that no text holds"
        )
    if family.tokenizer_pattern is None or splits_by(tokenizer.state, family.tokenizer_pattern):
        return family, ""
    return None, (
        f"AutoTokenizer splits text by {family.model_type}'s own pattern wherever the model is of that type, so that "
        "this tokenizer would give other ids there"
    )


def splits_by(state: dict[str, Any], pattern: str) -> bool:
    """Whether a tokenizer.json brings text into the form NFC and then splits it by `pattern`."""
    steps = (state["pre_tokenizer"] or {}).get("pretokenizers", ())
    patterns = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    return (state["normalizer"] or {}).get("type") == "NFC" and patterns == [pattern]


def _config_values(config: ModelConfig, family: Family | None) -> dict[str, Any]:
    if family is None:
        return {"model_type": MODEL_TYPE, **to_plain(config)}
    return write_config(config, family)
