"""Public benchmarks, and tasks of one's own, by lm-evaluation-harness (the package lm-eval)."""

from __future__ import annotations

import io
import logging
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from functools import partialmethod
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_llm.config import BeginToken, UserError
from lit_llm.model import Decoder
from lit_llm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lit_llm.evaluation.harness_model import HarnessModel

# Draws for the standard errors that have no formula. The harness's own 100,000 take minutes and change little.
_BOOTSTRAP_DRAWS = 1000

_log = logging.getLogger(__name__)


def run_tasks(
    model: Decoder,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    *,
    stop_tokens: Sequence[int] = (),
    tasks_folder: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    chat_template: bool = False,
    begin_token: BeginToken = "auto",
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Measure a model on tasks of lm-evaluation-harness.

    How many texts were cut to fit the model's context, and which tasks keep their own number of examples, is logged as
    a warning.

    Args:
        model: a language model.
        tokenizer: its own.
        tasks: names of tasks, groups or tags.
        stop_tokens: ids that end a text, besides the tokenizer's.
        tasks_folder: folder of further task files; where they are all that is needed, the harness's own, whose reading
            takes ten seconds or more, are not looked at.
        num_fewshot: examples in each prompt, where a task does not insist on none; None leaves it to the tasks.
        limit: documents of each task at most.
        batch_size: rows of a pass, and texts written at once.
        chat_template: prompts become conversations, examples as turns of their own.
        begin_token: whether contexts begin with the begin token; see `HarnessModel`.
        seed: of the choice of examples, and of texts that are drawn.

    Returns:
        For each task and each group that has any, its metrics by name, and beside each metric its standard error as
        `<metric>_stderr`, where there is one. A metric of answers that were filtered is named `<metric>,<filter>`.

    Raises:
        UserError: lm-eval is not installed; a task is not known, asked for twice, cannot be loaded with its data set,
            or needs what is not here; an option does not suit the tasks, the model or its tokenizer.
    """
    _check_options(tasks, tasks_folder, num_fewshot, limit)
    _require_library()
    from lm_eval.evaluator import evaluate

    from lit_llm.evaluation.harness_model import HarnessModel

    adapter = HarnessModel(
        model, tokenizer, stop_tokens=stop_tokens, batch_size=batch_size, begin_token=begin_token, seed=seed
    )
    if chat_template:
        adapter.chat_format  # noqa: B018  that there is none should be known before data sets are loaded
    with _seeded(seed), _quiet():
        loaded = _load(tasks, tasks_folder)
        kept = _set_examples(loaded["tasks"], num_fewshot, seed)
        found = evaluate(
            adapter,
            loaded,
            limit=limit,
            bootstrap_iters=_BOOTSTRAP_DRAWS,
            log_samples=False,
            apply_chat_template=chat_template,
            fewshot_as_multiturn=chat_template,
        )
    _tell(adapter, kept)
    return _metrics(found["results"])


def _require_library() -> None:
    try:
        import lm_eval.api.model  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"tasks need lm-evaluation-harness, which cannot be imported ({error}); pip install 'lit-llm[eval]'"
        ) from None


def _check_options(tasks: Sequence[str], folder: Path | None, num_fewshot: int | None, limit: int | None) -> None:
    for name, value, least in (("num_fewshot", num_fewshot, 0), ("limit", limit, 1)):
        if value is not None and value < least:
            raise UserError(f"{name} is {value}; it must be at least {least}, or null")
    if not tasks:
        raise UserError("there are no tasks to evaluate; name at least one, such as lambada_openai")
    if folder is not None and not folder.is_dir():
        raise UserError(f"tasks_folder {folder}: no such folder; correct the path")
    if folder is not None and not any(folder.rglob("*.yaml")):
        raise UserError(f"tasks_folder {folder} has no task file (.yaml); correct the path, or leave it out")


def _load(names: Sequence[str], folder: Path | None) -> dict[str, dict[str, Any]]:
    """Return the tasks and groups of these names in the form that `lm_eval.evaluator.evaluate` takes."""
    manager = _manager(names, folder)
    unknown = [name for name in names if name not in manager.task_index]
    if unknown:
        near = get_close_matches(unknown[0], manager.all_tasks, n=3)
        hint = f"the nearest are {', '.join(near)}" if near else "lm-eval ls tasks shows them all"
        raise UserError(f"there is no task {unknown[0]!r}; {hint}{_broken_file(folder)}")
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for name in names:
        loaded = _load_one(manager, name)
        twice = tasks.keys() & loaded["tasks"].keys()
        if twice:
            raise UserError(f"task {min(twice)} is asked for twice, the second time by {name}; leave one out")
        tasks.update(loaded["tasks"])
        groups.update(loaded["groups"])
    for name, task in tasks.items():
        _check_needs(name, task)
    return {"tasks": tasks, "groups": groups}


def _manager(names: Sequence[str], folder: Path | None) -> Any:
    """Return the harness's TaskManager, without the harness's own tasks if the folder has all that is needed."""
    from lm_eval.tasks import TaskManager

    if folder is not None:
        manager = TaskManager(include_path=folder, include_defaults=False)
        if all(_is_complete(manager.task_index, name) for name in names):
            return manager
    return TaskManager(include_path=folder)


def _is_complete(index: dict[str, Any], name: str) -> bool:
    """Whether a task, or all that a group consists of, is in the index."""
    if name not in index:
        return False
    members = (index[name].cfg or {}).get("task")
    if not isinstance(members, list):
        return True
    named = (member.get("task", member.get("group")) if isinstance(member, dict) else member for member in members)
    return all(_is_complete(index, member) for member in named)


def _broken_file(folder: Path | None) -> str:
    """Return what is wrong with a task file; the harness itself silently passes over those that it cannot read."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in sorted(folder.rglob("*.yaml")) if folder is not None else ():
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:  # a reader of YAML fails in many ways
            return f"; {path} cannot be read ({_reason(error)})"
    return ""


def _load_one(manager: Any, name: str) -> dict[str, dict[str, Any]]:
    from datasets.exceptions import DatasetsError

    try:
        return manager.load([name])
    except ImportError as error:
        raise UserError(f"task {name} needs what is not installed ({_reason(error)}); install it with pip") from error
    except (OSError, DatasetsError) as error:
        raise UserError(
            f"task {name}: its data cannot be loaded ({_reason(error)}); without a network, write a task file that "
            "names local data and give its folder as tasks_folder"
        ) from error
    except Exception as error:  # a task is code and data of others
        raise UserError(f"task {name} cannot be loaded ({type(error).__name__}: {_reason(error)})") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _check_needs(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise UserError(f"task {name} runs programs that the model writes, which is not done here; leave it out")
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"task {name} has images or sound, which the model cannot read; leave it out")


def _set_examples(tasks: dict[str, Any], wanted: int | None, seed: int) -> list[str]:
    """Set the number of examples in each task's prompts, and their seed; returns the tasks that insist on none."""
    kept = []
    for name, task in tasks.items():
        own = task.get_config("num_fewshot")
        if wanted and own == 0:
            kept.append(name)
        count = own if wanted is None or own == 0 else wanted
        task.set_config("num_fewshot", count or 0)
        task.set_fewshot_seed(seed)
        sampler = getattr(task, "sampler", None)
        if count and sampler is not None:
            # a document is no example for itself
            others = len(sampler.fewshot_docs()) - (task.fewshot_cfg.split == task.config.test_split)
            if count > others:
                raise UserError(f"task {name} has {max(others, 0)} examples to show, and num_fewshot is {count}")
    return kept


def _tell(adapter: HarnessModel, without_examples: Sequence[str]) -> None:
    if without_examples:
        _log.warning("num_fewshot does not apply to %s: always without examples", ", ".join(without_examples))
    if adapter.cut:
        _log.warning(
            "%d of %d texts were cut at their left to fit the model's context of %d tokens",
            adapter.cut,
            adapter.requests,
            adapter.max_length,
        )


def _metrics(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the harness's results with plain names in place of `<metric>,<filter>` and `<metric>_stderr,<filter>`."""
    found: dict[str, dict[str, float]] = {}
    for task, values in results.items():
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if not comma or not isinstance(value, Real):  # an error that has no value is "N/A"
                continue
            plain, is_error = metric.removesuffix("_stderr"), metric.endswith("_stderr")
            name = plain if kind == "none" else f"{plain},{kind}"
            found.setdefault(task, {})[f"{name}_stderr" if is_error else name] = float(value)
    return found


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global random streams, from which some tasks draw as they are loaded, and restore them afterwards."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)  # it takes no more bits
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness without its notes, its prints on stdout, its processes for standard errors, and, where stderr is not
    a terminal, its progress bars."""
    from tqdm import tqdm

    logger, bar, processes = logging.getLogger("lm_eval"), tqdm.__init__, os.environ.get("DISABLE_MULTIPROC")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tqdm.__init__ = partialmethod(bar, disable=None)  # its own mark for "only on a terminal"
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        tqdm.__init__ = bar
        if processes is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = processes
