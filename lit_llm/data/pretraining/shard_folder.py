"""What a path is that pretraining was given and that holds no shards."""

from __future__ import annotations

import shlex
from glob import has_magic
from pathlib import Path

from lit_llm.config import UserError
from lit_llm.config.remote import is_url
from lit_llm.data.sources.files import content_suffix
from lit_llm.data.sources.rows import ROW_SUFFIXES
from lit_llm.data.sources.text_files import PROSE_SUFFIXES

_TEXT_SUFFIXES = (PROSE_SUFFIXES | ROW_SUFFIXES | {".py", ".html", ".tex", ".csv"}) - {""}
"""Files by which a folder is known to be one of text, unless it is of another kind."""


def require_shards(path: str) -> None:
    """Refuse a path of data.paths that is no folder of shards; what is behind a URL is seen when it is opened.

    Raises:
        UserError: says what is there instead, and what to do with it.
    """
    folder, word = Path(path), shlex.quote(path)
    if is_url(path) or (folder / "train" / "manifest.json").is_file():
        return
    prepare = "experiments/prepare_data.py"
    go_on = f"not shards; go on from its model with --init_from {word}"
    signs = {
        "manifest.json": f"is one split; give the folder above it, {folder.parent}",
        "progress.json": f"has the shards of an interrupted preparation; run {prepare} again, as before",
        "config.yaml": f"is a run, {go_on}",
        "config.json": f"is a model folder, {go_on}",
        "tokenizer.json": f"is a tokenizer, not shards: run {prepare} --corpus.path TEXT --tokenizer {word} --output "
        "SHARDS first, and give --data.paths '[SHARDS]'",
    }
    for name, what in signs.items():
        if (folder / name).is_file():
            raise UserError(f"data.paths {path!r} {what}")
    if path.startswith("hf:") or has_magic(path) or _is_text(folder):
        raise UserError(
            f"data.paths {path!r} is text: run {prepare} --corpus.path {word} --tokenizer TOKENIZER --output SHARDS "
            "first (with a tokenizer of experiments/train_tokenizer.py), and give --data.paths '[SHARDS]'"
        )
    if folder.is_file():
        raise UserError(f"data.paths {path!r} is one shard; give the folder above its split, {folder.parent.parent}")
    raise UserError(
        f"there are no shards at {path}; run {prepare} --output {word} with your tokenizer, or, "
        "for a recipe's shards, the commands at its top"
    )


def _is_text(path: Path) -> bool:
    """Whether a path is a file other than a shard, or a folder with a file that is text by its name."""
    if path.is_file():
        return path.suffix != ".npy"
    return path.is_dir() and any(content_suffix(file) in _TEXT_SUFFIXES for file in path.rglob("*") if file.is_file())
