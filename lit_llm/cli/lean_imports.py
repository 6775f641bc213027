"""Start-up without packages that nothing here uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import metadata
from unittest import mock

UNUSED_BY_METRICS = ("matplotlib", "PIL", "scipy", "transformers")
"""What torchmetrics, which Lightning imports, imports for metrics and plots of its own: a third of the start-up."""


@contextlib.contextmanager
def without_unused_packages() -> Iterator[None]:
    """A block in which torchmetrics, if it is imported there, does not find `UNUSED_BY_METRICS`.

    Only what asks `lightning_utilities` is told so: an import of one of them works in the block and after it.
    """
    from lightning_utilities.core import imports

    find = imports.package_available

    def version(name: str) -> str:
        if name in UNUSED_BY_METRICS:
            raise metadata.PackageNotFoundError(name)
        return metadata.version(name)

    def package_available(name: str) -> bool:
        return name not in UNUSED_BY_METRICS and bool(find(name))

    with mock.patch.multiple(imports, _version=version, package_available=package_available):
        yield
