"""The Python source of packages that are installed on this machine."""

from __future__ import annotations

import difflib
import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path

from lit_llm.config import UserError
from lit_llm.config.recipe import SourceConfig
from lit_llm.data.sources.document import Skipped, SourceDocument, Unit
from lit_llm.data.sources.file_documents import GONE, FoundFile, reading
from lit_llm.data.sources.making import UNREADABLE_FILE, DocumentMaker
from lit_llm.data.sources.text_documents import code_documents

PREFIX = "packages:"
_LONGEST_LICENSE = 60


class PackageDocuments:
    """Documents of Python packages, a file each, found by what `importlib.metadata` lists of them.

    A document's id is the name of its package with the path of the file, its licence what the file's header states,
    or else what the package's metadata say.

    Args:
        config: Its `path` is `packages:NAME,NAME`; a name is that of a distribution (PyYAML) or of a module (yaml).

    Raises:
        UserError: one of the packages is not installed, is named twice, or has no Python source.
    """

    def __init__(self, config: SourceConfig) -> None:
        self._maker = DocumentMaker.of(config)
        self._files: dict[str, tuple[FoundFile, dict[str, str | None]]] = {}
        known: dict[str, dict[str, str | None]] = {}
        for name in config.path.removeprefix(PREFIX).split(","):
            for package in _find_packages(name.strip()):
                title = package.name
                if title in known:
                    raise UserError(f"path {config.path!r}: {title} is there twice; leave one out")
                known[title] = {"license": package_license(package), "package": title, "version": package.version}
                found = _python_files(package, title)
                if not found:
                    raise UserError(f"path {config.path!r}: {title} lists no Python source; leave it out")
                self._files.update((file.key, (file, known[title])) for file in found)
        versions = ", ".join(f"{title} {facts['version']}" for title, facts in known.items())
        self.description = f"Python source of {versions}, {len(self._files):,} files"

    def units(self) -> list[Unit]:
        """The files, package by package in the order of their paths."""
        return [Unit(file.key, file.size_bytes, file.modified) for file, _ in self._files.values()]

    def read(self, unit: Unit) -> Iterator[SourceDocument | Skipped]:
        """Yields the document of a file.

        Raises:
            UserError: what is wrong is not the file alone.
        """
        if unit.name not in self._files:
            yield Skipped(unit.name, UNREADABLE_FILE, GONE)
            return
        file, facts = self._files[unit.name]
        yield from reading(code_documents(file.path, file.key, self._maker, **facts), file)


def _find_packages(name: str) -> list[importlib.metadata.Distribution]:
    """The distribution of a name, or those that hold the module of that name.

    Raises:
        UserError: there is none.
    """
    if not name:
        raise UserError(f"write {PREFIX}NAME,NAME, with the names of installed packages")
    try:
        return [importlib.metadata.distribution(name)]
    except (importlib.metadata.PackageNotFoundError, ValueError):
        modules = importlib.metadata.packages_distributions()
    if name in modules:
        return [importlib.metadata.distribution(each) for each in dict.fromkeys(modules[name])]
    known = {each.name for each in importlib.metadata.distributions() if each.name} | modules.keys()
    lower = {each.lower(): each for each in sorted(known)}
    near = [lower[each] for each in difflib.get_close_matches(name.lower(), lower, 3)]
    meant = f"; near it are {', '.join(near)}" if near else ""
    raise UserError(f"package {name!r} is not installed{meant}")


def _python_files(package: importlib.metadata.Distribution, title: str) -> list[FoundFile]:
    found = []
    for listed in package.files or ():
        if listed.suffix == ".py" and ".." not in listed.parts:
            path = Path(str(listed.locate()))
            if path.is_file():
                found.append(FoundFile.of_path(f"{title}/{listed.as_posix()}", path))
    return sorted({file.key: file for file in found}.values(), key=lambda file: file.key)


def package_license(package: importlib.metadata.Distribution) -> str | None:
    """What the metadata of a package say of its licence: an SPDX expression, a short name, or a classifier's."""
    metadata = package.metadata
    if expression := metadata.get("License-Expression"):
        return expression
    stated = (metadata.get("License") or "").strip()
    # Some have the whole text of the licence there.
    if stated and stated.upper() != "UNKNOWN" and "\n" not in stated and len(stated) <= _LONGEST_LICENSE:
        return stated
    classifiers = [each for each in metadata.get_all("Classifier") or () if each.startswith("License ::")]
    names = [re.sub(r"^License :: (OSI Approved :: )?", "", each) for each in classifiers]
    return " AND ".join(name for name in names if name != "OSI Approved") or None
