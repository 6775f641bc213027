"""Packages that only an extra of ours installs."""

from __future__ import annotations

import importlib
from typing import Any

from lit_llm.config.errors import UserError


def optional_package(name: str, extra: str, purpose: str) -> Any:
    """The package `name`, imported.

    Args:
        name: Of the package, or of a module in it.
        extra: The extra of ours that installs it.
        purpose: What it is needed for, to begin the message with.

    Raises:
        UserError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name.partition(".")[0]):
            raise
        raise UserError(
            f"{purpose} needs the package {name.partition('.')[0]}; install it with: pip install 'lit-llm[{extra}]'"
        ) from None
