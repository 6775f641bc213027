"""This file translates the metadata of a GGUF file into the content of a config.json of Hugging Face transformers.

What the metadata leave out is as llama.cpp takes it to be (src/llama-model.cpp).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lit_llm.config import UserError
from lit_llm.config.serialization import shown
from lit_llm.interop.families import Family
from lit_llm.interop.gguf_reading.container import GgufFile
from lit_llm.interop.gguf_reading.llama3_rope import scaling_of_factors
from lit_llm.interop.gguf_reading.names import ARCHITECTURES, NAMES, ROPE_FACTORS

LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}
"""Layers of the models whose attention is scaled by hidden size over heads; the others' is by the width of a head."""
_SWITCHED_OFF = ("expert_count", "expert_used_count", "leading_dense_block_count")
_NO_MEANING = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned")
_ROPE_TYPES = ("none", "linear", "yarn")
_KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
}
_GPT2_KEYS = {
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "attention.head_count": "n_head",
    "feed_forward_length": "n_inner",
    "context_length": "n_positions",
}


def family_of_file(file: GgufFile) -> Family:
    """Look up the architecture of transformers that a file is of.

    Raises:
        UserError: it is another one.
    """
    name = file.values.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UserError(f"{file.path} is of the architecture {shown(name)}; what is read is {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def config_values(file: GgufFile) -> dict[str, Any]:
    """Translate the metadata into the content of a config.json of the file's family.

    Raises:
        UserError: the architecture is not read, a value is missing or of another type, or a key says what we do not
            compute.
    """
    family = family_of_file(file)
    keys = _Keys(file)
    values: dict[str, Any] = {"model_type": family.model_type, "architectures": [family.architecture]}
    for key, theirs in (_GPT2_KEYS if family.model_type == "gpt2" else _KEYS).items():
        values[theirs] = keys.whole(key)
    values["vocab_size"] = _rows(file)
    values["tie_word_embeddings"] = _is_tied(file)
    if family.model_type == "gpt2":
        values["layer_norm_epsilon"] = keys.number("attention.layer_norm_epsilon")
        keys.only("attention.head_count_kv", values["n_head"])
    else:
        values |= _llama_form(file, keys, values)
    if keys.architecture.startswith("gemma"):
        values |= _gemma(keys, values)
    keys.finish()
    return values


def token_ids_of_file(file: GgufFile) -> dict[str, Any]:
    """Give the ids that begin, end and pad a text, by their names in config.json; the end of a turn ends one, too."""
    found = {
        name: file.values.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom", "padding")
    }
    ends = list(dict.fromkeys(found[name] for name in ("eos", "eot", "eom") if found[name] is not None))
    return {
        "bos_token_id": found["bos"],
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": found["padding"],
    }


def _llama_form(file: GgufFile, keys: _Keys, values: dict[str, Any]) -> dict[str, Any]:
    """Translate what Llama and its descendants have."""
    heads = values["num_attention_heads"]
    if heads < 1:
        raise UserError(f"{file.path}: {keys.architecture}.attention.head_count is {heads}; it must be at least 1")
    width = keys.whole("attention.key_length", values["hidden_size"] // heads)
    keys.only("attention.value_length", width)
    keys.only("rope.dimension_count", width)
    theta = keys.number("rope.freq_base", 1e6 if keys.architecture == "gemma3" else 1e4)
    found: dict[str, Any] = {
        "num_key_value_heads": keys.whole("attention.head_count_kv", heads),
        "head_dim": width,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(file, keys, width, theta, values["max_position_embeddings"]),
    }
    if keys.architecture == "llama":
        found["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
        found["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
    if keys.architecture.startswith("qwen"):
        found["use_sliding_window"] = False
        keys.only("attention.sliding_window", 0)
    return found


def _gemma(keys: _Keys, values: dict[str, Any]) -> dict[str, Any]:
    """Translate what Gemma has besides, some of which only llama.cpp's code says."""
    layers, heads = values["num_hidden_layers"], values["num_attention_heads"]
    largest = layers == LARGEST_GEMMA[keys.architecture]
    found: dict[str, Any] = {
        "query_pre_attn_scalar": values["hidden_size"] / heads if largest else values["head_dim"],
        "sliding_window": keys.whole("attention.sliding_window"),
    }
    if keys.architecture == "gemma3":
        found["rope_local_base_freq"] = keys.number("rope.freq_base_swa", 1e4)
        found["sliding_window_pattern"] = keys.whole("attention.sliding_window_pattern", 6)
        found["final_logit_softcapping"] = keys.number("final_logit_softcapping", 0.0) or None
    else:
        for key, default in (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)):
            found[key] = keys.number(key, default)
    return found


def _rope_scaling(
    file: GgufFile, keys: _Keys, width: int, theta: float, max_position_embeddings: int
) -> dict[str, Any] | None:
    kind = keys.take("rope.scaling.type", "linear" if keys.has("rope.scaling.factor", "rope.scale_linear") else "none")
    if kind not in _ROPE_TYPES:
        raise UserError(f"{file.path}: rope.scaling.type {shown(kind)} is not read; {', '.join(_ROPE_TYPES)} are")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    original = keys.whole("rope.scaling.original_context_length", max_position_embeddings)
    keys.only("rope.scaling.attn_factor", 1.0)
    if ROPE_FACTORS in file.tensors:
        if kind != "none" or original != max_position_embeddings:
            raise UserError(f"{file.path} has {ROPE_FACTORS} and rope.scaling, which are not computed together")
        return scaling_of_factors(file, width, theta, max_position_embeddings)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return {"rope_type": kind, "factor": factor}
    return {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}


def _rows(file: GgufFile) -> int:
    """Count the tokens that the model has a row for."""
    embedding = file.tensors.get(f"{NAMES['embedding']}.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise UserError(f"{file.path} has no embedding (token_embd.weight): it holds a vocabulary, and no model")
    return embedding.shape[0]


def _is_tied(file: GgufFile) -> bool:
    """Whether the embedding is the head as well: the file has no other, or has it twice."""
    embedding, head = (file.tensors.get(f"{NAMES[name]}.weight") for name in ("embedding", "head"))
    if head is None or embedding is None:
        return True
    if (head.shape, head.type) != (embedding.shape, embedding.type):
        return False
    first, second = file.bytes_of(embedding), file.bytes_of(head)
    return bool(np.array_equal(first[:4096], second[:4096]) and np.array_equal(first, second))


class _Keys:
    """The keys of a file's architecture; `finish` refuses those that nobody has asked for."""

    def __init__(self, file: GgufFile) -> None:
        self.architecture: str = file.values["general.architecture"]
        self._path = file.path
        prefix = f"{self.architecture}."
        self._values = {key.removeprefix(prefix): value for key, value in file.values.items() if key.startswith(prefix)}
        self._left = set(self._values)

    def has(self, *keys: str) -> bool:
        return any(key in self._values for key in keys)

    def take(self, key: str, default: Any = None) -> Any:
        self._left.discard(key)
        value = self._values.get(key, default)
        if value is None:
            raise UserError(f"{self._path} is damaged: it lacks {self.architecture}.{key}")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """Take a whole number; a list of the same number for each layer is as good."""
        value = self.take(key, default)
        if isinstance(value, list) and value and all(type(each) is int and each == value[0] for each in value):
            value = value[0]
        if type(value) is not int or value < 0:
            raise UserError(
                f"{self._path}: {self.architecture}.{key} is {shown(value)}; only one whole number for all is read"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Take a finite number, as the shortest decimal that is the same float32."""
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{self._path}: {self.architecture}.{key} is {shown(value)}; it must be a finite number")
        with np.errstate(over="ignore"):
            short = float(str(np.float32(value)))
        return short if math.isfinite(short) else float(value)

    def only(self, key: str, accepted: float) -> None:
        """Refuse any value of a key except one, which its absence means, too."""
        if self.take(key, accepted) != accepted:
            raise UserError(
                f"{self._path}: {self.architecture}.{key} is {shown(self._values[key])}; only {accepted} is computed"
            )

    def finish(self) -> None:
        """Refuse the keys that are left and could change what the model computes."""
        for key in _SWITCHED_OFF:
            self.only(key, 0)
        unknown = sorted(self._left.difference(_NO_MEANING))
        if unknown:
            raise UserError(
                f"{self._path} says {', '.join(map(shown, unknown[:5]))} of its {self.architecture}, which is not "
                "computed here"
            )
