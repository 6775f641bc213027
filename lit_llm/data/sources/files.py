"""Files by path, folder or glob."""

from __future__ import annotations

import multiprocessing
import os
import platform
import sysconfig
from collections.abc import Iterator
from glob import has_magic
from itertools import takewhile
from pathlib import Path

from lit_llm.config import UserError
from lit_llm.config.notices import tell_once
from lit_llm.data.sources.remote import StoredFile
from lit_llm.data.sources.source import Files

COMPRESSED_SUFFIXES = frozenset({".gz", ".zst", ".bz2"})
"""The suffixes that say how a file is packed, and follow the one that says what is inside."""

# Installed packages, tests, and the generated tables of encodings and pydoc_data: they are no code that people write,
# and so repetitive that a small model learns them first and writes little else.
_STDLIB_EXCLUDED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
)


def find_files(path: str, option: str) -> tuple[Path, list[Path], str]:
    """The files of a path. Links to folders or to nothing are left out, and the first process says so on stderr.

    Args:
        path: A file, a folder, a glob, or "stdlib", the Python standard library.
        option: What gave the path, for the error.

    Returns:
        The folder they are in, the files in the order of their paths, and what they are in words.

    Raises:
        UserError: the path leads to no file, or to a corpus that is not finished.
    """
    try:
        is_file, is_folder = Path(path).is_file(), Path(path).is_dir()
    except OSError as error:
        raise UserError(f"{option} {path!r}: cannot be reached ({os.strerror(error.errno)})") from None
    links: list[Path] = []
    if path == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        files = [file for file in _walk(root, [], _STDLIB_EXCLUDED) if file.suffix == ".py"]
        description = f"the standard library of Python {platform.python_version()}"
    elif is_file:
        return Path(path).parent, [Path(path)], path
    elif is_folder:
        root, description = Path(path), f"{'corpus' if _is_corpus(Path(path)) else 'folder'} {path}"
        files = list(_walk(root, links))
    elif has_magic(path):
        root, description = glob_root(path), f"glob {path}"
        found = root.glob(str(Path(*Path(path).parts[len(root.parts) :])))
        shown = [entry for entry in found if not _hidden(entry.relative_to(root))]
        files = [entry for entry in shown if entry.is_file()]
        links = [entry for entry in shown if entry.is_symlink() and not entry.is_file()]
    else:
        raise UserError(f"{option} {path!r}: no such file, folder or glob (a Hugging Face data set is hf:NAME)")
    if links and multiprocessing.parent_process() is None:
        named = Files()
        for key in sorted(file_key(link, root) for link in links):
            named.add(key)
        tell_once(f"{len(links):,} links that do not lead to a file were left out of {path}: {named}")
    if not files:
        raise UserError(f"{option} {path!r}: no file found there")
    files.sort(key=lambda file: file.relative_to(root).as_posix())
    return root, files, f"{description}, {len(files):,} {'file' if len(files) == 1 else 'files'}"


def content_suffix(path: StoredFile) -> str:
    """The suffix that says what is inside: of x.jsonl.gz, .jsonl."""
    return (Path(path.stem) if path.suffix.lower() in COMPRESSED_SUFFIXES else path).suffix.lower()


def glob_root(pattern: str) -> Path:
    """The folder of a glob that is above its first wild card."""
    return Path(*takewhile(lambda part: not has_magic(part), Path(pattern).parts))


def file_key(file: Path, root: Path) -> str:
    """The path of a file from a root, as valid Unicode: of a name that is no UTF-8, its other bytes as \\xff."""
    return os.fsencode(file.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")


def _walk(folder: Path, links: list[Path], excluded: frozenset[str] = frozenset()) -> Iterator[Path]:
    """The files below `folder`, without hidden ones and folders named in `excluded`; and folders that cannot be listed,
    as if they were files that cannot be read. Links to folders or to nothing are added to `links` instead.

    Of a corpus that a recipe has made these are its documents, and not its reports, nor what steps have left.

    Raises:
        UserError: there is a corpus that is not finished.
    """
    try:
        if _is_corpus(folder):
            folder = folder / "documents"
        elif (folder / "work" / "recipe.json").is_file():
            raise UserError(f"{folder} is a corpus that is not finished; run clean_data with its recipe again")
        entries = [(entry, entry.is_dir(), entry.is_file()) for entry in folder.iterdir() if entry.name[0] != "."]
    except OSError:  # whoever reads the files finds out why
        yield folder
        return
    for entry, is_folder, is_file in entries:
        if is_file:
            yield entry
        elif entry.is_symlink():
            links.append(entry)
        elif is_folder and entry.name not in excluded:
            yield from _walk(entry, links, excluded)


def _is_corpus(folder: Path) -> bool:
    """Whether a recipe has made this folder, see `lit_llm.data.corpus.recipes`."""
    return (folder / "recipe.yaml").is_file() and (folder / "documents").is_dir()


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
