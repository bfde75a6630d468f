"""implicit: alternating least squares in Cython (Hu, Koren, and Volinsky, ICDM 2008), timed to an ndcg@20.

    python -m peers.implicit_als '{"ids": "build/als", "factors": 64, "alpha": 3, "regularization": 40, ...}'

The time is that of the iterations. Ranking is numpy's: all items but those of train, binary relevance, the ideal cut at
min(20, items of test), and the mean over customers of test.

Shapes: U customers, I items, N interactions.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix

K = 20
CHUNK = 1024
"""Customers that are ranked at once."""


def read_split(folder: Path, split: str, shape: tuple[int, int]) -> csr_matrix:
    """Return the interactions of ``split`` as ones, (U, I)."""
    customer_N, item_N = (np.load(folder / f"{split}-{name}.npy") for name in ("customer", "item"))
    return csr_matrix((np.ones(len(customer_N), np.float32), (customer_N, item_N)), shape=shape)


def ndcg(
    customers_UD: npt.NDArray[np.float32], items_ID: npt.NDArray[np.float32], train: csr_matrix, test: csr_matrix
) -> float:
    """Return the mean ndcg@20 over customers with rows in ``test``."""
    discount_K = 1 / np.log2(np.arange(2, K + 2))
    ideal_K = np.cumsum(discount_K)
    values = []
    ranked = np.flatnonzero(np.diff(test.indptr))
    for begin in range(0, len(ranked), CHUNK):
        part_C = ranked[begin : begin + CHUNK]
        score_CI = customers_UD[part_C] @ items_ID.T
        score_CI[train[part_C].nonzero()] = -np.inf
        top_CK = np.argpartition(-score_CI, K, axis=1)[:, :K]
        order_CK = np.argsort(-np.take_along_axis(score_CI, top_CK, axis=1), axis=1, kind="stable")
        top_CK = np.take_along_axis(top_CK, order_CK, axis=1)
        relevant_CI = test[part_C].toarray() > 0
        gain_C = (np.take_along_axis(relevant_CI, top_CK, axis=1) * discount_K).sum(axis=1)
        values.append(gain_C / ideal_K[np.minimum(relevant_CI.sum(axis=1), K) - 1])
    return float(np.concatenate(values).mean())


def main() -> None:
    """Train, and print the ndcg@20 and the seconds after each iteration."""
    task = json.loads(sys.argv[1])
    shape = task["customers"], task["items"]
    train, test = (read_split(Path(task["ids"]), split, shape) for split in ("train", "test"))
    reached: list[tuple[float, float]] = []
    for iterations in task["iterations"]:
        seconds: list[float] = []
        model = AlternatingLeastSquares(
            factors=task["factors"],
            regularization=task["regularization"],
            alpha=task["alpha"],
            iterations=iterations,
            num_threads=task["threads"],
            random_state=1,
        )
        model.fit(train, show_progress=False, callback=lambda _number, elapsed, *_, took=seconds: took.append(elapsed))
        reached.append((sum(seconds), ndcg(model.user_factors, model.item_factors, train, test)))
    print(json.dumps({"reached": reached}), flush=True)


if __name__ == "__main__":
    main()
