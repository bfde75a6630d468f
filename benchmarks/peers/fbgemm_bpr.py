"""FBGEMM: table-batched embeddings on the CPU, whose backward pass applies row-wise AdaGrad to the rows it touches."""

from __future__ import annotations

import fbgemm_gpu  # noqa: F401  (registers the operators)
import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from peers.task import Ids, Task


def main() -> None:
    """Train, and print the rate of the steps after the warm-up."""
    task = Task.from_command_line()
    torch.set_num_threads(task.threads)
    tables = [(rows, task.dim, EmbeddingLocation.HOST, ComputeDevice.CPU) for rows in (task.customers, task.tracks)]
    module = SplitTableBatchedEmbeddingBagsCodegen(
        embedding_specs=tables,
        feature_table_map=[0, 1, 1],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.05,
        eps=1e-8,
    )
    module.init_embedding_weights_uniform(-0.1, 0.1)
    offsets = torch.arange(3 * task.batch + 1)

    def step(customer_B: Ids, positive_B: Ids, negative_B: Ids) -> None:
        ids = torch.from_numpy(np.concatenate([customer_B, positive_B, negative_B]))
        customer_BD, positive_BD, negative_BD = module(ids, offsets).split(task.dim, dim=1)
        margin_B = (customer_BD * (positive_BD - negative_BD)).sum(dim=1)
        torch.nn.functional.softplus(-margin_B).mean().backward()

    task.time_steps(step)


if __name__ == "__main__":
    main()
