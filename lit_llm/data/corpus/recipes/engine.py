"""A recipe made into a corpus: read, put through the steps, written, reported, each once whatever happens."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lit_llm.config import UserError, to_plain
from lit_llm.config.files import replace_file, write_json
from lit_llm.config.lock import locked
from lit_llm.config.recipe import RecipeConfig
from lit_llm.config.yaml_text import write_yaml
from lit_llm.data.cleaning.registry import is_corpus_step
from lit_llm.data.corpus.recipes.chain import Link, check_steps, document_step, forget_steps
from lit_llm.data.corpus.recipes.cluster import ClusterWorkers
from lit_llm.data.corpus.recipes.result import Contents, make_result, publish
from lit_llm.data.corpus.recipes.stages import StageRunner, stages_of
from lit_llm.data.corpus.recipes.tallies import Tally, load_record
from lit_llm.data.corpus.recipes.tasks import forget_sources
from lit_llm.data.corpus.recipes.workers import LocalWorkers, Workers, available_cores
from lit_llm.data.corpus.recipes.workspace import OpenSource, Workspace, list_sources

_LIBRARIES = ("lit_llm", "pyarrow", "fastwarc", "resiliparse", "ftfy", "py3langid", "rensa", "pydivsufsort", "xxhash")


@dataclass(frozen=True)
class CleanCorpus:
    """A corpus that a recipe has made.

    Attributes:
        folder: Has documents/, recipe.yaml and report.json.
        report: What report.json says.
        is_new: False where it was there already.
    """

    folder: Path
    report: dict[str, Any]
    is_new: bool


def make_corpus(config: RecipeConfig) -> CleanCorpus:
    """Makes the corpus of a recipe, or what is left to do of it.

    Raises:
        UserError: a source is missing, an option is impossible, the output is in use or holds something else, nothing
            is left of the documents, the disk is full, a worker was killed.
    """
    sources = list_sources(config)
    workspace = Workspace(config, sources)
    workspace.refuse_foreign()
    try:
        workspace.output.mkdir(parents=True, exist_ok=True)
        with locked(workspace.output, "choose another output"):
            if config.overwrite:
                workspace.clear()
            if workspace.is_finished():
                return CleanCorpus(workspace.output, load_record(workspace.report), False)
            workspace.refuse_other_sources()
            check_steps(workspace.links[1:])
            for line in workspace.begin():
                print(line, file=sys.stderr)
            try:
                with _workers(config, workspace) as workers:
                    _say(config, workspace, sources, workers)
                    report = _make(config, workspace, sources, workers)
            finally:
                forget_steps()
                forget_sources()
            return CleanCorpus(workspace.output, report, True)
    except OSError as error:
        if error.errno is None:
            raise
        again = "; what is finished is kept: make room and run the same command again"
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        where = error.filename or workspace.output
        raise UserError(f"{where}: {os.strerror(error.errno)}{again if is_full else ''}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; what is finished stays in {workspace.work}, and the same command goes on from there"
        ) from None


@contextlib.contextmanager
def _workers(config: RecipeConfig, workspace: Workspace) -> Iterator[Workers]:
    if config.executor == "datatrove":
        is_slurm = config.cluster.partition is not None
        number = config.num_workers or (None if is_slurm else available_cores())
        yield ClusterWorkers(config.cluster, number, workspace.work / "datatrove")
    else:
        with LocalWorkers(config.num_workers or available_cores()) as workers:
            yield workers


def _say(config: RecipeConfig, workspace: Workspace, sources: list[OpenSource], workers: Workers) -> None:
    """Prints what is to be done, in a line."""
    from rich.filesize import decimal

    units = [unit for source in sources for unit in source.units]
    sizes = [unit.size_bytes for unit in units]
    files = sum(len({unit.name for unit in source.units}) for source in sources)
    size = "" if None in sizes else f", {decimal(sum(size or 0 for size in sizes))}"
    steps = ", ".join(link.name for link in workspace.links[1:]) or "no step"
    count = "1 process" if workers.number == 1 else f"{workers.number:,} processes"
    names = ", ".join(source.config.name for source in sources)
    print(
        f"{names} ({files:,} {'file' if files == 1 else 'files'}{size}): {steps}; by {count} into {config.output}",
        file=sys.stderr,
    )


def _make(config: RecipeConfig, workspace: Workspace, sources: list[OpenSource], workers: Workers) -> dict[str, Any]:
    runner = StageRunner(config, workspace, sources, workers)
    before: Link | None = None
    stages = stages_of(workspace.links)
    for stage in stages:
        runner.run(stage, before)
        before = stage.end
    contents = make_result(runner, workspace, stages[-1].end, round(config.part_mib * 2**20))
    plain = to_plain(config)
    recipe = {
        "sources": plain["sources"],
        "steps": [{link.name: to_plain(link.options)} for link in workspace.links[1:]],
        "part_mib": plain["part_mib"],
    }
    report = {"command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), "recipe": recipe}
    report |= _report(workspace, sources, runner, contents)
    publish(workspace)
    replace_file(workspace.output / "recipe.yaml", write_yaml(recipe))
    write_json(workspace.report, report)
    if config.keep == "stages":
        runner.forget(stages[-1].links)
    return report


def _report(workspace: Workspace, sources: list[OpenSource], runner: StageRunner, contents: Contents) -> dict[str, Any]:
    return {
        "made_from": workspace.digest,
        "versions": _versions(),
        "sources": [
            {
                "name": source.config.name,
                "path": source.config.path,
                "description": source.description,
                "units": len(source.units),
                "documents": read.documents,
                "bytes": read.bytes,
                "skipped": read.skipped,
            }
            for source, read in zip(sources, runner.read, strict=True)
        ],
        "steps": [_step_report(link, runner) for link in workspace.links[1:]],
        "corpus": contents.to_plain(),
    }


def _step_report(link: Link, runner: StageRunner) -> dict[str, Any]:
    total = Tally()
    for tally in runner.tallies(link):
        total.merge(tally)
    if not is_corpus_step(link.name):
        facts = getattr(document_step(link), "facts", {})
    else:
        decision = load_record(link.folder / "decision.json")
        facts = decision["facts"]
        total.seconds += decision["seconds"]
        total.counts.update(decision["counts"])
    values = total.to_plain()
    values["seconds"] = round(total.seconds, 3)
    return {"number": link.number, "name": link.name, "options": to_plain(link.options), **values, "facts": facts}


def _versions() -> dict[str, str]:
    versions = {"python": sys.version.split()[0]}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name.replace("_", "-"))
        except metadata.PackageNotFoundError:
            continue
    return versions
