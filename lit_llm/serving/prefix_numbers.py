"""The numbers of the prefix caches of a server, for its metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lit_llm.generation import PrefixCounts
from lit_llm.serving.metrics import Gauges
from lit_llm.serving.worker import Worker

_NUMBERS: dict[str, tuple[str, Callable[[PrefixCounts], int]]] = {
    "requests": ("Texts that were begun.", lambda counts: counts.requests),
    "hits": ("Texts whose beginning was held.", lambda counts: counts.hits),
    "prompt_tokens": ("Tokens of the prompts of these texts.", lambda counts: counts.prompt_tokens),
    "cached_tokens": ("Tokens of prompts that were not read.", lambda counts: counts.cached_tokens),
    "evictions": ("Pages that made room for others.", lambda counts: counts.evictions),
    "pages": ("Pages that are held.", lambda counts: counts.pages),
    "pages_in_use": ("Pages that running texts use.", lambda counts: counts.pages_in_use),
    "bytes": ("Memory of the pages that are held.", lambda counts: counts.pages * counts.page_bytes),
    "most_bytes": ("Memory that pages may take.", lambda counts: counts.most_pages * counts.page_bytes),
}


def prefix_gauges(workers: Iterable[Worker]) -> Gauges:
    """Return the numbers of all models in memory together."""
    counts = [worker.prefix_cache.counts() for worker in workers if worker.prefix_cache is not None]
    return {
        f"prefix_cache_{name}": (f"{help} (Prefix cache.)", sum(map(value, counts)))
        for name, (help, value) in _NUMBERS.items()
    }
