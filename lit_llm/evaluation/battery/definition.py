"""Batteries as they are given: the packaged ones by name, the user's own by file; and where their tasks' files are."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from lit_llm.config import UserError
from lit_llm.config.battery import BatteryTask
from lit_llm.config.serialization import from_plain, shown
from lit_llm.config.yaml_text import read_yaml

_PACKAGE = "package:"


@dataclass(frozen=True)
class LocatedTask:
    """A task whose files are there.

    Attributes:
        task: what is asked.
        paths: the files of its questions; none for reasoning_gym, which makes them.
        folder: where its shots_path begins.
    """

    task: BatteryTask
    paths: tuple[Path, ...]
    folder: Path


def packaged_batteries() -> list[str]:
    """The names of the batteries that come with the package."""
    here = files("lit_llm.evaluation.battery")
    return sorted(entry.name.removesuffix(".yaml") for entry in here.iterdir() if entry.name.endswith(".yaml"))


def open_batteries(batteries: str, data: str | None = None, tasks_wanted: str | None = None) -> list[LocatedTask]:
    """Read batteries and find the files of their tasks.

    Args:
        batteries: base, chat, code, or YAML files, separated by commas.
        data: folder that the paths of tasks begin at; None: the folder of the YAML file.
        tasks_wanted: names of the tasks to take, separated by commas; None: all.

    Raises:
        UserError: a battery or a file is not there, cannot be read or says something impossible; or a name is given
            twice, or is no task's.
    """
    if data is not None and not Path(data).is_dir():
        raise UserError(f"battery_data {data}: no such folder; correct the path")
    tasks: dict[str, tuple[BatteryTask, Path | None, str]] = {}
    only = _names(tasks_wanted or "")
    for name in _names(batteries):
        found, folder = _read(name)
        for task in found:
            if task.name in tasks:
                raise UserError(f"battery {name}: task {task.name} is there twice; rename one of them")
            tasks[task.name] = task, folder if data is None else Path(data), name
    unknown = [name for name in only if name not in tasks]
    if unknown:
        raise UserError(f"battery_tasks: there is no task {unknown[0]!r}; known are {', '.join(tasks)}")
    chosen = [entry for name, entry in tasks.items() if not only or name in only]
    return [_locate(task, folder, name, [each.name for each, _, _ in chosen]) for task, folder, name in chosen]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _read(name: str) -> tuple[list[BatteryTask], Path | None]:
    """Read one battery; its own folder is None for a packaged one."""
    if name in packaged_batteries():
        text, folder = (files("lit_llm.evaluation.battery") / f"{name}.yaml").read_text(encoding="utf-8"), None
    else:
        path = Path(name)
        if not path.is_file():
            known = ", ".join(packaged_batteries())
            raise UserError(f"battery {name}: neither a file nor a packaged one; those are {known}")
        try:
            text, folder = path.read_text(encoding="utf-8"), path.parent
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"battery {name} cannot be read ({' '.join(str(error).split())})") from error
    return _tasks(name, text), folder


def _tasks(name: str, text: str) -> list[BatteryTask]:
    try:
        content: Any = read_yaml(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"battery {name} is no YAML ({' '.join(str(error).split())[:200]})") from error
    entries = content.get("tasks") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"battery {name} has no tasks: a list under the key tasks, each with name, form and paths")
    if unknown := [key for key in content if key not in ("tasks", "description")]:
        raise UserError(f"battery {name} has {shown(unknown[0])}; known are tasks and description")
    return [_task(name, number, entry) for number, entry in enumerate(entries, 1)]


def _task(name: str, number: int, entry: dict[str, Any]) -> BatteryTask:
    own_name = entry.get("name", number)
    is_plain = isinstance(own_name, str) and own_name.isprintable()
    called = f"battery {name}, task {own_name if is_plain else shown(own_name)}"
    for needed in ("name", "form"):
        if needed not in entry:
            raise UserError(f"{called} has no {needed}; each task has name, form and paths")
    if isinstance(entry.get("paths"), str):
        entry = {**entry, "paths": [entry["paths"]]}
    try:
        return from_plain(BatteryTask, entry)
    except UserError as error:
        message = str(error).removeprefix(f"task {own_name}: ").replace("BatteryTask", "a task")
        raise UserError(f"{called}: {message}") from error


def _locate(task: BatteryTask, folder: Path | None, battery: str, names: Sequence[str]) -> LocatedTask:
    if not task.paths:
        return LocatedTask(task, (), folder or Path())
    for pattern in task.paths:
        try:
            found = _found(pattern, folder)
        except (OSError, ValueError, NotImplementedError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(
                f"battery {battery}: task {task.name}: paths has {shown(pattern)}, which is neither a path nor a "
                f"pattern ({why}); correct it"
            ) from error
        if found:
            return LocatedTask(task, tuple(found), folder or Path())
    source = f"; it can be had from {task.source}" if task.source else ""
    others = [name for name in names if name != task.name]
    without = f", or leave the task out with --battery_tasks {','.join(others)}" if others else ""
    in_folder = "give its folder with --battery_data" if folder is None else f"it is not in {folder}"
    raise UserError(
        f"battery {battery}: task {task.name} needs {' or '.join(task.paths)}; {in_folder}{source}{without}"
    )


def _found(pattern: str, folder: Path | None) -> list[Path]:
    if pattern.startswith(_PACKAGE):
        package, _, inside = pattern.removeprefix(_PACKAGE).partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        roots = (spec.submodule_search_locations or []) if spec else []
        return [path for root in roots if (path := Path(root) / inside).is_file()][:1]
    if folder is None and not Path(pattern).is_absolute():
        return []
    whole = (folder or Path()) / pattern
    if whole.is_file():
        return [whole]
    top = Path(whole.anchor) if whole.is_absolute() else Path()
    return sorted(path for path in top.glob(str(whole.relative_to(whole.anchor))) if path.is_file())
