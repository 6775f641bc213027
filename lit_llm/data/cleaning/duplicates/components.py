"""Connected components of a graph whose nodes are numbers, in a file; edges come in any order, a chunk at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

_CHUNK = 2**20


class Components:
    """A union-find over the nodes 0 ... n - 1 in which every component is known by its smallest node.

    It takes 8 bytes per node, in a file mapped into memory, of which the system keeps in memory what is used and fits.
    All operations are on arrays: trees are linked by root, the larger below the smaller (Tarjan 1975), and paths are
    halved as they are gone through (Tarjan and van Leeuwen 1984).

    Args:
        path: The file, which is made anew.
        nodes: How many there are.
    """

    def __init__(self, path: Path, nodes: int) -> None:
        self._parents = np.asarray(np.lib.format.open_memmap(path, "w+", np.int64, (nodes,)))
        for start in range(0, nodes, _CHUNK):
            stop = min(start + _CHUNK, nodes)
            self._parents[start:stop] = np.arange(start, stop)

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        """Adds edges.

        Args:
            left: Node at one end of each, [edges].
            right: Node at the other, [edges].
        """
        while True:
            left, right = self.find(left), self.find(right)
            differ = left != right
            if not differ.any():
                return
            left, right = left[differ], right[differ]
            # Of several edges from one root, the one to the smallest root counts now, the others in the next round.
            np.minimum.at(self._parents, np.maximum(left, right), np.minimum(left, right))

    def find(self, nodes: np.ndarray) -> np.ndarray:
        """The smallest node of the component of each of `nodes`, [n]."""
        roots = self._parents[nodes]
        while True:
            above = self._parents[roots]
            if np.array_equal(above, roots):
                break
            self._parents[roots] = roots = self._parents[above]
        self._parents[nodes] = roots
        return roots
