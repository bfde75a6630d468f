"""Buffalo: hogwild BPR in C++. A step is an epoch, which visits every interaction; it draws negatives itself."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from buffalo.algo.bpr import BPRMF
from buffalo.algo.options import BPRMFOption
from buffalo.data.mm import MatrixMarketOptions
from buffalo.misc import aux, log
from scipy.io import mmwrite
from scipy.sparse import coo_matrix

from peers.task import Task, print_rate


def make_model(task: Task, folder: Path) -> BPRMF:
    """Write the interactions as Buffalo reads them, and build the model."""
    customer_N, positive_N, _ = task.triples()
    ones_N = np.ones(len(customer_N), np.int32)
    matrix = coo_matrix((ones_N, (customer_N, positive_N)), shape=(task.customers, task.tracks)).tocsr()
    mmwrite(folder / "interactions.mtx", matrix, field="integer")
    data_options = MatrixMarketOptions().get_default_option()
    data_options.input.main = str(folder / "interactions.mtx")
    data_options.data.path = str(folder / "interactions.h5")
    data_options.data.tmp_dir = str(folder)
    data_options.data.validation = {}
    options = BPRMFOption().get_default_option()
    options.update(
        d=task.dim,
        num_workers=task.threads,
        num_iters=task.warm_up + task.steps,
        optimizer="sgd",
        num_negative_samples=1,
        compute_loss_on_training=False,
        evaluation_on_learning=False,
        verify_neg=False,
        validation={},
    )
    return BPRMF(aux.Option(options), data_opt=aux.Option(data_options))


def main() -> None:
    """Train, and print the rate of the epochs after the warm-up."""
    log.set_log_level(log.WARN)
    task = Task.from_command_line()
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(task, Path(folder))
        model.initialize()
        ends: list[float] = []
        wait = model.obj.wait_until_done

        class Timed:
            """Passes calls on, and records when each epoch is done."""

            def __getattr__(self, name: str) -> object:
                return getattr(model_object, name)

            def wait_until_done(self) -> None:
                wait()
                ends.append(time.perf_counter())

        model_object, model.obj = model.obj, Timed()
        model.train()
        triples = int(model.data.get_header()["num_nnz"])
    print_rate(triples * task.steps, ends[-1] - ends[task.warm_up - 1])


if __name__ == "__main__":
    main()
