"""GGUF files that are cut off, or that a stranger made to break what reads them: one line each, in little memory."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import entry, header, text, write_gguf

from lit_llm.config import UserError
from lit_llm.interop import is_gguf, load_model_folder, load_tokenizer, load_weights, read_model_config
from lit_llm.interop.gguf_reading.container import GgufFile

FILE = "model.gguf"
VALUES: dict[str, Any] = {
    "embedding_length": 16,
    "block_count": 1,
    "attention.head_count": 2,
    "feed_forward_length": 8,
    "context_length": 32,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
SHAPES = {
    "token_embd": (7, 16),
    "blk.0.attn_norm": (16,),
    "blk.0.attn_q": (16, 16),
    "blk.0.attn_k": (16, 16),
    "blk.0.attn_v": (16, 16),
    "blk.0.attn_output": (16, 16),
    "blk.0.ffn_norm": (16,),
    "blk.0.ffn_gate": (8, 16),
    "blk.0.ffn_up": (8, 16),
    "blk.0.ffn_down": (16, 8),
    "output_norm": (16,),
}


def tiny_file(path: Path, values: dict[str, Any] | None = None, **tensors: Any) -> Path:
    """A whole model with these keys and tensors changed; None leaves one out."""
    pytest.importorskip("gguf")
    arrays: dict[str, Any] = {f"{name}.weight": np.ones(shape, "f4") for name, shape in SHAPES.items()}
    arrays |= {f"{name.replace('__', '.')}.weight": array for name, array in tensors.items()}
    kept = {name: array for name, array in arrays.items() if array is not None}
    wanted = {key: value for key, value in {**VALUES, **(values or {})}.items() if value is not None}
    architecture = wanted.pop("general.architecture", "llama")
    return write_gguf(path, architecture, wanted, kept)


def refused(call: Callable[[], Any], message: str, memory: int = 8 * 2**20) -> None:
    """A call must raise one line, without taking memory for what a file says."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message) as error:
            call()
        assert tracemalloc.get_traced_memory()[1] < memory
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value) and len(str(error.value)) < 900


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def a_list(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


END = b"\0" * 64
HUGE = 2**62
BYTES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"is no GGUF file: it begins with b''"),
    "another kind of file": (b"PK\x03\x04" + END, r"is no GGUF file: it begins with b'PK"),
    "an old version": (header(version=1) + END, "is of version 1; 2 and 3 are read"),
    "big-endian": (header(version=3 << 24) + END, "is big-endian, which is not read"),
    "too short": (header()[:11], "it ends within its header"),
    "tensors": (header(tensors=HUGE) + END, "says that it has 4,611,686,018,427,387,904 tensors; the file is cut off"),
    "keys": (header(keys=HUGE) + END, "says that it has 4,611,686,018,427,387,904 keys"),
    "more tensors than there is room for": (header(tensors=4) + END, "4 tensors; the file is cut off or damaged"),
    "a long key": (header(keys=1) + text(b"", 2**60) + END, "it ends within its header"),
    "a long text": (header(keys=1) + key("a", 8, text(b"x", 2**60)) + END, "it ends within its header"),
    "a length below zero": (header(keys=1) + text(b"", 2**64 - 8) + END, "it ends within its header"),
    "a long list": (header(keys=1) + key("a", 9, a_list(6, 2**60)) + END, "entries of 'a'; the file is cut off"),
    "a long list of texts": (header(keys=1) + key("a", 9, a_list(8, 2**60)) + END, "entries of 'a'"),
    "lists of lists": (header(keys=1) + key("a", 9, a_list(9, 1)) + END, "a list of lists"),
    "a kind that is none": (header(keys=1) + key("a", 13, END), "of a kind 13, which there is not"),
    "a list of a kind that is none": (header(keys=1) + key("a", 9, a_list(99, 1)) + END, "of a kind 99"),
    "no text": (header(keys=1) + key("a", 8, text(b"\xff\xfe")) + END, "is no UTF-8 text"),
    "a key twice": (header(keys=2) + key("a", 7, b"\1") * 2 + END, "has the key 'a' twice"),
    "alignment": (header(keys=1) + key("general.alignment", 4, struct.pack("<I", 3)) + END, "must be a power of two"),
    "alignment 0": (header(keys=1) + key("general.alignment", 4, struct.pack("<I", 0)) + END, "power of two"),
    "parts": (header(keys=1) + key("split.count", 2, struct.pack("<H", 3)) + END, "is one of 3 parts of a model"),
    "dimensions": (header(tensors=1) + entry("a", (2**40, 2**40)) + END, "the tensor 'a' ends at byte"),
    "many dimensions": (header(tensors=1) + entry("a", (1,) * 6) + END, "'a' has 6 dimensions"),
    "no dimensions": (header(tensors=1) + entry("a", ()) + END, "'a' has 0 dimensions"),
    "nothing in it": (header(tensors=1) + entry("a", (4, 0)) + END, "which F32 cannot hold"),
    "half a block": (header(tensors=1) + entry("a", (33, 2), 8) + END, "which Q8_0 cannot hold"),
    "an unknown type": (header(tensors=1) + entry("a", (256,), 16) + END, "of type (IQ2_XXS|16); what is read is F32"),
    "a type that is none": (header(tensors=1) + entry("a", (4,), 999) + END, "of type 999; what is read is F32"),
    "beyond the end": (header(tensors=1) + entry("a", (4,), 0, 2**62) + END, "'a' ends at byte 4,611,686,018"),
    "between": (header(tensors=1) + entry("a", (4,), 0, 7) + END, "not a multiple of 32"),
    "one over another": (
        header(tensors=2) + entry("a", (16,)) + entry("b", (4,), 0, 32) + END * 2,
        "'b' lies over another one",
    ),
    "twice": (header(tensors=2) + entry("a", (4,)) + entry("a", (4,), 0, 32) + END * 2, "holds the tensor 'a' twice"),
}


@pytest.mark.parametrize("name", BYTES)
def test_sizes_that_the_file_cannot_have(name: str, tmp_path: Path) -> None:
    content, message = BYTES[name]
    path = tmp_path / FILE
    path.write_bytes(content)
    refused(lambda: read_model_config(path), message)
    refused(lambda: load_tokenizer(path), message)


def test_a_file_that_ends_anywhere(tmp_path: Path) -> None:
    """Of a whole file every beginning is refused, in the header as in the tensors."""
    path = tiny_file(tmp_path / FILE, {"tokenizer.ggml.tokens": ["a", "b"]})
    whole = path.read_bytes()
    GgufFile(path)
    for size in [*range(0, 1500, 13), *range(1500, len(whole) - 64, 499), len(whole) - 65]:
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"cut off|is no GGUF") as error:
            GgufFile(path)
        assert "\n" not in str(error.value)


def test_a_long_header_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_llm.interop.gguf_reading.container.MOST_HEADER_BYTES", 256)
    monkeypatch.setattr("lit_llm.interop.gguf_reading.container.MOST_ELEMENTS", 8)
    path = tmp_path / FILE
    path.write_bytes(header(keys=1) + key("a", 8, text("x" * 500)) + END)
    refused(lambda: GgufFile(path), "has a header of more than 256 bytes")
    path.write_bytes(header(keys=2) + key("a", 9, a_list(0, 5, b"12345")) + key("b", 9, a_list(0, 5, b"12345")) + END)
    refused(lambda: GgufFile(path), "5 entries of 'b'; at most 3 are read")


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "an architecture": ({"general.architecture": "mamba"}, "of the architecture 'mamba'; what is read is llama, qwen2"),
    "layers": ({"block_count": 2**31}, "num_layers"),
    "more layers than weights": ({"block_count": 9000}, "weights that do not fit its metadata|9000 layers"),
    "no layers": ({"block_count": None}, "it lacks llama.block_count"),
    "a width": ({"embedding_length": 2**31}, "hidden_size|num_heads"),
    "another width": ({"embedding_length": 32}, "weights that do not fit its metadata: of another shape"),
    "no heads": ({"attention.head_count": 0}, "head_count is 0; it must be at least 1"),
    "many heads": ({"attention.head_count": 2**30}, "head_dim|num_heads"),
    "heads by layer": ({"attention.head_count": [2, 4]}, "only one whole number for all is read"),
    "text": ({"context_length": "long"}, "context_length is 'long'"),
    "NaN": ({"attention.layer_norm_rms_epsilon": float("nan")}, "must be a finite number"),
    "infinite": ({"rope.freq_base": float("inf")}, "rope.freq_base is inf"),
    "no base": ({"rope.freq_base": 0.0}, "rope_theta"),
    "experts": ({"expert_count": 8}, "llama.expert_count is 8; only 0 is computed"),
    "something new": ({"attention.sinks": 4}, "says 'attention.sinks' of its llama"),
    "part of a head": ({"rope.dimension_count": 4}, "rope.dimension_count is 4; only 8 is computed"),
    "values of another width": ({"attention.value_length": 4}, "value_length is 4; only 8"),
    "positions": ({"rope.scaling.type": "longrope"}, "rope.scaling.type 'longrope' is not read"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_metadata_that_fit_nothing(name: str, tmp_path: Path) -> None:
    values, message = CONFIGS[name]
    path = tiny_file(tmp_path / FILE, values)
    refused(lambda: read_model_config(path), message)


def test_weights_that_are_none(tmp_path: Path) -> None:
    whole = tiny_file(tmp_path / FILE)
    assert is_gguf(whole) and len(load_weights(whole, read_model_config(whole))) == 12
    nan = np.ones((8, 16), "f4")
    nan[3, 5] = np.nan
    path = tiny_file(tmp_path / "nan.gguf", blk__0__ffn_up=nan)
    refused(lambda: load_weights(path, read_model_config(path)), r"mlp.up_proj.weight holds NaN or an infinite number")
    path = tiny_file(tmp_path / "missing.gguf", blk__0__ffn_up=None)
    refused(lambda: read_model_config(path), "do not fit its metadata: missing model.layers.0.mlp.up_proj.weight")
    path = tiny_file(tmp_path / "more.gguf", blk__0__ffn_gate_inp=np.ones((4, 16), "f4"))
    refused(lambda: load_weights(path, read_model_config(path)), "unexpected blk.0.ffn_gate_inp.weight")
    path = tiny_file(tmp_path / "vocabulary.gguf", token_embd=None)
    refused(lambda: read_model_config(path), "it holds a vocabulary, and no model")
    scale = np.full((8, 16 // 32 * 34 + 34), 255, np.uint8)  # the scale of each block is NaN
    wide = {"embedding_length": 32, "attention.head_count": 4}
    shapes = {
        name.replace(".", "__"): np.ones([2 * n if n == 16 else n for n in shape], "f4")
        for name, shape in SHAPES.items()
    }
    path = tiny_file(tmp_path / "scale.gguf", wide, **{**shapes, "blk__0__ffn_up": (scale, "Q8_0")})
    refused(lambda: load_weights(path, read_model_config(path)), r"mlp.up_proj.weight holds NaN", 2**24)


def test_what_is_not_there(tmp_path: Path) -> None:
    refused(lambda: load_model_folder(tmp_path / "none.gguf"), r"none.gguf cannot be read: No such file")
    (tmp_path / "notes.txt").write_text("no model")
    refused(lambda: load_model_folder(tmp_path / "notes.txt"), r"notes.txt is no GGUF file: it begins with b'no m'")
    tiny_file(tmp_path / "folder.gguf")
    refused(lambda: load_model_folder(tmp_path), r"no config.json; to read its GGUF file, give .*folder.gguf")
    tiny_file(tmp_path / "second.gguf")
    refused(lambda: load_model_folder(tmp_path), r"to read one of its 2 GGUF files, give its name, as .*folder.gguf")
