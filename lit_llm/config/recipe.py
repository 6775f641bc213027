"""The recipe of a corpus: its sources, and the steps that their documents go through."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_llm.config.cleaning import DOCUMENT_STEPS
from lit_llm.config.duplicates import CORPUS_STEPS
from lit_llm.config.errors import UserError
from lit_llm.config.files import from_home
from lit_llm.config.serialization import check_values, from_plain

STEPS: dict[str, type[Any]] = {**DOCUMENT_STEPS, **CORPUS_STEPS}
"""The dataclass of options of every step."""


@dataclass
class SourceConfig:
    """Where documents come from."""

    path: str = ""
    """A file, a folder or a glob; hf:NAME[:CONFIG[:SPLIT]] (streamed); packages:NAME,NAME for Python packages of this
    machine; stdlib; any of the first three behind a protocol of fsspec, as in s3://bucket/folder."""
    name: str = ""
    """What the documents' `source` says; empty: the path."""
    format: Literal["auto", "text", "rows", "html", "warc", "wet", "wikipedia", "code"] = "auto"
    """How files are read; auto: by suffix."""
    text_field: str = "text"
    """Field of a row that holds the text."""
    id_field: str | None = None
    """Field of a row that names the document, with the file before it where there are several; null: file and row
    number."""
    url_field: str | None = "url"
    """Field of a row that holds the address; where a row has none, the document has none."""
    date_field: str | None = "date"
    """Field of a row that holds the date, likewise."""
    license_field: str | None = "license"
    """Field of a row that holds the licence, likewise."""
    license: str | None = None
    """Licence of every document whose source says none."""
    document_separator: str | None = "auto"
    """What ends a document within a text file, as in corpus.document_separator."""
    max_document_bytes: int = 64 * 2**20
    """A longer document is left out, counted and named."""

    def __post_init__(self) -> None:
        self.path = from_home(self.path)
        if self.max_document_bytes < 1:
            raise UserError(f"max_document_bytes is {self.max_document_bytes}; it must be at least 1")
        if self.document_separator == "none":
            self.document_separator = None
        if self.document_separator == "":
            raise UserError('document_separator is empty; give a string, "auto", or null for none')


@dataclass
class ClusterConfig:
    """How datatrove's executors do the work."""

    partition: str | None = None
    """Partition of SLURM that the tasks are sent to; null: processes of this machine."""
    time: str = "24:00:00"
    """Time limit of a job of SLURM."""
    cpus_per_task: int = 1
    """Cores of a job of SLURM; each works on one part at a time."""
    mem_per_cpu_gib: int = 4
    """Memory of a job of SLURM for each core."""
    tasks: int | None = None
    """Most tasks that the work of a step is spread over; null: 1,000."""
    sbatch_args: dict[str, str] = field(default_factory=dict)
    """More options of sbatch, as '{"account": "nlp", "qos": "long"}'."""
    env_command: str | None = None
    """Shell command that a job of SLURM begins with, as to activate an environment."""

    def __post_init__(self) -> None:
        for name in ("cpus_per_task", "mem_per_cpu_gib", "tasks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"cluster.{name} is {value}; it must be at least 1")


@dataclass
class RecipeConfig:
    """Make a clean corpus from raw sources."""

    sources: list[SourceConfig] = field(default_factory=list)
    """Where documents come from, in this order."""
    steps: list[Any] = field(default_factory=list)
    """What becomes of them, in this order: each entry is one step's name with its options, as in
    '[{"language": {"keep": ["en"]}}, {"near_duplicates": {}}]', or its name alone."""
    output: str = "checkpoints/corpus"
    """Folder for the documents, the data card and the report. A run that was interrupted goes on where it stopped; one
    whose recipe has changed goes on from the last step that did not."""
    num_workers: int | None = None
    """Processes; null: one per core. The result does not depend on it."""
    executor: Literal["local", "datatrove"] = "local"
    """What does the work: processes of this machine, or the executors of datatrove, which run on clusters as well."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Options of executor datatrove."""
    memory_gib: float = 2.0
    """What a step that compares all documents may hold in memory; what needs more goes through files."""
    part_mib: float = 32.0
    """Text of a part, the unit of parallel work and of resumption."""
    keep: Literal["steps", "stages"] = "steps"
    """What stays in output/work for a changed recipe to go on from. steps: the result of every step; stages: only what
    stands before each step that compares documents, which takes a fraction of the disk. The corpus is the same."""
    overwrite: bool = False
    """Start from nothing, even where the output has a corpus or a part of one."""

    def __post_init__(self) -> None:
        if self.num_workers is not None and self.num_workers < 1:
            raise UserError(f"num_workers is {self.num_workers}; it must be at least 1, or null")
        if self.part_mib <= 0:
            raise UserError(f"part_mib is {self.part_mib}; it must be above 0")
        if self.memory_gib <= 0:
            raise UserError(f"memory_gib is {self.memory_gib}; it must be above 0")
        if self.executor == "local" and self.cluster != ClusterConfig():
            raise UserError("options of cluster are given, but executor is local; set executor datatrove")
        self.step_options()

    def step_options(self) -> list[tuple[str, Any]]:
        """Each step's name and options, in order.

        Raises:
            UserError: an entry is not one known step, or an option is unknown or of the wrong type.
        """
        return [_step_options(entry, number) for number, entry in enumerate(self.steps, start=1)]


def _step_options(entry: Any, number: int) -> tuple[str, Any]:
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise UserError(f"step {number} of the recipe must be one name with its options, as in 'language: {{}}'")
    [(name, values)] = entry.items()
    if name not in STEPS:
        raise UserError(f"step {number} of the recipe, {name!r}, is unknown; the steps are {', '.join(STEPS)}")
    if not isinstance(values or {}, dict):
        raise UserError(f"step {number} of the recipe, {name}: its options must be names with values")
    known = [each.name for each in dataclasses.fields(STEPS[name])]
    if unknown := [option for option in values or {} if option not in known]:
        raise UserError(
            f"step {number} of the recipe, {name}, has no option {unknown[0]}; it has {', '.join(known) or 'none'}"
        )
    try:
        check_values(STEPS[name], values or {}, "")
        options = from_plain(STEPS[name], values or {})
    except UserError as error:
        raise UserError(f"step {number} of the recipe, {name}: {error}") from None
    return name, options
