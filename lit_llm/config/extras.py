"""Optional libraries, which are imported where they are used and not before."""

from __future__ import annotations

import importlib
from types import ModuleType

from lit_llm.config.errors import UserError


def optional_module(name: str, purpose: str, extra: str) -> ModuleType:
    """The module `name` of an optional library.

    Args:
        name: As in an import, "resiliparse.parse.lang".
        purpose: What needs it, the subject of the message.
        extra: The extra of this package that installs it.

    Raises:
        UserError: the library is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise UserError(f"{purpose} needs {package} ({error}): pip install 'lit-llm[{extra}]'") from error
