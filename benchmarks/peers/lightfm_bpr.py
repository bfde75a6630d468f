"""LightFM: hogwild BPR with element-wise AdaGrad. A step is an epoch, which visits every interaction.

It draws negatives itself, and has a bias for each customer and track beside the columns.
"""

from __future__ import annotations

import time

import numpy as np
from lightfm import LightFM
from scipy.sparse import coo_matrix

from peers.task import Task, print_rate


def main() -> None:
    """Train, and print the rate of the epochs after the warm-up."""
    task = Task.from_command_line()
    customer_N, positive_N, _ = task.triples()
    ones_N = np.ones(len(customer_N), np.float32)
    rows = customer_N.astype(np.int32), positive_N.astype(np.int32)
    interactions = coo_matrix((ones_N, rows), shape=(task.customers, task.tracks))
    model = LightFM(no_components=task.dim, loss="bpr", learning_schedule="adagrad", random_state=1)
    model.fit_partial(interactions, epochs=task.warm_up, num_threads=task.threads)
    begin = time.perf_counter()
    model.fit_partial(interactions, epochs=task.steps, num_threads=task.threads)
    print_rate(len(customer_N) * task.steps, time.perf_counter() - begin)


if __name__ == "__main__":
    main()
