"""What a GPU costs for an hour, from files of prices."""

from __future__ import annotations

from pathlib import Path

import yaml

from lit_llm.config import UserError
from lit_llm.config.yaml_text import read_yaml
from lit_llm.planning.gpus import find_gpu


def price_of(gpu: str, table: str) -> float:
    """Look up the price of an hour of a GPU.

    Args:
        gpu: its full name, as `find_gpu` gives it.
        table: YAML or JSON file of prices by the names of GPUs, also of some that `find_gpu` does not know.

    Raises:
        UserError: the file cannot be read or has no such table, or the GPU is not in it.
    """
    prices = _read(Path(table))
    if gpu not in prices:
        raise UserError(f"prices {table} has no {gpu}, only {', '.join(sorted(prices))}; give --price")
    return prices[gpu]


def _read(path: Path) -> dict[str, float]:
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"prices: {path} cannot be read: {error}") from error
    form = "a file of names and prices above 0, as 'H100: 2.5'"
    if not isinstance(values, dict) or not values:
        raise UserError(f"prices: {path} must be {form}")
    prices = {}
    for name, price in values.items():
        if not isinstance(price, int | float) or isinstance(price, bool) or not 0 < price < float("inf"):
            raise UserError(f"prices: {path} has {name}: {price}; it must be {form}")
        gpu = _full_name(str(name))
        if gpu in prices:
            raise UserError(f"prices: {path} has {gpu} twice, the second time as {name}; leave one of the two")
        prices[gpu] = float(price)
    return prices


def _full_name(name: str) -> str:
    try:
        return find_gpu(name)[0]
    except UserError:  # other GPUs may have prices, too
        return name
