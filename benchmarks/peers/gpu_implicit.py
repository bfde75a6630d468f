"""implicit on a GPU: hogwild BPR in CUDA. A step is an epoch, which visits as many triples as there are interactions.

It draws customers, positives, and negatives from the interactions itself, and applies SGD. One of its columns is the
item's bias.
"""

from __future__ import annotations

import ctypes
import site
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from peers.task import Task, print_rate

LIBRARIES = ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10")


def load_libraries() -> None:
    """Load CUDA's libraries from the packages of this environment, where implicit does not look for them."""
    folders = [Path(folder) / "nvidia" for folder in site.getsitepackages()]
    for name in LIBRARIES:
        found = [path for folder in folders for path in folder.rglob(name)]
        if found:
            ctypes.CDLL(str(found[0]), mode=ctypes.RTLD_GLOBAL)


def main() -> None:
    """Train, and print the rate of the epochs after the warm-up."""
    task = Task.from_command_line()
    load_libraries()
    from implicit.gpu.bpr import BayesianPersonalizedRanking

    customer_N, positive_N, _ = task.triples()
    ones_N = np.ones(len(customer_N), np.float32)
    matrix = csr_matrix((ones_N, (customer_N, positive_N)), shape=(task.customers, task.tracks))
    model = BayesianPersonalizedRanking(
        factors=task.dim - 1,
        learning_rate=0.05,
        regularization=0.0,
        iterations=task.warm_up + task.steps,
        verify_negative_samples=False,
        random_state=1,
    )
    seconds: list[float] = []
    model.fit(matrix, show_progress=False, callback=lambda _epoch, elapsed, *_counts: seconds.append(elapsed))
    print_rate(matrix.nnz * task.steps, sum(seconds[task.warm_up :]))


if __name__ == "__main__":
    main()
