"""Where a corpus is made: the folder of each step, which of their results still stand, and what has changed.

    OUTPUT/work/recipe.json         sources and steps, and the digest of each
    OUTPUT/work/00-sources/         tasks and parts as they were read
    OUTPUT/work/01-NAME/            the parts after the first step, and what became of their documents there
    OUTPUT/work/documents/          what is known of each part of the result
    OUTPUT/.documents/              the result while it is written
    OUTPUT/documents/, report.json, recipe.yaml and the pages made of them

A step's digest covers all that its result depends on: its options, those of the steps before, the sources. A folder
with another digest than the one that is due is stale, and is removed.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Any

from lit_llm.config import UserError, to_plain
from lit_llm.config.digests import digest_of
from lit_llm.config.files import write_json
from lit_llm.config.recipe import RecipeConfig, SourceConfig
from lit_llm.config.serialization import shown
from lit_llm.data.corpus.recipes.chain import Link
from lit_llm.data.corpus.recipes.tallies import load_record
from lit_llm.data.sources.document import Span, Unit
from lit_llm.data.sources.files import find_files, glob_root
from lit_llm.data.sources.opening import open_source
from lit_llm.data.sources.remote import is_remote

FORMAT = 2
"""Counts up whenever the same recipe would give other results, as a step or the engine has changed."""
FILE_OPTIONS = frozenset({"file", "files", "model", "path", "positives", "negatives"})
"""Options of steps that name files, on whose content the result depends."""
_ON_DISK = " on disk"
PAGES = ("recipe.yaml", "data_card.md", "data_report.html")
"""What is written beside the report, and goes with it."""
_OURS = frozenset({".lock", "work", ".documents", "documents", "report.json", *PAGES})


@dataclass(frozen=True)
class OpenSource:
    """A source of a recipe and what it consists of.

    Attributes:
        config: As in the recipe, with the name settled.
        description: In words.
        units: In the order of the documents.
        digest: Of the options and of the names, sizes and times of the units.
    """

    config: SourceConfig
    description: str
    units: list[Unit]
    digest: str


def list_sources(config: RecipeConfig) -> list[OpenSource]:
    """The sources of a recipe, each with its units.

    Raises:
        UserError: there is none, one does not exist, has the output inside it, or two have the same name.
    """
    if not config.sources:
        raise UserError('sources is empty; give at least one, as in --sources \'[{"path": "texts/"}]\'')
    sources: list[OpenSource] = []
    for number, source in enumerate(config.sources, start=1):
        if not source.path:
            raise UserError(f"source {number} of the recipe has no path; give a file, folder, glob or hf:NAME")
        name = source.name or source.path
        if any(name == other.config.name for other in sources):
            raise UserError(f"two sources are called {name!r}; give one of them another name")
        opened, settled = open_source(source), SourceConfig(**{**vars(source), "name": name})
        if Path(source.path).is_dir() and Path(config.output).resolve().is_relative_to(Path(source.path).resolve()):
            raise UserError(
                f"output {config.output} is inside source {source.path}, which would read what it writes; choose "
                "another output"
            )
        units = opened.units()
        if has_magic(source.path) and not is_remote(source.path):
            output, root = Path(config.output).absolute(), glob_root(source.path).absolute()
            if output.is_relative_to(root) and any((root / unit.name).is_relative_to(output) for unit in units):
                raise UserError(f"source {source.path} has files of output {config.output}; choose another output")
        facts = [[unit.name, unit.size_bytes, unit.modified, *_place(unit.span)] for unit in units]
        sources.append(OpenSource(settled, opened.description, units, digest_of(to_plain(settled), facts)))
    return sources


def _place(span: Span | None) -> list[int | None]:
    return [] if span is None else [span.begin, span.end, span.rows_before]


class Workspace:
    """The folders of a recipe in an output.

    Args:
        config: The recipe.
        sources: Its sources.

    Attributes:
        output: The folder of the corpus.
        work: Where the results of steps are.
        links: The reading of the sources, then the steps.
        digest: Of all that the corpus depends on.
    """

    def __init__(self, config: RecipeConfig, sources: list[OpenSource]) -> None:
        self.output = Path(config.output)
        self.work = self.output / "work"
        digest = digest_of(FORMAT, config.part_mib, [source.digest for source in sources])
        self.links = [Link(0, "sources", None, digest, self.work / "00-sources")]
        for number, (name, options) in enumerate(config.step_options(), start=1):
            digest = digest_of(name, _facts(options), digest)
            self.links.append(Link(number, name, options, digest, self.work / f"{number:02d}-{name}"))
        self.digest = digest_of("documents", digest)
        self._record = {
            "format": FORMAT,
            "part_mib": config.part_mib,
            "sources": [
                {"config": to_plain(each.config), "units": len(each.units), "digest": each.digest} for each in sources
            ],
            "steps": [{"name": link.name, "options": _facts(link.options)} for link in self.links[1:]],
        }

    @property
    def documents(self) -> Path:
        """Records of the parts of the result."""
        return self.work / "documents"

    @property
    def unfinished(self) -> Path:
        """The result while it is written."""
        return self.output / ".documents"

    @property
    def report(self) -> Path:
        """The report, which is written last: where it is, the corpus is whole."""
        return self.output / "report.json"

    def index(self, link: Link) -> Path:
        """The folder of a step that compares documents, for its own use."""
        return link.folder / "index"

    def is_finished(self) -> bool:
        """Whether the output has the corpus of this very recipe."""
        try:
            return load_record(self.report)["made_from"] == self.digest and (self.output / "documents").is_dir()
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def refuse_foreign(self) -> None:
        """Raises UserError where the output has anything that does not come from a recipe."""
        if not self.output.exists():
            return
        if not self.output.is_dir():
            raise UserError(f"output {self.output} is a file; choose another output")
        names = {entry.name for entry in self.output.iterdir()}
        foreign = sorted(name for name in names - _OURS if not name.endswith(".partial"))
        if not foreign and not self.report.exists() and not (self.work / "recipe.json").exists():
            foreign = sorted(
                name for name in names & {"work", "documents", ".documents"} if any((self.output / name).iterdir())
            )
        if foreign:
            more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
            raise UserError(
                f"output {self.output} has what no recipe has made ({', '.join(foreign[:3])}{more}); choose another "
                "output, or move that away"
            )

    def refuse_other_sources(self) -> None:
        """Raises UserError where the output has a finished corpus that has no source of this recipe."""
        if not self.report.exists():
            return
        try:
            before = [each["config"]["path"] for each in load_record(self.work / "recipe.json")["sources"]]
        except (OSError, ValueError, KeyError, TypeError):
            return
        if not {each["config"]["path"] for each in self._record["sources"]} & set(before):
            raise UserError(
                f"output {self.output} has the corpus of other sources ({', '.join(before[:3])}); choose another "
                "output, or replace it with --overwrite true"
            )

    def clear(self) -> None:
        """Removes the corpus and all work."""
        self.report.unlink(missing_ok=True)
        for name in PAGES:
            (self.output / name).unlink(missing_ok=True)
        for folder in (self.unfinished, self.output / "documents", self.work):
            shutil.rmtree(folder, ignore_errors=True)

    def begin(self) -> list[str]:
        """Makes the folders, and removes those that are stale.

        Returns:
            What has changed since the last run, a line each.
        """
        lines = self._changes()
        due = {link.folder.name: link.digest for link in self.links} | {"documents": self.digest}
        self.work.mkdir(parents=True, exist_ok=True)
        for folder in sorted(self.work.iterdir()):
            if folder.is_dir() and _folder_digest(folder) != due.get(folder.name):
                if folder == self.documents:
                    shutil.rmtree(self.unfinished, ignore_errors=True)
                (folder / "digest.json").unlink(missing_ok=True)  # first, so that half of a folder is stale, too
                shutil.rmtree(folder)
        write_json(self.work / "recipe.json", self._record)
        for link in self.links:
            _make_folder(link.folder, link.digest)
        if not self.documents.exists():
            self.unfinished.mkdir(exist_ok=True)
        _make_folder(self.documents, self.digest)
        for folder in (*(link.folder for link in self.links), self.documents, self.unfinished):
            for partial in folder.glob(".*.partial"):
                partial.unlink(missing_ok=True)
        return lines

    def _changes(self) -> list[str]:
        try:
            before = load_record(self.work / "recipe.json")
            if before == self._record:
                return []
            if before["format"] != FORMAT:
                return ["the output was made by another version; starting again from the sources"]
            changes = _source_changes(before, self._record)
            if changes:
                return [f"{change}; starting again from the sources" for change in changes[:1]] + changes[1:]
            return self._step_changes(before["steps"], self._record["steps"])
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def _step_changes(self, before: list[Any], now: list[Any]) -> list[str]:
        for number, (old, new) in enumerate(zip(before, now, strict=False), start=1):
            if old["name"] != new["name"]:
                change = f"step {number} was {old['name']} and is {new['name']}"
            elif old != new:
                change = f"step {number} {new['name']}: {_differences(old['options'], new['options'])}"
            else:
                continue
            break
        else:
            number = min(len(before), len(now)) + 1
            more = (now if len(now) > len(before) else before)[number - 1 :]
            names = ", ".join(each["name"] for each in more)
            change = f"at the end, {names} {'came' if len(now) > len(before) else 'went'}"
        after = f"step {number - 1}" if number > 1 else "the sources as they were read"
        return [f"{change}; going on from {after}"]


def _facts(options: Any) -> dict[str, Any]:
    """The options of a step, the files that they name as they are now, and the version of what the step does."""
    facts = to_plain(options)
    for name in FILE_OPTIONS & facts.keys():
        given = facts[name] if isinstance(facts[name], list) else [facts[name]]
        if stamps := [stamp for path in given if isinstance(path, str) for stamp in _stamps(path)]:
            facts[name + _ON_DISK] = digest_of(stamps)
    return {**facts, **({"version": options.version} if hasattr(options, "version") else {})}


def _stamps(path: str) -> list[Any]:
    """Names, sizes and times of the files of a path; none where it is no path of this machine."""
    try:
        files = find_files(path, "")[1]
    except (UserError, OSError):
        return []
    stats = [(file.as_posix(), file.stat()) for file in files]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _source_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    changes = []
    if before["part_mib"] != now["part_mib"]:
        changes.append(f"part_mib: {before['part_mib']} -> {now['part_mib']}")
    old = {each["config"]["name"]: each for each in before["sources"]}
    new = {each["config"]["name"]: each for each in now["sources"]}
    changes += [f"source {name} is new" for name in new if name not in old]
    changes += [f"source {name} is gone" for name in old if name not in new]
    for name in new:
        if name in old and old[name] != new[name]:
            options = _differences(old[name]["config"], new[name]["config"])
            files = f"its files have changed ({old[name]['units']:,} before, {new[name]['units']:,} now)"
            changes.append(f"source {name}: {options or files}")
    if not changes and before["sources"] != now["sources"]:
        changes.append("the sources are in another order")
    return changes


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    names = dict.fromkeys((*before, *now))
    changed = [name for name in names if before.get(name) != now.get(name)]
    return ", ".join(
        f"{name} have changed"
        if name.endswith(_ON_DISK)
        else f"{name} {shown(before.get(name))} -> {shown(now.get(name))}"
        for name in changed
    )


def _folder_digest(folder: Path) -> str | None:
    try:
        digest: str = load_record(folder / "digest.json")["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return digest


def _make_folder(folder: Path, digest: str) -> None:
    if _folder_digest(folder) != digest:
        folder.mkdir(exist_ok=True)
        write_json(folder / "digest.json", {"digest": digest})
