"""Modules that are compiled into a library once, kept on the disk, and called without Python in between."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lit_llm.model
from lit_llm.config import UserError

# what a library holds beside its code are sizes; where tensors lie is told to it when it is loaded
_OPTIONS: dict[str, Any] = {
    "aot_inductor.package_constants_in_so": False,
    "size_asserts": False,
    "cpp.enable_floating_point_contract_flag": "fast",  # let the compiler multiply and add in one instruction
}
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_PLAIN = (bool, int, float, str, type(None))


class AheadOfTime:
    """A module on the CPU as one call of compiled code, which reads the module's own parameters and buffers.

    Args:
        module: takes and gives tensors, or lists of them.
        example: arguments that it is compiled for.
        sizes: for each argument, what varies, as `torch.export.export` takes it.

    Attributes:
        was_kept: whether the library was there already.

    Raises:
        UserError: the folder for libraries is another user's.
    """

    def __init__(self, module: nn.Module, example: Sequence[Any], sizes: Sequence[Any]) -> None:
        path = _folder() / f"{_form(module, example)}.pt2"
        self.was_kept = path.exists()
        loaded = _load(path) if self.was_kept else None
        if loaded is None:
            self.was_kept = False
            _build(path, module, example, sizes)
            loaded = _loader(path)
        # they are read where they are, so they must stay
        self._tensors = dict(module.named_parameters(remove_duplicate=False))
        self._tensors |= dict(module.named_buffers(remove_duplicate=False))
        own = {name: self._tensors[name].detach() for name in loaded.get_constant_fqns()}
        loaded.load_constants(own, False, True, True)  # to the active ones; all of them; which stay ours
        self._run: Callable[[list[Tensor]], list[Tensor]] = loaded.run

    def __call__(self, arguments: list[Tensor]) -> list[Tensor]:
        """Call it with every tensor of the arguments, in order; gives every tensor of the result."""
        return self._run(arguments)


def _build(path: Path, module: nn.Module, example: Sequence[Any], sizes: Sequence[Any]) -> None:
    # another process may be at it, too: each writes a file of its own, and the last one stays
    handle, own = tempfile.mkstemp(suffix=".pt2", dir=path.parent)
    os.close(handle)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch about torch
            program = torch.export.export(module, tuple(example), dynamic_shapes=tuple(sizes), strict=False)
            # a copy of the options, as more are written into it
            torch._inductor.aoti_compile_and_package(program, package_path=own, inductor_configs=dict(_OPTIONS))
        Path(own).replace(path)
    finally:
        Path(own).unlink(missing_ok=True)


def _load(path: Path) -> Any:
    try:
        return _loader(path)
    except RuntimeError:  # cut off by a full disk, or of another library of C++
        return None


def _loader(path: Path) -> Any:
    """Load a library. `aoti_load_package` would first find out by experiments, which take seconds, what the processor
    can do; that is in the library's name."""
    return torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)


def _folder() -> Path:
    """The folder for libraries, beside what torch's compiler keeps.

    Raises:
        UserError: it is another user's.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folder = Path(cache_dir()) / "lit_llm"
    folder.mkdir(parents=True, exist_ok=True)
    # by default it lies in /tmp, where anyone may have made it before
    if hasattr(os, "getuid") and any(each.stat().st_uid != os.getuid() for each in (folder, folder.parent)):
        raise UserError(
            f"{folder} belongs to another user, whose code would be run; set TORCHINDUCTOR_CACHE_DIR to a folder of "
            "your own"
        )
    return folder


def _form(module: nn.Module, example: Sequence[Any]) -> str:
    """Name everything that a library depends on: code, processor, threads, structure, shapes and types."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    form = [
        torch.__version__,
        platform.python_version(),
        torch.get_num_threads(),
        _processor(),
        _code(),
        _OPTIONS,
        [_described(part) for part in module.modules()],
        [(name, _tensor(tensor)) for name, tensor in tensors],
        [_tensor(value) for value in torch.utils._pytree.tree_leaves(example)],
    ]
    return hashlib.sha256(json.dumps(form, default=str).encode()).hexdigest()[:32]


def _tensor(value: Tensor | None) -> Any:
    return None if value is None else (str(value.dtype), list(value.shape), list(value.stride()))


def _described(module: nn.Module) -> Any:
    """The type of a module and its settings: what is neither tensor nor module."""
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}", sorted(
        (name, _setting(value)) for name, value in vars(module).items() if name not in _OF_EVERY_MODULE
    )


def _setting(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, list | tuple):
        return [_setting(each) for each in value]
    if dataclasses.is_dataclass(value):
        return str(value)
    return type(value).__qualname__


@cache
def _processor() -> str:
    """What code is made for: the processor's instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        own = [line for line in lines if line.startswith(("flags", "Features", "model name"))][:2]
    except OSError:
        own = [platform.processor()]
    return "\n".join([platform.machine(), torch.backends.cpu.get_cpu_capability(), *own])


@cache
def _code() -> str:
    """A digest of the source that may come to be compiled."""
    digest = hashlib.sha256()
    for path in [
        *sorted(Path(lit_llm.model.__file__).parent.rglob("*.py")),
        *sorted(Path(__file__).parent.glob("*.py")),
    ]:
        digest.update(path.read_bytes())
    return digest.hexdigest()
