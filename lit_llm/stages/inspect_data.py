"""Looking at windows: of shards, and of the batch that a step of a run was computed on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lit_llm.config import InspectConfig, PretrainConfig, RemoteConfig, UserError, from_plain
from lit_llm.config.data import LONGEST_DEFAULT
from lit_llm.data.corpus.remote_shards import load_tokenizer, open_split
from lit_llm.data.pretraining.data_module import TokenDataModule
from lit_llm.data.pretraining.inspection import Window, window_of_split, windows_of_samples
from lit_llm.data.pretraining.shard_folder import require_shards
from lit_llm.tokenizer import Tokenizer
from lit_llm.training.checkpoint_files import saved_checkpoints
from lit_llm.training.checkpoint_io import read_checkpoint
from lit_llm.training.curves import METRICS_FILE
from lit_llm.training.run_record import recorded_configurations
from lit_llm.training.step_lines import read_step_lines


@dataclass
class Inspection:
    """Windows, and what reads them."""

    title: str
    """What they are, in words."""
    windows: list[Window]
    """The windows."""
    tokenizer: Tokenizer
    """The tokenizer of their shards."""


def inspect_data(config: InspectConfig) -> Inspection:
    """Find the windows that are asked for.

    Raises:
        UserError: there are no such shards, window, run, step or row.
    """
    config.require_place()
    return _of_folder(config, config.data) if config.data is not None else _of_run(config, Path(str(config.run)))


def _of_folder(config: InspectConfig, path: str) -> Inspection:
    split = config.split or "train"
    require_shards(path)
    source = open_split(path, split, RemoteConfig())
    if source is None:
        raise UserError(f"{path} has no {split} split; give another --split")
    length = config.length or min(LONGEST_DEFAULT, max(1, len(source)))
    try:
        window = window_of_split(source, config.window or 0, length)
    except IndexError as error:
        raise UserError(f"{source.folder} has no {error} of {length:,} tokens each; give a lower --window") from None
    tokenizer = load_tokenizer(path, RemoteConfig())
    return Inspection(f"{source.folder}, {length:,} tokens each", [window], tokenizer)


def _of_run(config: InspectConfig, folder: Path) -> Inspection:
    step = config.step or 1
    data, first = data_at_step(folder, step)
    size = data.config.batch_size
    rows = range(size)
    if config.row is not None:
        if config.row >= size:
            raise UserError(f"row {config.row} of a batch of {size}; rows are 0 to {size - 1}")
        rows = range(config.row, config.row + 1)
    windows = windows_of_samples(data, range(first + rows.start, first + rows.stop))
    tokenizer = load_tokenizer(data.config.folders[0], data.config.remote)
    title = f"{folder}, step {step:,}{_ahead(folder, step)}: {size} rows of {data.config.length:,} tokens"
    return Inspection(title, windows, tokenizer)


def _ahead(folder: Path, step: int) -> str:
    """What is to be said of a step that a run has not done, such as the one that it failed at."""
    lines = read_step_lines(folder / METRICS_FILE)
    last = max([0, *saved_checkpoints(folder / "checkpoints"), *(line["step"] for line in lines[-1:])])
    if step <= last:
        return ""
    return f" (its curves and checkpoints end at step {last:,}; this is what it would be computed on)"


def data_at_step(folder: Path, step: int) -> tuple[TokenDataModule, int]:
    """The data of a pretraining run as it was at a step, and the first sample of that step's batch.

    A run that has gone on with other settings is followed from its first step on, as it was resumed.

    Args:
        folder: of the run.
        step: from 1.

    Raises:
        UserError: this is no pretraining run, it has no such step, or its shards are gone or are others by now.
    """
    data: TokenDataModule | None = None
    begin, samples = 0, 0
    for first_step, values in recorded_configurations(folder):
        if data is not None and first_step >= step:
            break
        try:
            config = from_plain(PretrainConfig, values)
        except UserError as error:
            raise UserError(f"{folder} is no pretraining run of this version ({error})") from None
        for path in config.data.folders:
            require_shards(path)
        following = TokenDataModule(config.data, None, config.seed, config.trainer.max_steps)
        if data is not None:
            samples += (first_step - begin) * data.config.batch_size
            data.samples_consumed = samples
            following.load_state_dict(data.state_dict())
        data, begin, last_step = following, first_step, config.trainer.max_steps
    if data is None or step > last_step:
        raise UserError(f"{folder} has no step {step:,}: its steps are 1 to {0 if data is None else last_step:,}")
    _check_shards(folder, data)
    return data, samples + (step - 1 - begin) * data.config.batch_size


def _check_shards(folder: Path, data: TokenDataModule) -> None:
    """Refuse shards that are not those that the run was trained on, as its newest checkpoint says."""
    saved = saved_checkpoints(folder / "checkpoints")
    if not saved:
        return
    checkpoint = read_checkpoint(saved[max(saved)], keys=(), mmap=True)
    trained_on = checkpoint.get("TokenDataModule", {}).get("fingerprint", {}).get("train_digests")
    if trained_on not in (None, data.fingerprint["train_digests"]):
        raise UserError(
            f"{', '.join(data.config.folders)} does not hold what {folder} was trained on any more: the shards have "
            "been prepared anew"
        )
