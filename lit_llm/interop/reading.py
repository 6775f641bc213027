"""This file reads the weights of a model folder one tensor at a time, straight from the memory-mapped files."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_llm.config import ModelConfig, UserError
from lit_llm.config.serialization import shown
from lit_llm.interop.families import Family, Stored
from lit_llm.interop.json_files import read_object
from lit_llm.interop.weights import Weights
from lit_llm.model import Decoder
from lit_llm.model.quantization import quantize

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = ("F64", "F32", "F16", "BF16")
QUANTIZED_DTYPES = ("I8", "U8")
MODEL_TYPE = "lit_llm"
"""The `model_type` of a folder of our own form."""
OWN_PREFIX = "model."
"""The prefix that transformers gives all weights of our own form except the heads when it saves them."""
OWN_SCORES = {"score.weight": "head.weight"}
"""The name that a head of scores has in files of our own form, and our name. Older files have our name."""
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


class WeightFiles:
    """The tensors of a model folder by name, whichever file each is in; opening reads only the headers of the files.

    Args:
        folder: a folder with `model.safetensors`, or with several files and `model.safetensors.index.json`.
        device: where tensors are read to. On the CPU they stay mapped to the file until something changes them.
        dtypes: the kinds of numbers that a tensor may have.

    Raises:
        UserError: a file is missing or damaged, or the folder has no safetensors.
    """

    about = "config.json"

    def __init__(self, folder: Path, device: torch.device | str = "cpu", dtypes: tuple[str, ...] = DTYPES) -> None:
        self.folder = folder
        self._dtypes = dtypes
        self._device = str(device)
        self._file_of: dict[str, Any] = {}
        for path, names in self._files():
            self._open(path, names)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Read the shape of a tensor from the header.

        Raises:
            UserError: its numbers are of a kind that is not among `dtypes`.
        """
        part = self._file_of[name].get_slice(name)
        if part.get_dtype() not in self._dtypes:
            raise UserError(f"{self.folder}: {name} is stored as {part.get_dtype()}; quantized weights are not read")
        return tuple(part.get_shape())

    def read(self, name: str, columns: slice | None = None) -> Tensor:
        """Read a tensor, or some columns of its last dimension."""
        try:
            if columns is None:
                return self._file_of[name].get_tensor(name)
            part = self._file_of[name].get_slice(name)
            return part[columns] if len(part.get_shape()) == 1 else part[:, columns]
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.folder}: {name} cannot be read: {error}") from error

    def _files(self) -> list[tuple[Path, set[str] | None]]:
        """List each file with the tensors that the index says it has."""
        if (self.folder / WEIGHTS).is_file():
            return [(self.folder / WEIGHTS, None)]
        index = self.folder / INDEX
        if not index.is_file():
            raise UserError(self._no_weights())
        weight_map = read_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{index} is not an index of weights: it has no weight_map")
        files: dict[str, set[str]] = {}
        for name, file in weight_map.items():
            # a file of this folder, and nothing that a path could lead to
            if not isinstance(file, str) or not re.fullmatch(r"[^/\\:\0]+\.safetensors", file):
                raise UserError(f"{index} names {shown(file)}; it must be a file of this folder (*.safetensors)")
            files.setdefault(file, set()).add(name)
        missing = [file for file in sorted(files) if not (self.folder / file).is_file()]
        if missing:
            raise UserError(f"{index} names {shown(missing[0])}, which is not there")
        return [(self.folder / file, names) for file, names in sorted(files.items())]

    def _open(self, path: Path, expected: set[str] | None) -> None:
        try:
            file = safe_open(path, framework="pt", device=self._device)
            names = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        absent = sorted((expected or set()) - set(names))
        if absent:
            raise UserError(f"{path} lacks {absent[0]}, which {INDEX} says it has")
        twice = sorted(set(names) & set(self._file_of))
        if twice:
            raise UserError(f"{path} holds {twice[0]} a second time")
        self._file_of.update(dict.fromkeys(names, file))

    def _no_weights(self) -> str:
        if any((self.folder / name).is_file() for name in PICKLES):
            return (
                f"{self.folder} has its weights as a pickle only (pytorch_model.bin), which could run any code and is "
                "not read; convert it where you trust it: transformers' "
                f"AutoModelForCausalLM.from_pretrained('{self.folder}').save_pretrained('{self.folder}')"
            )
        return f"{self.folder} has no {WEIGHTS}"


@dataclass(frozen=True)
class Source:
    """The place in the files from which one of our tensors comes."""

    name: str
    """The tensor's name in the file, as the family writes it."""
    transposed: bool = False
    part: int | None = None


def source_of(name: str, family: Family | None) -> Source:
    """Say where a tensor of ours lies in the files of a family; folders of our own form (None) have our names."""
    if family is None:
        return Source(name)
    module, _, kind = name.rpartition(".")
    block = re.match(r"blocks\.(\d+)\.", module)
    stored: Stored = family.weights[re.sub(r"^blocks\.\d+\.", "blocks.{}.", module)]
    theirs = stored.name.format(block.group(1)) if block else stored.name
    return Source(f"{theirs}.{kind}", stored.transposed and kind == "weight", stored.part)


def has_rows_of_tokens(name: str, config: ModelConfig) -> bool:
    """Whether a tensor of ours has a row for each token of the vocabulary."""
    if name == "head.weight":
        return config.output == "tokens"
    return name == "embedding.weight" or name.endswith(".value_embedding.weight")


def check_folder_outline(
    folder: Path, config: ModelConfig, family: Family | None, quantization: str | None = None
) -> None:
    """`check_outline` of the weights in a folder; one without safetensors passes.

    Raises:
        UserError: a file is damaged, or a tensor is missing or of another shape.
    """
    if any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        files = WeightFiles(folder, "cpu", DTYPES if quantization is None else DTYPES + QUANTIZED_DTYPES)
        check_outline(files, config, family, quantization)


def check_outline(files: Weights, config: ModelConfig, family: Family | None, quantization: str | None = None) -> None:
    """Refuse weights of another size than their configuration, before anything of that size is made.

    The shapes in the headers of the files are compared with those of the first and the last block and of everything
    outside blocks.

    Args:
        files: the weights.
        config: their configuration.
        family: the architecture of transformers that the files are of; None for our own form.
        quantization: how the weights are quantized, if they are.

    Raises:
        UserError: a tensor is missing or of another shape.
    """
    if config.vocab_size is None:
        return
    # one or two blocks show every kind there is: every second has an embedding of values, the last included
    outline = replace(config, num_layers=min(config.num_layers, 2 - config.num_layers % 2))
    key = f"{outline} {quantization}"  # a run reads the folder that it starts from several times
    if key not in _outlines:
        _outlines[key] = _shapes(outline, _decoder_state(outline, quantization))
    expected = _outlines[key]
    last = f"blocks.{outline.num_layers - 1}."
    renamed = {re.sub(f"^{re.escape(last)}", f"blocks.{config.num_layers - 1}.", name): name for name in expected}
    per_layer = {"stream_share", "shortcut_share"}
    expected = {name: (config.num_layers,) if name in per_layer else expected[small] for name, small in renamed.items()}
    _check(files, full_names_of(files, family), expected, config, family, whole=False)
    count = len(list(files))
    if count < config.num_layers:
        raise UserError(f"{files.folder} has {count} weights, and its {files.about} says {config.num_layers} layers")


_outlines: dict[str, dict[str, tuple[int, ...]]] = {}


def _shapes(config: ModelConfig, state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Give the shapes of the tensors of `Decoder(config)` that files hold, by our names."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if config.tie_word_embeddings:
        shapes.pop("head.weight", None)
    return shapes


def _decoder_state(config: ModelConfig, quantization: str | None) -> dict[str, Tensor]:
    """Make the tensors of `Decoder(config)` on the meta device, where they take no memory."""
    with torch.device("meta"):
        model = Decoder(config)
    if quantization is not None:
        quantize(model, quantization)
    return model.state_dict()


def full_names_of(files: Weights, family: Family | None) -> dict[str, str]:
    """Give the name in the files of each tensor by the name that it has in a whole model.

    Files of a bare model of a family, without the head, lack the prefix. In our own form transformers, and no one else,
    puts one before the names when it saves, and a head of scores has its name there.

    Raises:
        UserError: the files hold a tensor under both of its names.
    """
    if family is None:
        names: dict[str, str] = {}
        for name in files:
            first = names.setdefault(OWN_SCORES.get(name, name.removeprefix(OWN_PREFIX)), name)
            if first != name:
                raise UserError(f"{files.folder} holds one weight twice, as {first} and as {name}; delete one of them")
        return names
    base, head = family.base, f"{family.weights['head'].name}."
    return {name if name.startswith((base, head)) else base + name: name for name in files}


def iterate_weights(
    folder: Path,
    config: ModelConfig,
    family: Family | None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    quantization: str | None = None,
    without: Collection[str] = (),
) -> Iterator[tuple[str, Tensor]]:
    """Read every tensor of `Decoder(config)` under our name, one at a time, once all names and shapes are checked.

    A head that is tied to the embedding is not among them. Rows that pad the vocabulary are zeros where the file lacks
    them.

    Args:
        folder: a model folder.
        config: its configuration.
        family: the architecture of transformers that the folder is of; None for our own form.
        device: where each tensor goes.
        dtype: what each is converted to; None keeps it as stored.
        quantization: how they are quantized, if they are; only in our own form, and without conversion.
        without: names of tensors that must be in the files, and are not returned.

    Raises:
        UserError: a file is missing or broken, or weights are missing, left over or of another shape.
    """
    files = WeightFiles(folder, device, DTYPES if quantization is None else DTYPES + QUANTIZED_DTYPES)
    return convert_weights(files, config, family, dtype, quantization, without)


def convert_weights(
    files: Weights,
    config: ModelConfig,
    family: Family | None,
    dtype: torch.dtype | None = None,
    quantization: str | None = None,
    without: Collection[str] = (),
) -> Iterator[tuple[str, Tensor]]:
    """`iterate_weights` from what has been opened."""
    wanted = _decoder_state(config, quantization)
    expected = _shapes(config, wanted)
    full_names = full_names_of(files, family)
    sources = _check(files, full_names, expected, config, family)
    for name, source in sources.items():
        if name in without:
            continue
        stored_name = full_names[source.name]
        tensor = _convert(files, stored_name, source, dtype)
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            raise UserError(f"{files.folder}: {name} is stored as {tensor.dtype}, which does not fit its {files.about}")
        check_finite(files.folder, stored_name, tensor)
        rows = expected[name][0] - tensor.size(0)
        yield name, F.pad(tensor, (0, 0, 0, rows)) if rows else tensor


def check_finite(folder: Path | str, name: str, tensor: Tensor) -> None:
    """Refuse a tensor that would make every logit NaN, in one pass that takes no memory.

    Raises:
        UserError: the tensor has a number that is NaN or infinite.
    """
    if tensor.is_floating_point() and tensor.numel() and not all(map(torch.isfinite, torch.aminmax(tensor))):
        raise UserError(
            f"{folder}: {name} holds NaN or an infinite number (as {str(tensor.dtype).removeprefix('torch.')}); these "
            "weights are spoiled, take an earlier or another copy"
        )


def _convert(files: Weights, stored_name: str, source: Source, dtype: torch.dtype | None) -> Tensor:
    columns = None
    if source.part is not None:
        third = files.shape(stored_name)[-1] // 3
        columns = slice(source.part * third, (source.part + 1) * third)
    tensor = files.read(stored_name, columns)
    if dtype is not None:
        tensor = tensor.to(dtype)
    return tensor.t().contiguous() if source.transposed else tensor


def _check(
    files: Weights,
    full_names: dict[str, str],
    expected: dict[str, tuple[int, ...]],
    config: ModelConfig,
    family: Family | None,
    whole: bool = True,
) -> dict[str, Source]:
    """Refuse files that do not hold exactly the tensors of the configuration; without `whole`, they may hold more.

    Returns:
        The place of each tensor.
    """
    sources = {name: source_of(name, family) for name in expected}
    wanted = {source.name for source in sources.values()}
    missing = sorted(wanted - set(full_names))
    unexpected = sorted(set(full_names) - wanted) if whole else []
    if family is not None:
        unexpected = [name for name in unexpected if not re.match(family.ignored_weights, name)]
    if config.tie_word_embeddings:
        head, embedding = (source_of(f"{name}.weight", family).name for name in ("head", "embedding"))
        if head in unexpected and embedding in full_names:
            unexpected.remove(head)
            _check_tied(files, full_names[head], full_names[embedding])
    reshaped = [
        source.name
        for name, source in sources.items()
        if source.name in full_names
        and not _fits(files.shape(full_names[source.name]), source, expected[name], name, config, family)
    ]
    problems = [
        f"{what} {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
        for what, names in (
            ("missing", missing),
            ("unexpected", [full_names[name] for name in unexpected]),
            ("of another shape", list(dict.fromkeys(reshaped))),
        )
        if names
    ]
    if problems:
        raise UserError(f"{files.folder} has weights that do not fit its {files.about}: {'; '.join(problems)}")
    return sources


def _fits(
    stored: tuple[int, ...],
    source: Source,
    wanted: tuple[int, ...],
    name: str,
    config: ModelConfig,
    family: Family | None,
) -> bool:
    if source.part is not None:
        stored = (*stored[:-1], stored[-1] // 3 if stored[-1] % 3 == 0 else -1)
    if source.transposed:
        stored = stored[::-1]
    if has_rows_of_tokens(name, config):  # the rows that pad the vocabulary are stored where weights are quantized
        without_padding = (config.vocab_size or 0, *wanted[1:])
        return stored == without_padding or (family is None and stored == wanted)
    return stored == wanted


def _check_tied(files: Weights, head: str, embedding: str) -> None:
    if not torch.equal(files.read(head), files.read(embedding)):
        raise UserError(
            f"{files.folder}: config.json says that head and embedding are one (tie_word_embeddings), but {head} and "
            f"{embedding} differ; set tie_word_embeddings to false"
        )
