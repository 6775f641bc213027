"""What a GPU costs for an hour: a table to begin with, and files of one's own."""

from __future__ import annotations

from pathlib import Path

import yaml

from lit_llm.config import UserError
from lit_llm.planning.gpus import find_gpu

LIST_PRICES = {
    "NVIDIA B200": 14.2,
    "NVIDIA H200": 7.9,
    "NVIDIA H100": 6.9,
    "NVIDIA A100": 3.4,
    "NVIDIA A100-SXM4-40GB": 2.7,
    "NVIDIA L40S": 1.9,
    "NVIDIA L4": 0.8,
    "NVIDIA A10G": 1.0,
    "Tesla V100": 3.1,
    "Tesla T4": 0.53,
}
"""US dollars for an hour of one GPU with its share of the machine: the list prices of AWS in Virginia, on demand, in
the second half of 2025, rounded. Others sell for less, and prices change; a file of one's own is better."""


def price_of(gpu: str, table: str) -> float:
    """Look up the price of an hour of a GPU.

    Args:
        gpu: its full name, as `find_gpu` gives it.
        table: "list" for `LIST_PRICES`, or a YAML or JSON file of prices by the names of GPUs.

    Raises:
        UserError: the file cannot be read or has no such table, or the GPU is not in it.
    """
    prices = LIST_PRICES if table == "list" else _read(Path(table))
    if gpu not in prices:
        raise UserError(f"prices {table} has no {gpu}, only {', '.join(sorted(prices))}; give --price")
    return prices[gpu]


def _read(path: Path) -> dict[str, float]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"prices: {path} cannot be read: {error}") from error
    form = "a file of names and prices above 0, as 'H100: 2.5'"
    if not isinstance(values, dict) or not values:
        raise UserError(f"prices: {path} must be {form}")
    prices = {}
    for name, price in values.items():
        if not isinstance(price, int | float) or isinstance(price, bool) or not 0 < price < float("inf"):
            raise UserError(f"prices: {path} has {name}: {price}; it must be {form}")
        prices[find_gpu(str(name))[0]] = float(price)
    return prices
