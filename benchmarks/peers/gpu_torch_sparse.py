"""PyTorch on a GPU as its documentation has it: ``Embedding(sparse=True)`` and ``SparseAdam``.

``options`` of the task: ``device``, and ``loss``: bpr, or softmax over the items of the batch, none of which is left
out as a negative.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, softplus

from peers.gpu_timing import time_steps
from peers.task import Task


def main() -> None:
    """Train, and print the rate of the steps after the warm-up."""
    task = Task.from_command_line()
    device = torch.device(task.options["device"])
    customers, tracks = (
        torch.nn.Embedding(rows, task.dim, sparse=True, device=device) for rows in (task.customers, task.tracks)
    )
    for table in (customers, tracks):
        torch.nn.init.uniform_(table.weight, -0.1, 0.1)
    optimizer = torch.optim.SparseAdam([customers.weight, tracks.weight], lr=0.05)
    own_B = torch.arange(task.batch, device=device)

    def bpr(ids: torch.Tensor) -> torch.Tensor:
        margin_B = (customers(ids[0]) * (tracks(ids[1]) - tracks(ids[2]))).sum(dim=1)
        return softplus(-margin_B).mean()

    def softmax(ids: torch.Tensor) -> torch.Tensor:
        return cross_entropy(customers(ids[0]) @ tracks(ids[1]).T, own_B)

    loss = {"bpr": bpr, "softmax": softmax}[task.options["loss"]]

    def step(ids: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss(ids).backward()
        optimizer.step()

    time_steps(task, device, step)


if __name__ == "__main__":
    main()
