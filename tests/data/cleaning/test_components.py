"""Connected components against a search of the graph."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.data.cleaning.duplicates.components import Components

NODES = 12
EDGES = st.lists(st.tuples(st.integers(0, NODES - 1), st.integers(0, NODES - 1)), max_size=15)


@settings(max_examples=60, deadline=None)
@given(EDGES, st.integers(1, 4))
def test_a_component_is_known_by_its_smallest_node(edges: list[tuple[int, int]], at_once: int) -> None:
    with TemporaryDirectory() as folder:
        components = Components(Path(folder) / "parents.npy", NODES)
        for begin in range(0, len(edges), at_once):
            left, right = np.array(edges[begin : begin + at_once]).T
            components.join(left, right)
        roots = components.find(np.arange(NODES)).tolist()

    smallest = list(range(NODES))
    for _ in range(NODES):
        for left, right in edges:
            smallest[left] = smallest[right] = min(smallest[left], smallest[right])
    assert roots == smallest


def test_long_chains_take_few_steps(tmp_path: Path) -> None:
    """A chain of a million links would take the better part of a minute if each step went up by one link."""
    nodes = 2**17
    components = Components(tmp_path / "parents.npy", nodes)
    links = np.random.default_rng(0).permutation(nodes - 1)
    for chunk in np.split(links, [10, 1000, nodes // 2]):
        components.join(chunk + 1, chunk)
    assert not components.find(np.arange(nodes)).any()
