"""The decoder as one program, of torch.export or of ONNX, which runs without this package.

The program reads new tokens after those whose keys and values it is given, none at first, and hands on the longer ones:

    input_ids [b, t], attention_mask [b, s + t], past_key_values.N.key and .value [b, n_kv, s, d]
        -> logits [b, t, vocab], present.N.key and .value [b, n_kv, s + t, d]

for any b, s and t up to the context. These are the names that optimum, transformers.js and ONNX Runtime's examples
use. The mask is 1 for a token of the text and 0 for padding, which may stand on the left. A model with a token smear
has one more input, last_tokens [b, 1]: the token before the new ones, any at first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_llm.config import UserError
from lit_llm.config.files import whole_file
from lit_llm.model import Decoder
from lit_llm.model.growing_cache import GrowingStep
from lit_llm.model.position import DeviceTables

# Protocol buffers end at 2 GB, and the graph needs some of it.
_MOST_INSIDE = 1_900_000_000


class CachedDecoder(nn.Module):
    """A decoder whose cache is an argument and a result; see the module for the shapes."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past: list[Tensor], last_tokens: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Read `input_ids`; `past` has keys and values of each layer in turn."""
        step = GrowingStep(self.model.windows, past, attention_mask, input_ids.size(1), last_tokens)
        cache: Any = step
        return self.model(input_ids, cache=cache), step.memory


def no_past(model: Decoder, batch_size: int, length: int = 0) -> list[Tensor]:
    """Give the `past` of texts of which `length` tokens, none by default, were read: zeros."""
    config = model.config
    shape = (batch_size, config.kv_heads, length, config.width_per_head)
    return [model.embedding.weight.new_zeros(shape) for _ in range(2 * config.num_layers)]


def export_program(model: Decoder) -> torch.export.ExportedProgram:
    """Trace a decoder as a program for any number of rows, of tokens read before and of new ones.

    Args:
        model: whole, in evaluation mode, not quantized.

    Raises:
        UserError: torch cannot trace it.
    """
    device, layers = model.embedding.weight.device, model.config.num_layers
    for module in model.modules():
        if isinstance(module, DeviceTables):
            module.on(device)  # built before, as their values are part of the program
    rows, before, new = 2, 3, 5  # sizes that differ, so that none is taken for another
    tokens = torch.zeros(rows, new, dtype=torch.long, device=device)
    mask = torch.ones(rows, before + new, dtype=torch.long, device=device)
    last = tokens[:, :1] if model.config.token_smear else None
    free = torch.export.Dim.DYNAMIC
    shapes = (
        {0: free, 1: free},
        {0: free, 1: free},
        [{0: free, 2: free} for _ in range(2 * layers)],
        None if last is None else {0: free},
    )
    try:
        with torch.no_grad():
            return torch.export.export(
                CachedDecoder(model).eval(),
                (tokens, mask, no_past(model, rows, before), last),
                dynamic_shapes=shapes,
            )
    except Exception as error:  # whatever in the model the tracer cannot follow
        raise UserError(f"torch cannot trace this model ({_in_a_line(error)})") from error


def names_of(model: Decoder) -> tuple[list[str], list[str]]:
    """List the names of the program's inputs and outputs, in order."""
    caches = [f"{layer}.{kind}" for layer in range(model.config.num_layers) for kind in ("key", "value")]
    inputs = ["input_ids", "attention_mask", *(f"past_key_values.{name}" for name in caches)]
    outputs = ["logits", *(f"present.{name}" for name in caches)]
    return [*inputs, *(["last_tokens"] if model.config.token_smear else [])], outputs


def save_torch_program(path: Path, model: Decoder) -> None:
    """Write a file of torch.export, `*.pt2`: `torch.export.load(path).module()` is the program.

    Raises:
        UserError: the model cannot be traced, or the file cannot be written.
    """
    program = export_program(model)

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            torch.export.save(program, file)

    _write(path, write)


def save_onnx(path: Path, model: Decoder) -> None:
    """Write a file of ONNX, `*.onnx`; weights beyond 1.9 GB stand in a file `*.onnx.data` beside it.

    Raises:
        UserError: onnx and onnxscript are not installed, the model is in bfloat16 or cannot be converted, or the file
            cannot be written.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"writing ONNX needs onnx and onnxscript ({error}): pip install onnx onnxscript") from None
    if model.embedding.weight.dtype == torch.bfloat16:
        raise UserError("ONNX Runtime computes no bfloat16 on a CPU; give dtype float32 or float16")
    inputs, outputs = names_of(model)
    program = export_program(model)
    try:
        converted = torch.onnx.export(program, dynamo=True, input_names=inputs, output_names=outputs, verbose=False)
    except Exception as error:  # an operation that the converter does not know
        raise UserError(f"this model cannot be converted to ONNX ({_in_a_line(error)})") from error
    assert converted is not None
    beside = path.with_name(f"{path.name}.data")
    beside.unlink(missing_ok=True)
    if sum(weight.nbytes for weight in model.parameters()) > _MOST_INSIDE:
        _write(path, lambda _: converted.save(str(path), external_data=True), whole=False)
    else:
        _write(path, lambda partial: partial.write_bytes(converted.model_proto.SerializeToString()))


def _write(path: Path, write: Callable[[Path], Any], whole: bool = True) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not whole:  # a file that names the one beside it is written where it stays
            write(path)
            return
        with whole_file(path) as partial:
            write(partial)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error


def _in_a_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
