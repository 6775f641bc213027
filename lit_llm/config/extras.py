"""Optional libraries, which are imported where they are used and not before."""

from __future__ import annotations

import importlib
from types import ModuleType

from lit_llm.config.errors import UserError


def optional_module(name: str, purpose: str, package: str = "'lit-llm[data]'") -> ModuleType:
    """The module `name` of an optional library.

    Args:
        name: As in an import, "resiliparse.parse.lang".
        purpose: What needs it, the subject of the message.
        package: What pip is to install.

    Raises:
        UserError: the library is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{purpose} needs {name.partition('.')[0]} ({error}): pip install {package}") from error
