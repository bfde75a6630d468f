"""FBGEMM on a GPU: tables in its memory, whose backward pass applies row-wise AdaGrad to the rows it touches.

``options`` of the task: ``device``. IDs are not checked, which Crossfade does and which costs FBGEMM a kernel.
"""

from __future__ import annotations

import fbgemm_gpu  # noqa: F401  (registers the operators)
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from peers.gpu_timing import time_steps
from peers.task import Task


def main() -> None:
    """Train, and print the rate of the steps after the warm-up."""
    task = Task.from_command_line()
    device = torch.device(task.options["device"])
    on_gpu = device.type == "cuda"
    place = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA) if on_gpu else (EmbeddingLocation.HOST, ComputeDevice.CPU)
    module = SplitTableBatchedEmbeddingBagsCodegen(
        embedding_specs=[(rows, task.dim, *place) for rows in (task.customers, task.tracks)],
        feature_table_map=[0, 1, 1],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.05,
        eps=1e-8,
        bounds_check_mode=BoundsCheckMode.NONE,
        device=device,
    )
    module.init_embedding_weights_uniform(-0.1, 0.1)
    offsets = torch.arange(3 * task.batch + 1, device=device)

    def step(ids: torch.Tensor) -> None:
        customer_BD, positive_BD, negative_BD = module(ids.view(-1), offsets).split(task.dim, dim=1)
        margin_B = (customer_BD * (positive_BD - negative_BD)).sum(dim=1)
        torch.nn.functional.softplus(-margin_B).mean().backward()

    time_steps(task, device, step)


if __name__ == "__main__":
    main()
