"""implicit: hogwild BPR in Cython. A step is an epoch, which visits as many triples as there are interactions.

It draws customers, positives, and negatives from the interactions itself. One of its columns is the item's bias.
"""

from __future__ import annotations

import numpy as np
from implicit.cpu.bpr import BayesianPersonalizedRanking
from scipy.sparse import csr_matrix

from peers.task import Task, print_rate


def main() -> None:
    """Train, and print the rate of the epochs after the warm-up."""
    task = Task.from_command_line()
    customer_N, positive_N, _ = task.triples()
    ones_N = np.ones(len(customer_N), np.float32)
    matrix = csr_matrix((ones_N, (customer_N, positive_N)), shape=(task.customers, task.tracks))
    epochs = task.warm_up + task.steps
    model = BayesianPersonalizedRanking(
        factors=task.dim - 1,
        learning_rate=0.05,
        regularization=0.0,
        num_threads=task.threads,
        iterations=epochs,
        verify_negative_samples=False,
        random_state=1,
    )
    seconds: list[float] = []
    model.fit(matrix, show_progress=False, callback=lambda _epoch, elapsed, *_counts: seconds.append(elapsed))
    assert model.user_factors.shape == (task.customers, task.dim)
    print_rate(matrix.nnz * task.steps, sum(seconds[task.warm_up :]))


if __name__ == "__main__":
    main()
