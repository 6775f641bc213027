"""JSON from outside: whatever is wrong with it is one line."""

from __future__ import annotations

import json
import sys
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text says.

    Args:
        text: in UTF-8 where it is bytes; a byte order mark before it is passed over.

    Raises:
        ValueError: it is not UTF-8, not JSON, nested too deeply, or has a whole number of thousands of digits. The
            message is one line and says which, and where.
    """
    try:
        whole = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(whole.removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte 0x{error.object[error.start]:02X} at {error.start})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError:  # what Python says of a number too long to convert
        raise ValueError(f"it has a whole number of more than {sys.get_int_max_str_digits()} digits") from None
