"""The shards that a model was trained on, as its runs say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lit_llm.config import UserError
from lit_llm.config.remote import is_url
from lit_llm.data.corpus.shards import ShardedTokens
from lit_llm.data.pretraining.shard_folder import require_shards
from lit_llm.evaluation.token_windows import ShardSource
from lit_llm.stages.loading import run_of
from lit_llm.tokenizer import Tokenizer

_MOST_RUNS = 20


def shards_of_run(model: str) -> list[str]:
    """Find the folders of shards that the run of a model has read, or the run that it began from.

    Args:
        model: the model folder, or a run folder.

    Raises:
        UserError: there is no run, or none that has read shards that are still there; says so.
    """
    for _ in range(_MOST_RUNS):
        folder = run_of(model)
        if folder is None:
            break
        options = _options(folder)
        data = options.get("data") or {}
        mix = (data.get("mix") or {}).get("corpora") or {}
        paths = [str(each["path"]) for each in mix.values()] if mix else [str(path) for path in data.get("paths") or []]
        if "schedule" in options and "lora" not in options:
            gone = [path for path in paths if not is_url(path) and not Path(path, "train", "manifest.json").is_file()]
            if gone:
                raise UserError(f"the run {folder} has read {gone[0]}, where no shards are now; give shards")
            if paths:
                return paths
        if not options.get("init_from"):
            break
        model = str(options["init_from"])
    raise UserError(f"{model} is in no folder of a run that says on which shards it was trained; give shards")


def _options(folder: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{folder / 'config.yaml'} cannot be read ({type(error).__name__}); give shards") from error
    return values if isinstance(values, dict) else {}


def open_shards(folders: list[str], tokenizer: Tokenizer) -> dict[str, list[ShardedTokens]]:
    """Open the shards of each split, "train" and "validation"; of the second as far as there are some.

    Raises:
        UserError: a folder has no shards of training text, or those of another tokenizer.
    """
    found: dict[str, list[ShardedTokens]] = {"train": [], "validation": []}
    for folder in folders:
        try:
            require_shards(folder)
        except UserError as error:
            raise UserError(str(error).replace("data.paths", "shards")) from error
        for split, sources in found.items():
            if split == "train" or is_url(folder) or (Path(folder) / split / "manifest.json").is_file():
                sources.append(ShardSource(folder, split).tokens)
                sources[-1].check_tokenizer(tokenizer)
    return found
