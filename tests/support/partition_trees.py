"""The tree that sums of parts are added as, in numpy; ``kvstore/tree_sums.py`` is its kernel."""

from collections.abc import Mapping, Sequence

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray


def add_as_tree(sums: Mapping[int, FloatArray], level: int = 20, node: int = 0) -> FloatArray | None:
    """Return a node of the tree: the sum of the parts whose number, without its last ``level`` bits, is ``node``.

    ``sums`` are those of the parts that there are, by number. None if the node has none of them.
    """
    if not any(part >> level == node for part in sums):
        return None
    if level == 0:
        return sums[node]
    left, right = (add_as_tree(sums, level - 1, 2 * node + side) for side in (0, 1))
    if left is None or right is None:
        return right if left is None else left
    total: FloatArray = left + right
    return total


def add_rows_as_tree(rows: Sequence[IntArray], gradients: Sequence[FloatArray]) -> tuple[IntArray, FloatArray]:
    """Return the rows that any part has, sorted, and for each the tree of its gradients in the parts that have it."""
    found: dict[int, dict[int, FloatArray]] = {}
    for part, (rows_A, gradient_AD) in enumerate(zip(rows, gradients, strict=True)):
        for row, gradient_D in zip(rows_A.tolist(), gradient_AD, strict=True):
            found.setdefault(row, {})[part] = gradient_D
    every_A = np.array(sorted(found), np.int64)
    sums = [add_as_tree(found[row]) for row in every_A.tolist()]
    return every_A, np.array(sums, np.float32).reshape(len(every_A), gradients[0].shape[1])
