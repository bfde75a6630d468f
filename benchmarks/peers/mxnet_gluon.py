"""MXNet in one process: Gluon's Embedding and Trainer, with dense or with row-sparse gradients and lazy updates.

``options`` of the task: ``sparse`` and ``optimizer``. Without ``sparse``, gradients and updates are as large as the
tables. GroupAdaGrad is row-wise AdaGrad; SGD is the cheapest update of MXNet.
"""

from __future__ import annotations

from peers.stock_mxnet import mx
from peers.task import Ids, Task


def main() -> None:
    """Train, and print the rate of the steps after the warm-up."""
    task = Task.from_command_line()
    sparse, optimizer = task.options["sparse"], task.options["optimizer"]
    tables = [
        mx.gluon.nn.Embedding(rows, task.dim, sparse_grad=sparse, weight_initializer=mx.init.Normal(0.1))
        for rows in (task.customers, task.tracks)
    ]
    parameters = {}
    for table in tables:
        table.initialize()
        parameters.update(table.collect_params().items())
    options = {"learning_rate": 0.05, **({"lazy_update": sparse} if optimizer == "sgd" else {})}
    trainer = mx.gluon.Trainer(parameters, optimizer, options, kvstore=None)

    def step(customer_B: Ids, positive_B: Ids, negative_B: Ids) -> None:
        customer, positive, negative = (
            mx.nd.array(ids_B, dtype="int64") for ids_B in (customer_B, positive_B, negative_B)
        )
        with mx.autograd.record():
            margin = (tables[0](customer) * (tables[1](positive) - tables[1](negative))).sum(axis=1)
            loss = mx.nd.Activation(-margin, act_type="softrelu")
        loss.backward()
        trainer.step(task.batch)
        mx.nd.waitall()

    task.time_steps(step)


if __name__ == "__main__":
    main()
