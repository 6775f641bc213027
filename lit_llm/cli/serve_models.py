"""Which models and adapters a server has, and how they come from their folders into memory."""

from __future__ import annotations

import filecmp
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lit_llm.config import LoraConfig, ModelConfig, ServeConfig, UserError
from lit_llm.stages.loading import LoadedModel, device_of, dtype_of, find_model, load

if TYPE_CHECKING:
    import torch

    from lit_llm.model import Decoder
    from lit_llm.model.adapters import RowAdapters
    from lit_llm.serving.registry import ModelGroup
    from lit_llm.serving.served_model import Served
    from lit_llm.serving.worker import Worker
    from lit_llm.tokenizer import Tokenizer

# what a model is read from; other files may come and go
_SUFFIXES = (".json", ".safetensors", ".jinja", ".gguf")

_T = TypeVar("_T")
MakeWorker = Callable[[ServeConfig, LoadedModel, "RowAdapters | None"], "Worker"]


@dataclass(frozen=True)
class Source:
    """A model folder by its name, and the folders of the adapters over it by theirs."""

    name: str
    folder: Path
    adapters: dict[str, Path]
    config: ServeConfig
    """The server's options, with this model as `model`."""


def sources(config: ServeConfig) -> list[Source]:
    """List the models of a server with their adapters, the first one being `config.model`.

    Raises:
        UserError: two have the same name, a folder is no adapter folder, or an adapter is for none of the models.
    """
    folders = {config.name or default_name(find_model(config.model)): find_model(config.model)}
    for name, path in config.models.items():
        if name in folders:
            raise UserError(f"two models are called {name}: {folders[name]} and {path}; give one another name")
        folders[name] = find_model(path)
    found = [Source(name, folder, {}, replace(config, model=str(folder))) for name, folder in folders.items()]
    for name, path in config.adapters.items():
        if name in folders:
            raise UserError(f"a model and an adapter are called {name}: {folders[name]} and {path}; rename one")
        of_run = Path(path) / "adapter"
        folder = of_run if (of_run / "adapter_config.json").is_file() else Path(path)
        _base(name, folder, found).adapters[name] = folder
    return found


def default_name(folder: Path) -> str:
    """Name a model by its run, or else by its folder."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def _base(name: str, folder: Path, found: list[Source]) -> Source:
    """Find the model that an adapter is for: the same folder, or one with the same weights."""
    base = _base_named(name, folder)
    for same in (lambda one, other: one.resolve() == other.resolve(), same_weights):
        for source in found:
            if same(source.folder, base):
                return source
    models = ", ".join(f"{source.name} ({source.folder})" for source in found)
    raise UserError(f"adapter {name} ({folder}) is for {base}, which is none of the models served: {models}")


def _check_base(name: str, folder: Path, source: Source) -> None:
    """Raise a UserError where an adapter is by now for another model than the one that it came with."""
    base = _base_named(name, folder)
    if base.resolve() != source.folder.resolve() and not same_weights(source.folder, base):
        those = f"not for {source.name} ({source.folder})"
        raise UserError(f"adapter {name} ({folder}) is for {base} by now, {those}; start the server anew")


def _base_named(name: str, folder: Path) -> Path:
    from lit_llm.interop.peft import base_of

    base = base_of(folder)
    if base is None:
        raise UserError(f"adapter {name}: {folder} is no adapter folder; it has no adapter_config.json")
    return base


def same_weights(one: Path, other: Path) -> bool:
    """Whether two model folders, or GGUF files, hold the same model byte by byte."""
    if one.is_file() or other.is_file():
        return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)
    names = [sorted(path.name for path in folder.glob("*.safetensors")) for folder in (one, other)]
    if not names[0] or names[0] != names[1]:
        return False
    same, _, _ = filecmp.cmpfiles(one, other, ["config.json", *names[0]], shallow=False)
    return len(same) == 1 + len(names[0])


def state_of(source: Source) -> tuple[tuple[str, int, int, int], ...]:
    """Describe the files of a model and its adapters: name, size, time and number of each.

    Raises:
        UserError: an adapter's base is no folder on this machine.
    """
    from lit_llm.interop.peft import base_of

    folders = [source.folder, *source.adapters.values()]
    base = base_of(source.folder)
    while base is not None:
        folders.append(base)
        base = base_of(base)
    files = [path for folder in folders for path in ([folder] if folder.is_file() else sorted(folder.glob("*")))]
    told = []
    for path in files:
        if path.suffix in _SUFFIXES:
            try:
                about = path.stat()
            except FileNotFoundError:  # a link to nothing, or gone since
                continue
            told.append((str(path), about.st_size, about.st_mtime_ns, about.st_ino))
    return tuple(told)


class ModelFolders:
    """The models of a server, as they lie in their folders; its methods may be called from any thread.

    Args:
        config: the server's options.
        make_worker: makes the thread that writes with a model that has been loaded; it is not started yet.

    Raises:
        UserError: as `sources`.
    """

    def __init__(self, config: ServeConfig, make_worker: MakeWorker) -> None:
        self._sources = {source.name: source for source in sources(config)}
        self._make_worker = make_worker
        self.on_loaded: Callable[[str, Worker], None] = lambda name, worker: None
        """A function that is called with each model and its thread before that starts."""

    @property
    def names(self) -> list[str]:
        """The names of the models, the first one's first."""
        return list(self._sources)

    def look(self, name: str) -> ModelGroup:
        """Look at a model and its adapters, without reading the model's weights.

        Raises:
            UserError: a folder is damaged, or an adapter does not fit the model.
        """
        return in_thread_of_its_own(partial(self._look, self._sources[name]))

    def _look(self, source: Source) -> ModelGroup:
        from lit_llm.interop import load_tokenizer, read_model_config, stop_token_ids
        from lit_llm.serving.registry import ModelGroup

        state = state_of(source)
        config = read_model_config(source.folder)
        config.check_gives_text(str(source.folder))
        tokenizer = load_tokenizer(source.folder)
        ends = list(stop_token_ids(source.folder, tokenizer))
        served = {source.name: describe_model(source.config, source.name, source.folder, config, tokenizer, ends)}
        nbytes = self._bytes(source, config)
        for adapter, folder in source.adapters.items():
            _check_base(adapter, folder, source)
            _, weights = read_fitting(adapter, folder, source, config)
            nbytes += sum(4 * tensor.numel() for tensor in weights.values())
            own = adapter_tokenizer(adapter, folder, tokenizer, config)
            ends = list(stop_token_ids(folder, own))
            described = describe_model(source.config, adapter, source.folder, config, own, ends, source.name)
            served[adapter] = described
        return ModelGroup(source.name, served, state, nbytes)

    def load(self, group: ModelGroup) -> Worker:
        """Read a model and its adapters, and start the thread that writes with them.

        Raises:
            UserError: it cannot be read. `FolderChanged`: a file is not what it was when the server looked at it.
        """
        from lit_llm.serving.registry import FolderChanged

        source = self._sources[group.name]
        changed = FolderChanged(
            f"the files of {group.name} have changed since the server looked at them; SIGHUP has it read them anew"
        )
        if state_of(source) != group.state:
            raise changed
        try:
            loaded, adapters = in_thread_of_its_own(partial(_read, source))
        except UserError:
            if state_of(source) != group.state:
                raise changed from None
            raise
        if state_of(source) != group.state:  # half of it may be what there was, and half what came
            raise changed
        worker = self._make_worker(source.config, loaded, adapters)
        self.on_loaded(group.name, worker)
        worker.start()
        return worker

    def _bytes(self, source: Source, config: ModelConfig) -> int:
        from lit_llm.planning.serving import prefix_cache_bytes, serving_memory
        from lit_llm.stages.serving_size import held_as

        options = source.config
        dtype, quantization = held_as(source.folder, config, dtype_of(options), options.quantize)
        length = options.max_length or config.max_position_embeddings
        held = serving_memory(
            config,
            dtype,
            quantization,
            options.max_batch,
            length,
            tied_head=options.compile,
            packed=device_of(options) == "cpu" and _packs(options, quantization),
            kept=options.compile,
        ).total
        return held + int(prefix_cache_bytes(config, dtype, options.prefix_cache_mib, 16 * options.max_batch * length))


def _read(source: Source) -> tuple[LoadedModel, RowAdapters | None]:
    from lit_llm.model.adapters import RowAdapters
    from lit_llm.model.packed_linear import pack_weights
    from lit_llm.model.quantization import quantization_of

    loaded = load(source.config, compile=source.config.compile)
    hold_in_memory(loaded.model)
    if source.config.compile and _packs(source.config, quantization_of(loaded.model)):
        pack_weights(loaded.model, keep=True)
    config = loaded.model.config
    read = {name: read_fitting(name, folder, source, config) for name, folder in source.adapters.items()}
    return loaded, RowAdapters(loaded.model, read) if read else None


def _packs(options: ServeConfig, quantization: str | None) -> bool:
    """Whether nothing is compiled, or whole weights are read for more rows than a compiled step is fast with."""
    from lit_llm.model.few_rows import FEW_ROWS

    return not options.compile or (quantization is None and options.max_batch > FEW_ROWS)


def in_thread_of_its_own(work: Callable[[], _T]) -> _T:
    """Do some work of torch's in a thread that then ends, and with it the threads that OpenMP began for it.

    While they wait for more, OpenMP counts more threads than cores, and lets those of every other team fall asleep
    between two products: writing texts in the engine's thread then takes a third longer.
    """
    done: Future[_T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    # a daemon, so that an interrupt does not wait for it
    thread = threading.Thread(target=run, name="loading", daemon=True)
    thread.start()
    result = done.result()
    thread.join()
    return result


def describe_model(
    options: ServeConfig,
    name: str,
    folder: Path,
    config: ModelConfig,
    tokenizer: Tokenizer,
    stop_tokens: list[int],
    parent: str | None = None,
) -> Served:
    """Return a model's name, tokenizer and limits, as requests are to see them.

    Args:
        options: the server's.
        name: what requests call it.
        folder: the model folder, of an adapter that of its base.
        config: the decoder's configuration.
        tokenizer: of the model or adapter.
        stop_tokens: ids that end a text.
        parent: of an adapter the name of its base.

    Raises:
        UserError: `max_length` is more than the model's context.
    """
    from lit_llm.interop import read_quantization
    from lit_llm.interop.peft import base_of
    from lit_llm.serving.served_model import Served

    context = config.max_position_embeddings
    if options.max_length is not None and options.max_length > context:
        which = "the model's context" if not options.models else f"the context of {name}"
        raise UserError(f"max_length is {options.max_length}; {which} is {context} tokens")
    stored = read_quantization(base_of(folder) or folder)
    return Served(
        name,
        tokenizer,
        config.vocab_size or 0,
        options.max_length or context,
        stop_tokens,
        default_max_tokens=options.default_max_tokens,
        begin_token=options.begin_token,
        quantize=stored if options.quantize == "none" else options.quantize,
        parent=parent,
        width=config.hidden_size,
    )


def read_fitting(
    name: str, folder: Path, source: Source, config: ModelConfig
) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Read an adapter of a model.

    Raises:
        UserError: it is damaged, or has other shapes; names both.
    """
    from lit_llm.interop import read_adapter

    try:
        return read_adapter(folder, config)
    except UserError as error:
        raise UserError(f"adapter {name} of {source.name} ({source.folder}): {error}") from None


def adapter_tokenizer(name: str, folder: Path, base: Tokenizer, config: ModelConfig) -> Tokenizer:
    """Read the tokenizer of an adapter, which may bring a chat template and tokens of its own, or that of its base.

    Raises:
        UserError: an id means another token than in the base, or is not in the model's vocabulary.
    """
    from lit_llm.interop import load_tokenizer

    tokenizer = load_tokenizer(folder)
    if tokenizer.digest == base.digest:
        return tokenizer
    if tokenizer.vocab_size > (config.vocab_size or 0):
        raise UserError(
            f"adapter {name} ({folder}) has a tokenizer of {tokenizer.vocab_size} tokens, and its base has "
            f"{config.vocab_size}"
        )
    for index in range(min(tokenizer.vocab_size, base.vocab_size)):
        one, other = tokenizer.token_bytes(index), base.token_bytes(index)
        if one != other:
            raise UserError(
                f"adapter {name} ({folder}) is for another vocabulary than its base: token {index} is {one!r} there "
                f"and {other!r} in the base"
            )
    return tokenizer


def hold_in_memory(model: Decoder) -> None:
    """Copy the tensors that may be mapped to a file, so that the model stays what it is whatever comes of the file."""
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
