"""How every benchmark ends: a table, and one line of JSON."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


def processor() -> str:
    """Name of this machine's processor, and whether it multiplies bfloat16 natively."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    native = "native bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "no native bf16"
    return f"{names[0] if names else platform.processor()} ({native})"


def print_report(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], figures: dict[str, Any]) -> None:
    """Print the table, and as the last line `figures` with versions, processor and threads as JSON."""
    table = Table(*header, title=title)
    for row in rows:
        table.add_row(*row)
    # in a file or a pipe a console is taken for 80 columns, which would cut the wider tables
    (Console() if sys.stdout.isatty() else Console(width=200)).print(table)
    packages = ("torch", "lightning", "transformers", "numpy")
    print(
        json.dumps(
            {
                **figures,
                "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
                "processor": processor(),
                "threads": torch.get_num_threads(),
            }
        )
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:
        return None
