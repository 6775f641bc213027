"""Files by path, folder, glob or name in the Hugging Face hub, and the rows of those that have rows."""

from __future__ import annotations

import json
import platform
import re
import sysconfig
import zlib
from collections.abc import Iterator
from glob import has_magic
from itertools import takewhile
from pathlib import Path
from typing import Any

from lit_llm.config import UserError
from lit_llm.config.json_text import parse_json
from lit_llm.data.text_encoding import counted, open_file, read_lines, require_encoding

ROW_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json", ".parquet"})
"""Of files that hold rows; .gz may follow, but for .parquet."""

# Installed packages, tests, and the generated tables of encodings and pydoc_data: they are no code that people write,
# and so repetitive that a small model learns them first and writes little else.
_STDLIB_EXCLUDED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
)
_PARQUET_ROWS = 1024
_ROW_GAP = re.compile(r"[\s,]*")


def find_files(path: str, option: str) -> tuple[Path, list[Path], str]:
    """The files of a path.

    Args:
        path: A file, a folder, a glob, or "stdlib", the Python standard library.
        option: What gave the path, for the error.

    Returns:
        The folder they are in, the files in the order of their paths, and what they are in words.

    Raises:
        UserError: there is none.
    """
    if path == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        files = [file for file in _walk(root, _STDLIB_EXCLUDED) if file.suffix == ".py"]
        description = f"the standard library of Python {platform.python_version()}"
    elif Path(path).is_file():
        return Path(path).parent, [Path(path)], path
    elif Path(path).is_dir():
        root, description = Path(path), f"folder {path}"
        files = list(_walk(root))
    elif has_magic(path):
        parts = Path(path).parts
        fixed = list(takewhile(lambda part: not has_magic(part), parts))
        root, description = Path(*fixed), f"glob {path}"
        found = root.glob(str(Path(*parts[len(fixed) :])))
        files = [file for file in found if file.is_file() and not _hidden(file.relative_to(root))]
    else:
        raise UserError(f"{option} {path!r}: no such file, folder or glob (a Hugging Face data set is hf:NAME)")
    if not files:
        raise UserError(f"{option} {path!r}: no file found there")
    files.sort(key=lambda file: file.relative_to(root).as_posix())
    return root, files, f"{description}, {len(files):,} {'file' if len(files) == 1 else 'files'}"


def content_suffix(path: Path) -> str:
    """The suffix that says what is inside: of x.jsonl.gz, .jsonl."""
    return (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()


def json_line_rows(path: Path) -> Iterator[tuple[int, Any, int]]:
    """The rows of a .jsonl file: number of the line from 1, value, and bytes that were no UTF-8 and became U+FFFD.

    Raises:
        UserError: a line is no JSON.
    """
    for number, (line, invalid) in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            reason = getattr(error, "msg", error)
            raise UserError(f"{path}:{number}: broken JSON ({reason}); repair or remove the line") from None
        yield number, row, invalid


def json_list_rows(path: Path) -> Iterator[tuple[int, Any, int]]:
    """The rows of a .json file with a list, as `json_line_rows`; replaced bytes are counted with the first.

    Raises:
        UserError: it is no JSON, or no list.
    """
    encoding = require_encoding(path)
    with open_file(path) as file:
        text, invalid = counted(lambda: file.read().decode(encoding, "lit_llm.replace"))
    try:
        rows = parse_json(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: broken JSON ({error.msg}); repair the file") from None
    except ValueError as error:
        raise UserError(f"{path}{_unreadable_row(text)}: broken JSON ({error}); repair the file") from None
    if not isinstance(rows, list):
        raise UserError(f"{path}: not a list of rows; name it .jsonl if it has a row per line, or leave it out")
    for number, row in enumerate(rows, start=1):
        yield number, row, invalid if number == 1 else 0


def _unreadable_row(text: str) -> str:
    """Which row of a list is valid JSON that is not read."""
    decoder, number, begin = json.JSONDecoder(), 1, _ROW_GAP.match(text, text.find("[") + 1).end()
    try:
        while True:
            end = decoder.raw_decode(text, begin)[1]
            parse_json(f"[{text[begin:end]}]")
            number, begin = number + 1, _ROW_GAP.match(text, end).end()
    except (ValueError, RecursionError):
        return f", row {number:,}"


def hub_rows(name: str, subset: str | None, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a Hugging Face data set, streamed.

    Raises:
        UserError: it cannot be loaded.
    """
    import datasets

    try:
        yield from datasets.load_dataset(name, subset, split=split, streaming=True)
    except Exception as error:  # datasets raises whatever its file systems and parsers do
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"hf:{name}: cannot be loaded, split {split!r} ({reason})") from None


def iterate_rows(path: str, option: str) -> Iterator[tuple[str, int, Any]]:
    """All rows of a path: file, number (of the line in .jsonl, else of the row, both from 1), value.

    Args:
        path: A file, a folder or glob (of which files without rows are passed over), or hf:NAME[[:CONFIG]:SPLIT].
        option: What gave the path, for errors.

    Raises:
        UserError: there is no such file or data set, it has no rows, or it is broken.
    """
    if path.startswith("hf:"):
        name, *rest = path.removeprefix("hf:").split(":")
        if not name or len(rest) > 2:
            raise UserError(f"{option} {path!r}: write hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT")
        subset = rest[0] if len(rest) == 2 else None
        for number, row in enumerate(hub_rows(name, subset, rest[-1] if rest else "train"), start=1):
            yield path, number, row
        return
    files = [file for file in find_files(path, option)[1] if _has_rows(file)]
    if not files:
        raise UserError(f"{option} {path!r}: no rows there; give files that end in .json, .jsonl or .parquet")
    for file in files:
        try:
            for number, row in _rows_of(file):
                yield str(file), number, row
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{file}: cannot be read ({error}); repair or remove it") from None


def _has_rows(path: Path) -> bool:
    return content_suffix(path) in ROW_SUFFIXES and (content_suffix(path) != ".parquet" or path.suffix.lower() != ".gz")


def _rows_of(path: Path) -> Iterator[tuple[int, Any]]:
    if content_suffix(path) == ".parquet":
        yield from enumerate(_parquet_rows(path), start=1)
        return
    rows = json_list_rows(path) if content_suffix(path) == ".json" else json_line_rows(path)
    for number, row, invalid in rows:
        if invalid:
            where = "the file" if content_suffix(path) == ".json" else f"row {number}"
            raise UserError(f"{path}, {where}: {invalid} bytes are not UTF-8; write the file again as UTF-8")
        yield number, row


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                yield from batch.to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from None


def _walk(folder: Path, excluded: frozenset[str] = frozenset()) -> Iterator[Path]:
    """The files below `folder`, without hidden ones, folders named in `excluded` and links to folders."""
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if entry.name not in excluded and not entry.is_symlink():
                yield from _walk(entry, excluded)
        elif entry.is_file():
            yield entry


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
