"""The folder of a run, and the checkpoint in it that a run goes on from.

Several ranks may run the script at once, before they can talk to each other. So rank 0 alone refuses, deletes and
makes; nobody touches a checkpoint before the ranks are connected; and while they are not, the others tell by the same
names in the folder only *whether* there is a checkpoint. Which one it is rank 0 decides, who alone reads it through,
and the strategy takes rank 0's path on every rank when it loads.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L

from lit_llm.config import RunConfig, UserError, flatten, to_plain
from lit_llm.config.lock import locked
from lit_llm.config.notices import is_first_process
from lit_llm.distributed.ranks import gather
from lit_llm.training.checkpoint_files import damage, newest_whole, saved_checkpoints

_FOLDERS = (
    *("checkpoints", "tensorboard", "csv", "wandb"),
    *("model", "adapter", "replay", "profile", "flight_recorder"),
)
_FILES = ("metrics.jsonl", "samples.jsonl", "report.html", "report.md")
KEPT_CONFIG = re.compile(r"config\.(\d+)\.yaml")
"""Names of the configurations that a run had before it went on with another one."""
# where an earlier run lies until the one that takes its place has begun, and the file that says that all of it is there
_REPLACED, _IS_WHOLE = ".replaced", ".whole"
# beginning of the folder's name from which it is deleted
_DELETED = ".deleted-"
_INSTEAD = "give another --run_name"
# options that may name a folder of another run
_READ_FROM = ("init_from", "reference_model", "critic_from", "rewards", "lora.adapter", "data.paths")


@contextmanager
def run_folder(config: RunConfig) -> Iterator[None]:
    """Make the run folder, and hold it while the block runs; refuse to mix two runs.

    What `overwrite` replaces is deleted once the new run has begun to train, and put back where it never does.

    Raises:
        UserError: another process is at work in it; it already holds a run and neither `ckpt_path` nor `overwrite`
            says what to do with that; `overwrite` would delete what this run reads; or there is nothing to resume.
    """
    if not is_first_process():
        yield
        return
    if config.ckpt_path == "last" and not saved_checkpoints(config.folder / "checkpoints"):
        raise _nothing_to_resume(config)
    config.folder.mkdir(parents=True, exist_ok=True)
    with locked(config.folder, _INSTEAD):
        for leftover in config.folder.glob(f"{_DELETED}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        _put_back(config.folder)
        try:
            _clear(config)
            yield
        finally:
            _put_back(config.folder)


def put_back_replaced(config: RunConfig) -> None:
    """Put back what a start with `overwrite` has set aside that was killed before it trained.

    To be called before anything is read of an earlier run.

    Raises:
        UserError: another process is at work in the folder, or a part of the run cannot be moved.
    """
    if is_first_process() and (config.folder / _REPLACED).is_dir():
        with locked(config.folder, _INSTEAD):
            _put_back(config.folder)


def forget_replaced(folder: Path) -> None:
    """Delete the run in whose place another has begun; from here on nothing puts it back."""
    if (folder / _REPLACED).is_dir():
        _delete(folder, [folder / _REPLACED])


def _put_back(folder: Path) -> None:
    """Put back the run whose place another was to take, which has not begun."""
    replaced = folder / _REPLACED
    if not replaced.is_dir():
        return
    if (replaced / _IS_WHOLE).exists():  # else what is in the folder is the rest of that run
        _delete(folder, _left_in(folder))
        (replaced / _IS_WHOLE).unlink()
    for path in replaced.iterdir():
        _move(path, folder)
    replaced.rmdir()


def _clear(config: RunConfig) -> None:
    """Take an earlier run away, or refuse to; leave it alone where this run goes on with it."""
    folder = config.folder
    if config.overwrite:
        _check_not_read(config)
        (folder / _REPLACED).mkdir()
        for path in _left_in(folder):
            _move(path, folder / _REPLACED)
        (folder / _REPLACED / _IS_WHOLE).touch()
    elif (folder / "config.yaml").exists() and not _goes_on_here(config):
        if not _has_results(folder):
            _delete(folder, _left_in(folder))
            print(f"{folder} holds a run that ended before its first checkpoint; it begins again", file=sys.stderr)
            return
        steps = list(saved_checkpoints(folder / "checkpoints"))
        state = "a finished run" if (folder / "model").exists() else "a half-finished run"
        where = f"at step {steps[-1]}" if steps else "without a checkpoint"
        on = "--ckpt_path last goes on with it, " if steps else ""
        raise UserError(
            f"{folder} already holds {state} {where}: {on}--overwrite true starts again, --run_name NAME starts another"
        )


def _goes_on_here(config: RunConfig) -> bool:
    """Tell whether the run goes on from a checkpoint of its own folder."""
    if config.ckpt_path in (None, "last", "last_or_begin"):
        return config.ckpt_path is not None
    return Path(str(config.ckpt_path)).resolve().is_relative_to(config.folder.resolve())


def _has_results(folder: Path) -> bool:
    """Tell whether a run folder holds anything that took time to make: a checkpoint, even set aside, or a model."""
    # names that begin with a dot are those of checkpoints that were not written to the end
    checkpoints = (path for path in (folder / "checkpoints").glob("*") if not path.name.startswith("."))
    return any(checkpoints) or any((folder / name).exists() for name in ("model", "adapter", "report.md"))


def _check_not_read(config: RunConfig) -> None:
    """Refuse to delete what the run begins with.

    Raises:
        UserError: names the option.
    """
    folder, options = config.folder.resolve(), flatten(to_plain(config))
    for name in _READ_FROM:
        value = options.get(name)
        for each in value if isinstance(value, list) else [value]:
            if not isinstance(each, str) or not Path(each).resolve().is_relative_to(folder):
                continue
            inside = Path(each).resolve().relative_to(folder).parts
            if not inside or inside[0] in _FOLDERS:
                raise UserError(
                    f"{name} {each} is in {config.folder}, which --overwrite true deletes; give another --run_name"
                )


def _left_in(folder: Path) -> list[Path]:
    """List all that a run leaves in its folder, and nothing that its user may have put there."""
    named = (folder / name for name in ("config.yaml", *_FOLDERS, *_FILES))
    kept = (path for path in folder.glob("config.*.yaml") if KEPT_CONFIG.fullmatch(path.name))
    return [*kept, *(path for path in named if path.exists())]


def _delete(folder: Path, paths: list[Path]) -> None:
    """Delete what is in a run folder. It is out of the way at once, even where some of it cannot be deleted."""
    away = Path(tempfile.mkdtemp(prefix=_DELETED, dir=folder))
    for path in paths:
        try:
            path.rename(away / path.name)
        except OSError:  # as for another file system that is mounted there
            shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(away, ignore_errors=True)
    for path in (away, *paths):
        if path.exists():
            print(f"warning: cannot delete {path}, which is left of the run before", file=sys.stderr)


def _move(path: Path, folder: Path) -> None:
    try:
        path.rename(folder / path.name)
    except OSError as error:
        raise UserError(
            f"cannot move {path} into {folder} ({error.strerror}); make it yours to move, or give another --run_name"
        ) from error


def _nothing_to_resume(config: RunConfig) -> UserError:
    return UserError(
        f"there is nothing to resume: {config.folder} has no checkpoint; --ckpt_path last_or_begin begins where a run "
        "was stopped before its first"
    )


def checkpoint_to_resume(config: RunConfig) -> str | None:
    """Find the checkpoint that `ckpt_path` means; None for a start from step 0.

    "last_or_begin" in a folder without a checkpoint starts from the beginning: a run killed before its first save had
    nothing to lose. A damaged checkpoint is named on stderr and the one before is taken.

    On another rank than the first the path only says that there is one.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or all of the run's are.
    """
    if config.ckpt_path is None:
        return None
    if config.ckpt_path in ("last", "last_or_begin"):
        folder = config.folder / "checkpoints"
        if not is_first_process():
            saved = list(saved_checkpoints(folder).values())
            return str(saved[-1]) if saved else None
        whole = newest_whole(folder)
        if whole is None and config.ckpt_path == "last":
            raise _nothing_to_resume(config)
        return None if whole is None else str(whole)
    if not Path(config.ckpt_path).exists():
        raise UserError(f"there is no checkpoint {config.ckpt_path}; --ckpt_path last takes the newest of the run")
    problem = damage(Path(config.ckpt_path)) if is_first_process() else None
    if problem is not None:
        raise UserError(f"{config.ckpt_path} is not a whole checkpoint ({problem}); --ckpt_path last takes one that is")
    return config.ckpt_path


def is_finished(config: RunConfig) -> bool:
    """Tell whether a run that is to go on is finished: its last step is saved, its model and report written.

    If so, a line on stderr says it.

    Every rank reads the checkpoint through, as they cannot talk yet and have to agree.
    """
    if config.ckpt_path not in ("last", "last_or_begin"):
        return False
    saved = saved_checkpoints(config.folder / "checkpoints")
    step = max(saved, default=-1)
    if step < config.trainer.max_steps or not is_written(config, step) or damage(saved[step]) is not None:
        return False
    if is_first_process():
        longer = f"a larger {_length_option(config)} goes on, with --resume_changed true where the schedule has decayed"
        print(f"{config.folder} is finished at step {step}; {longer}", file=sys.stderr)
    return True


def is_written(config: RunConfig, step: int) -> bool:
    """Tell whether model folder, report and the checkpoint of `step` are there, the report not older than that."""
    report = config.folder / "report.md"  # the last thing that a run writes
    checkpoint = saved_checkpoints(config.folder / "checkpoints").get(step)
    if checkpoint is None or not report.is_file() or not (config.folder / "model").is_dir():
        return False
    return report.stat().st_mtime_ns >= checkpoint.stat().st_mtime_ns


def _length_option(config: RunConfig) -> str:
    """Name the option that sets the length of the run."""
    if config.trainer.max_tokens is not None:
        return "--trainer.max_tokens"
    return "--epochs" if getattr(config, "epochs", None) is not None else "--trainer.max_steps"


class SameStart(L.Callback):
    """Stops every rank where some see a checkpoint to go on from and others, on another machine, do not.

    Args:
        resume_from: what `checkpoint_to_resume` has returned here.
    """

    def __init__(self, resume_from: str | None) -> None:
        self.resume_from = resume_from

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compare what the ranks see, at the first moment at which they are connected.

        Raises:
            UserError: they disagree.
        """
        found = gather(self.resume_from is not None)
        if len(set(found)) > 1:
            blind = [number for number, one in enumerate(found) if one is not found[0]]
            raise UserError(
                f"rank {blind[0]} sees other checkpoints than rank 0; output_root must be on a file system that all "
                "machines share"
            )
