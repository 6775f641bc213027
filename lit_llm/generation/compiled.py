"""The compiled step writes one token of each text with a function made for the model and the number of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lit_llm.config import UserError
from lit_llm.distributed.tensors import is_sharded
from lit_llm.generation.inference import cache_for
from lit_llm.generation.recorded import RecordedSteps, Run, cuda_recorder
from lit_llm.model import Decoder, KVCache
from lit_llm.model.adapters import AdaptedLinear, RowAdapters
from lit_llm.model.few_rows import FEW_ROWS, twin, with_few_rows_linears
from lit_llm.model.one_token import OneTokenStep
from lit_llm.model.packed_linear import packed_layers
from lit_llm.model.position import DeviceTables
from lit_llm.model.quantization import QuantizedLinear

# The number of slots that are read is a multiple of this: whole vectors, and few different sizes.
SLOT_STEP = 16
# Sizes that the functions are made with. They differ from each other, so that the compiler does not take what is equal
# there for what is always equal.
_EXAMPLE_CAPACITY = 80

# To check at each step that nothing but sizes has changed takes long beside a small step: `compiled` checks once
# for each engine.
_OPTIONS: dict[str, Any] = {"guard_filter_fn": lambda guards: [False] * len(guards), "size_asserts": False}
# Products with one row become sums then, which read weights as they are stored, and as fast as memory gives them.
_ONE_ROW_OPTIONS: dict[str, Any] = {**_OPTIONS, "coordinate_descent_tuning": True}
# what calls the compiled loops is compiled as well, which saves a twentieth of a small step
_CPU_OPTIONS: dict[str, Any] = {
    **_OPTIONS,
    "cpp_wrapper": True,
    "cpp.enable_floating_point_contract_flag": "fast",  # let the compiler multiply and add in one instruction
}

Step = Callable[..., Tensor]


class CompiledModel:
    """The step of a decoder over one token of each row, compiled for 1, 2, 4, ... rows when first asked for.

    It reads the tensors of the model itself. Use `compiled`, which keeps it for as long as the model.

    Args:
        model: a whole decoder, with or without `RowAdapters`. If its weights are packed, they have been kept besides.
    """

    def __init__(self, model: Decoder) -> None:
        self.device = model.embedding.weight.device
        self.windows = tuple(model.windows)
        self.context = model.config.max_position_embeddings

        # copies, as a reference to the model itself would keep it in memory for ever
        def to_be_compiled(module: nn.Module) -> nn.Module | None:
            if isinstance(module, AdaptedLinear):
                return module.stacked()
            return module.with_buffers(self.device) if isinstance(module, DeviceTables) else None

        self.adapters = next((part.rows for part in model.modules() if isinstance(part, AdaptedLinear)), None)
        self._many = twin(model, to_be_compiled)
        self._few = with_few_rows_linears(self._many) if self.device.type == "cpu" else self._many
        self.most_rows = FEW_ROWS if packed_layers(model) else None
        """More rows than these are faster by the packed weights than compiled; None: there are none."""
        self._steps: dict[int, Step] = {}
        self.state = _state_of(model)

    def step(self, rows: int) -> Step:
        """The function for so many rows: (tokens [b, 1], keys, values, lengths [b], slots [s], last_tokens, numbers of
        adapters [b]) -> logits [b, vocab]; see `OneTokenStep` and `RowAdapters`.

        Raises:
            UserError: it could not be compiled.
        """
        if rows not in self._steps:
            self._steps[rows] = self._compile(rows)
        return self._steps[rows]

    def _compile(self, rows: int) -> Step:
        model: Any = self._few if rows <= FEW_ROWS else self._many
        one_token = OneToken(model, self.windows, self.adapters)
        example = (*_example(model, rows), self.numbers([None] * rows))
        on_cpu = self.device.type == "cpu"
        # torch's product of packed weights gets a constant of the compiler's, which a library does not hold
        packed = any(isinstance(part, QuantizedLinear) and part.is_packed for part in model.modules())
        try:
            if on_cpu and not packed:
                return _ahead_of_time(one_token, example)
            # the compiler counts how often it has compiled a code object, so each function has one of its own
            forward = OneToken.forward
            own = FunctionType(forward.__code__.replace(), forward.__globals__, name="one_token")
            options = _CPU_OPTIONS if on_cpu else _ONE_ROW_OPTIONS if rows == 1 else _OPTIONS
            step = torch.compile(partial(own, one_token), fullgraph=True, options=options)
            # sizes vary where `_example` says so, and nowhere else
            with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
                step(*example)
        except UserError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()
            raise UserError(
                f"the model could not be compiled ({type(error).__name__}: {reason[0] if reason else ''}); leave "
                "compile off"
            ) from error
        return step

    def numbers(self, names: Sequence[str | None]) -> Tensor | None:
        """Make the last argument of a step from the adapter of each row; None for a model that has none."""
        return None if self.adapters is None else torch.tensor(self.adapters.numbers_of(names), device=self.device)


class OneToken(nn.Module):
    """The step as a module, so that the weights are its own.

    Args:
        model: a decoder.
        windows: the sliding window of each layer, or None.
        adapters: those of the decoder, or None.
    """

    def __init__(self, model: nn.Module, windows: Sequence[int | None], adapters: RowAdapters | None) -> None:
        super().__init__()
        self.model = model
        self.windows = tuple(windows)
        self.adapters = adapters

    def forward(
        self,
        tokens: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
        lengths: Tensor,
        slots: Tensor,
        last_tokens: Tensor | None,
        adapters: Tensor | None,
    ) -> Tensor:
        """See `CompiledModel.step`."""
        step = OneTokenStep(self.windows, keys, values, lengths, slots, last_tokens)
        if self.adapters is not None:
            self.adapters.numbers = adapters
        logits = self.model(tokens, cache=step, head=lambda hidden, head: self.model.logits(hidden[:, -1]))
        if self.adapters is not None:
            self.adapters.numbers = None
        return logits


def _ahead_of_time(one_token: OneToken, example: tuple[Any, ...]) -> Step:
    from lit_llm.generation.ahead_of_time import AheadOfTime

    varies = [{2: torch.export.Dim.DYNAMIC}] * len(example[1])
    call = AheadOfTime(one_token, example, [None, varies, varies, None, {0: torch.export.Dim.DYNAMIC}, None, None])

    def step(tokens: Tensor, keys: list[Tensor], values: list[Tensor], *rest: Tensor | None) -> Tensor:
        return call([tokens, *keys, *values, *(each for each in rest if each is not None)])[0]

    return step


def _example(model: Any, rows: int) -> tuple[Any, ...]:
    """Make arguments of a step, marked where their sizes may vary."""
    device = model.embedding.weight.device
    cache = cache_for(model, rows, _EXAMPLE_CAPACITY)
    for number, window in enumerate(cache.capacities):
        for layer, own in enumerate(cache.windows):
            if own == window:
                capacity = _EXAMPLE_CAPACITY + SLOT_STEP * number
                for memories in (cache.keys, cache.values):
                    memory = memories[layer]
                    memories[layer] = memory.new_zeros(*memory.shape[:2], capacity, memory.size(3))
                    torch._dynamo.mark_dynamic(memories[layer], 2)
    slots = torch.arange(2 * SLOT_STEP, device=device)
    torch._dynamo.mark_dynamic(slots, 0)
    tokens, lengths = (torch.zeros(shape, dtype=torch.long, device=device) for shape in ((rows, 1), (rows,)))
    return tokens, cache.keys, cache.values, lengths, slots, cache.last_tokens


def roomy(max_length: int) -> int:
    """Compute the capacity that the cache of a `CompiledStep` needs for rows of up to `max_length` tokens.

    Never as many slots as are read: what is read would be whole memory then, for which the compiler makes another
    function.
    """
    return _whole_steps(max_length) + SLOT_STEP


def _whole_steps(length: int) -> int:
    return -(-length // SLOT_STEP) * SLOT_STEP


class CompiledStep:
    """Passes over one token of each of the first rows of an engine's cache.

    Args:
        model: its compiled form.
        cache: its cache, of a length that `roomy` gave.
        record: see `RecordedSteps`; None: on CUDA with CUDA graphs, and elsewhere nothing is recorded.
    """

    def __init__(self, model: CompiledModel, cache: KVCache, record: Callable[[Run], Run] | None = None) -> None:
        self.model = model
        self.cache = cache
        if record is None and cache.keys[0].device.type == "cuda":
            record = cuda_recorder()
        self._recorded = None if record is None else RecordedSteps(model.step, record)
        self._rows = len(cache.lengths)
        self._memories: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        self._slots = torch.arange(cache.max_length, device=cache.keys[0].device)

    def takes(self, rows: int) -> bool:
        """Whether a pass over so many rows is for this, and not for the model as it is."""
        return self.model.most_rows is None or rows <= self.model.most_rows

    def __call__(self, tokens: Tensor, adapters: Sequence[str | None]) -> Tensor:
        """Read one token of each of the first rows [n, 1], which have `adapters`; gives the next logits [n, vocab]."""
        cache, count = self.cache, tokens.size(0)
        rows = min(1 << (count - 1).bit_length(), self._rows)
        if rows not in self._memories:
            self._memories[rows] = [m[:rows] for m in cache.keys], [m[:rows] for m in cache.values]
        keys, values = self._memories[rows]
        slots = self._slots[: self._read_slots(max(cache.lengths[:count]) + 1)]
        # the extra rows up to a power of two write where their own next token will be written; a free row may be full
        along = [min(length, self.model.context - 1) for length in cache.lengths[count:rows]]
        lengths = torch.tensor(cache.lengths[:count] + along, device=tokens.device)
        last_tokens = None if cache.last_tokens is None else cache.last_tokens[:rows]
        padded = tokens if count == rows else torch.cat([tokens, tokens.new_zeros(rows - count, 1)])
        numbers = self.model.numbers([*adapters, *[None] * (rows - count)])
        step = self.model.step(rows) if self._recorded is None else self._recorded
        logits = step(padded, keys, values, lengths, slots, last_tokens, numbers)
        cache.lengths[:count] = [length + 1 for length in cache.lengths[:count]]
        for row, length in enumerate(along, start=count):  # in a ring that was the place of its oldest token
            cache.lose(row, length - cache.least_capacity)
        if cache.last_tokens is not None:
            cache.last_tokens[:count] = tokens
        return logits[:count]

    def _read_slots(self, length: int) -> int:
        """How many slots are read of texts of up to `length` tokens."""
        if self._recorded is None:
            return _whole_steps(length)
        return self._recorded.slots(length, self.cache.max_length - SLOT_STEP)


_COMPILED: WeakKeyDictionary[Decoder, CompiledModel] = WeakKeyDictionary()


def compiled(model: Decoder) -> CompiledModel:
    """Give the compiled form of a model: the one made before, unless its weights have moved in memory since.

    Raises:
        UserError: the model is sharded, or there is nothing to compile it with.
    """
    if is_sharded(model):
        raise UserError("a sharded model cannot be compiled for generation; leave compile off, or load it whole")
    if model.embedding.weight.device.type == "cpu":
        check_compiler()
    found = _COMPILED.get(model)
    if found is None or found.state != _state_of(model):
        found = _COMPILED[model] = CompiledModel(model)
    return found


def check_compiler() -> None:
    """Check that there is a C++ compiler.

    Raises:
        UserError: there is none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise UserError(
            "compile needs a C++ compiler, and none was found; install g++ (apt install g++), name one in the "
            "environment variable CXX, or leave compile off"
        ) from error


def _state_of(model: Decoder) -> tuple[Any, ...]:
    """Describe what a compiled form is made for: where the tensors lie, and the number of threads."""
    adapted = (part.additions.values() for part in model.modules() if isinstance(part, AdaptedLinear))
    additions = (addition.a for of_layer in adapted for addition in of_layer)
    tensors = chain(model.parameters(), model.buffers(), additions)
    return torch.get_num_threads(), tuple((t.data_ptr(), t.dtype, t.stride()) for t in tensors)
