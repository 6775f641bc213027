"""The steps of a recipe in the stages that they are done in, each over all parts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

from lit_llm.config import UserError
from lit_llm.config.progress import progress
from lit_llm.config.recipe import RecipeConfig
from lit_llm.data.cleaning.registry import is_corpus_step
from lit_llm.data.corpus.recipes.chain import Link, corpus_step
from lit_llm.data.corpus.recipes.tallies import ReadRecord, Tally, load_record, save_record
from lit_llm.data.corpus.recipes.tasks import IndexTask, PartTask, ReadTask, index_part, process_part, read_units
from lit_llm.data.corpus.recipes.workers import Workers
from lit_llm.data.corpus.recipes.workspace import OpenSource, Workspace
from lit_llm.data.sources.document import Unit

_UNITS_PER_TASK = 4096
_TASKS_PER_WORKER = 4


@dataclass(frozen=True)
class Stage:
    """Links that follow each other; the first reads the sources or compares documents, the others need one at a time.

    Attributes:
        links: In their order.
    """

    links: tuple[Link, ...]

    @property
    def head(self) -> Link:
        """The first link."""
        return self.links[0]

    @property
    def end(self) -> Link:
        """The last link."""
        return self.links[-1]

    def latest(self, part: str) -> int | None:
        """The place of the last link whose result for a part is there; None if there is none."""
        places = reversed(range(len(self.links)))
        return next((place for place in places if _has(self.links[place], part)), None)


def _has(link: Link, part: str) -> bool:
    return link.tally(part).exists() and link.part(part).exists()


def stages_of(links: Sequence[Link]) -> list[Stage]:
    """Links in stages: one begins at every step that compares documents."""
    begins = [number for number, link in enumerate(links) if number == 0 or is_corpus_step(link.name)]
    return [Stage(tuple(links[begin:end])) for begin, end in zip(begins, [*begins[1:], len(links)], strict=True)]


class StageRunner:
    """Does the stages of a recipe, of which it leaves out what has been done.

    Args:
        config: The recipe.
        workspace: Its folders, which are there.
        sources: Its sources.
        workers: Do the work.

    Attributes:
        parts: Names of the parts in order, once the sources have been read.
        read: What reading each source has given, once that is done.
    """

    def __init__(self, config: RecipeConfig, workspace: Workspace, sources: list[OpenSource], workers: Workers) -> None:
        self._config, self._workspace, self._sources, self._workers = config, workspace, sources, workers
        self._part_bytes = round(config.part_mib * 2**20)
        self._memory_bytes = round(config.memory_gib * 2**30)
        self.parts: list[str] = []
        self.read: list[ReadRecord] = []

    def run(self, stage: Stage, before: Link | None) -> None:
        """Does what is left of a stage.

        Args:
            stage: The stage.
            before: The last link of the stage before; None for the first stage.

        Raises:
            UserError: a source has no document, or nothing is left of the corpus.
        """
        if before is None:
            self._read(stage)
        elif any(stage.latest(part) is None for part in self.parts):
            self._compare(stage.head, before)
        self._process(stage, before)
        self._require_documents(stage)
        shutil.rmtree(self._workspace.index(stage.head), ignore_errors=True)
        if self._config.keep == "stages":
            self.forget(stage.links[:-1])

    def forget(self, links: Sequence[Link]) -> None:
        """Removes the documents that links have given, and keeps what is known of them."""
        for link in links:
            for part in self.parts:
                link.part(part).unlink(missing_ok=True)

    def tallies(self, link: Link) -> Iterator[Tally]:
        """The tally of each part at a link, in order."""
        return (Tally.load(link.tally(part)) for part in self.parts)

    def work(
        self, description: str, function: Callable[[Any], None], tasks: Sequence[Any], sizes: Sequence[int | None]
    ) -> None:
        """Does tasks, and shows how many bytes of their sizes are behind them."""
        if not tasks:
            return
        known = [size or 0 for size in sizes]
        with progress(description, None if None in sizes else sum(known), "bytes") as advance:
            self._workers.run(function, tasks, lambda index: advance(known[index]))

    def _read(self, stage: Stage) -> None:
        tasks = self._read_tasks(stage)
        missing = [task for task in tasks if _read_record(task, stage) is None]
        if missing:
            name = ", ".join(["reading", *(link.name for link in missing[0].links[1:])])
            self.work(name, read_units, missing, [_stored_bytes(task.units) for task in missing])
        self.read = [ReadRecord() for _ in self._sources]
        numbers = {source.config.name: number for number, source in enumerate(self._sources)}
        for task in tasks:
            record = ReadRecord(**load_record(task.record))
            self.parts += record.parts
            self.read[numbers[task.source.name]].merge(record)

    def _read_tasks(self, stage: Stage) -> list[ReadTask]:
        """Units in groups of about the size of a part, which depend on the units alone."""
        groups = [(source, group) for source in self._sources for group in _groups(source.units, self._part_bytes)]
        # Where there is enough to read at once, what was read need not be kept to be worked on in parallel.
        is_fused = self._config.keep == "stages" and len(groups) >= _TASKS_PER_WORKER * self._workers.number
        links = self._kept(stage.links) if is_fused else stage.links[:1]
        folder = stage.head.folder
        return [
            ReadTask(number, source.config, group, folder / f"task-{number:06d}.json", links, self._part_bytes)
            for number, (source, group) in enumerate(groups)
        ]

    def _kept(self, links: Sequence[Link]) -> tuple[Link, ...]:
        """Links with what is to be written of them."""
        if self._config.keep == "steps":
            return tuple(links)
        return (*(replace(link, written=False) for link in links[:-1]), *links[-1:])

    def _compare(self, link: Link, before: Link) -> None:
        """Lets a step that compares documents index all parts, and decide."""
        index = self._workspace.index(link)
        folder, decided = index / "step", index / "decided.json"
        if decided.exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        sizes = [tally.bytes_out for tally in self.tallies(before)]
        tasks = [
            IndexTask(number, before.part(part), link, folder, index / f"{part}.json")
            for number, part in enumerate(self.parts)
        ]
        missing = [number for number, task in enumerate(tasks) if not task.record.exists()]
        self.work(f"{link.name}: indexing", index_part, [tasks[n] for n in missing], [sizes[n] for n in missing])
        tally = Tally()
        for task in tasks:
            tally.merge(Tally.load(task.record))
        step, began = corpus_step(link), perf_counter()
        memory = self._memory_bytes // self._workers.number
        facts = step.decide(len(self.parts), folder, memory, self._workers.run)
        tally.seconds += perf_counter() - began
        tally.counts.update(step.counts)
        decision = {"facts": facts, "seconds": tally.seconds, "counts": dict(tally.counts)}
        save_record(link.folder / "decision.json", decision)
        save_record(decided, {})

    def _process(self, stage: Stage, before: Link | None) -> None:
        """Puts every part through the links that it has not been through."""
        tasks, sizes = [], []
        for number, part in enumerate(self.parts):
            latest = stage.latest(part)
            if latest is None:
                assert before is not None
                index = self._workspace.index(stage.head) / "step"
                tasks.append(PartTask(part, number, before.part(part), self._kept(stage.links), index))
                sizes.append(Tally.load(before.tally(part)).bytes_out)
            elif latest < len(stage.links) - 1:
                links = self._kept(stage.links[latest + 1 :])
                tasks.append(PartTask(part, number, stage.links[latest].part(part), links))
                sizes.append(Tally.load(stage.links[latest].tally(part)).bytes_out)
        names = [link.name for link in (stage.links if before is not None else stage.links[1:])]
        self.work(", ".join(names), process_part, tasks, sizes)

    def _require_documents(self, stage: Stage) -> None:
        for source, record in zip(self._sources, self.read if stage.head.number == 0 else (), strict=False):
            if not record.documents:
                why = f"skipped: {record.skipped_in_words}" if record.skipped else "its files are empty"
                raise UserError(f"source {source.config.name} has no document ({why}); correct that, or leave it out")
        for link in stage.links:
            if any(tally.documents_out for tally in self.tallies(link)):
                continue
            total = Tally()
            for tally in self.tallies(link):
                total.merge(tally)
            reasons = ", ".join(f"{dropped.documents:,} {reason}" for reason, dropped in total.reasons()[:3])
            raise UserError(
                f"step {link.number}, {link.name}, drops everything: all {total.documents_in:,} documents that came to "
                f"it ({reasons}); change its options, or leave it out"
            )


def _read_record(task: ReadTask, stage: Stage) -> ReadRecord | None:
    """What a task has read, if that is known and all of it still there after some step of the stage."""
    if not task.record.exists():
        return None
    record = ReadRecord(**load_record(task.record))
    return record if all(stage.latest(part) is not None for part in record.parts) else None


def _groups(units: Sequence[Unit], part_bytes: int) -> Iterator[tuple[Unit, ...]]:
    """Units that follow each other, in groups that are no larger than a part unless they are a single unit."""
    group: list[Unit] = []
    size = 0
    for unit in units:
        unit_size = part_bytes if unit.size_bytes is None else unit.size_bytes
        if group and (size + unit_size > part_bytes or len(group) == _UNITS_PER_TASK):
            yield tuple(group)
            group, size = [], 0
        group.append(unit)
        size += unit_size
    if group:
        yield tuple(group)


def _stored_bytes(units: Sequence[Unit]) -> int | None:
    sizes = [unit.size_bytes for unit in units]
    return None if None in sizes else sum(size or 0 for size in sizes)
