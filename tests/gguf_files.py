"""GGUF files for tests: from models of transformers, with llama.cpp's names as the library gguf has them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

ARCHITECTURES = {"gemma3_text": "gemma3"}


def write_gguf(path: Path, architecture: str, values: Mapping[str, Any], tensors: Mapping[str, Any]) -> Path:
    """A file with these keys, of which those without a dot are the architecture's, and these tensors.

    A tensor is an array of float32 or float16, or (bytes, type): quantized rows and the name of their type.
    """
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in values.items():
        name = key if key.startswith(("tokenizer.", "general.", "split.")) else f"{architecture}.{key}"
        adders.get(type(value), writer.add_array)(name, value)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            rows, kind = tensor
            writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def values_of(config: Any) -> dict[str, Any]:
    """The keys of the architecture that llama.cpp's converter writes for a configuration of transformers."""
    if config.model_type == "gpt2":
        return {
            "embedding_length": config.n_embd,
            "block_count": config.n_layer,
            "attention.head_count": config.n_head,
            "feed_forward_length": 4 * config.n_embd,
            "context_length": config.n_positions,
            "attention.layer_norm_epsilon": config.layer_norm_epsilon,
            "vocab_size": config.vocab_size,
        }
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    values = {
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim
        if getattr(config, "head_dim", None)
        else config.hidden_size // config.num_attention_heads,
        "feed_forward_length": config.intermediate_size,
        "context_length": config.max_position_embeddings,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    values["attention.value_length"] = values["rope.dimension_count"] = values["attention.key_length"]
    if rope["rope_type"] in ("linear", "yarn"):
        values |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
        if rope["rope_type"] == "yarn":
            values["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if config.model_type.startswith("gemma"):
        values["attention.sliding_window"] = config.sliding_window
    if config.model_type == "gemma2":
        values["attn_logit_softcapping"] = float(config.attn_logit_softcapping)
        values["final_logit_softcapping"] = float(config.final_logit_softcapping)
    return values


def tensors_of(model: Any) -> dict[str, np.ndarray]:
    """The tensors that llama.cpp's converter writes of a model of transformers, as float32."""
    import gguf

    config = model.config
    name = ARCHITECTURES.get(config.model_type, config.model_type)
    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    tensors = {}
    for theirs, tensor in model.state_dict().items():
        if theirs == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.float()
        if config.model_type == "gpt2" and theirs.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            array = array.t()
        if name.startswith("gemma") and theirs.endswith("norm.weight"):
            array = array + 1
        if name == "llama" and (".q_proj." in theirs or ".k_proj." in theirs):
            heads = array.size(0) // model.config.head_dim
            array = array.reshape(heads, 2, array.size(0) // heads // 2, *array.shape[1:]).swapaxes(1, 2)
            array = array.reshape(tensor.shape)
        found = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        tensors[found] = array.contiguous().numpy()
    return tensors


def header(version: int = 3, tensors: int = 0, keys: int = 0, magic: bytes = b"GGUF") -> bytes:
    """The beginning of a file that says what it likes."""
    return magic + struct.pack("<IQQ", version, tensors, keys)


def text(value: bytes | str, length: int | None = None) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value) if length is None else length) + value


def entry(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """Where a tensor lies, as a file says it."""
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def spoiled(path: Path, change: Any) -> Path:
    """The file with its bytes changed."""
    path.write_bytes(change(path.read_bytes()))
    return path


def same_logits(model: Any, decoder: torch.nn.Module, tokens: torch.Tensor) -> float:
    """The largest difference of the logits of a model of transformers and ours."""
    with torch.no_grad():
        return float((model(tokens).logits - decoder(tokens)).abs().max())
