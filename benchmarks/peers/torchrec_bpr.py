"""TorchRec: embeddings sharded over ranks that exchange rows with Gloo, updated by FBGEMM's row-wise AdaGrad.

``options`` of the task: ``ranks``; ``plan``: row (each table's rows are split), table (each table is on one rank), or
column (each table's columns are split); and ``pipelined``: with ``TrainPipelineSparseDist``, which exchanges IDs of the
next batch while this one is computed. On CPUs it has no streams; what overlaps is what Gloo's threads send.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import column_wise, construct_module_sharding_plan, row_wise, table_wise
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from peers.task import Task, print_rate

FEATURES = ["customer", "positive", "negative"]


class Bpr(torch.nn.Module):
    """The BPR loss of triples."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        tables = (("customers", task.customers, FEATURES[:1]), ("tracks", task.tracks, FEATURES[1:]))
        self.embeddings = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(name=name, embedding_dim=task.dim, num_embeddings=rows, feature_names=features)
                for name, rows, features in tables
            ],
            device=torch.device("meta"),
        )

    def forward(self, ids: KeyedJaggedTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the mean loss, and return it twice: as what is minimized, and as what a pipeline returns."""
        vectors = self.embeddings(ids)
        customer_BD, positive_BD, negative_BD = (vectors[name] for name in FEATURES)
        margin_B = (customer_BD * (positive_BD - negative_BD)).sum(dim=1)
        loss = torch.nn.functional.softplus(-margin_B).mean()
        return loss, loss.detach()


def make_model(task: Task) -> DistributedModelParallel:
    """Shard the model by the plan of the task."""
    model, ranks = Bpr(task), task.options["ranks"]
    fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.05, "eps": 1e-8}
    sharder = EmbeddingBagCollectionSharder(fused_params=fused)
    fused_kernel = {"compute_kernel": EmbeddingComputeKernel.FUSED.value}  # the default on CPUs is dense
    by_columns = column_wise(ranks=list(range(ranks)), **fused_kernel)
    plans = {
        "row": [row_wise(**fused_kernel)] * 2,
        "table": [table_wise(rank=rank, **fused_kernel) for rank in range(2)],
        "column": [by_columns] * 2,
    }
    by_table = dict(zip(("customers", "tracks"), plans[task.options["plan"]], strict=True))
    plan = construct_module_sharding_plan(
        model.embeddings, by_table, sharder, local_size=ranks, world_size=ranks, device_type="cpu"
    )
    return DistributedModelParallel(
        model, device=torch.device("cpu"), plan=ShardingPlan({"embeddings": plan}), sharders=[sharder]
    )


def make_step(
    model: DistributedModelParallel, batches: Iterator[KeyedJaggedTensor], is_pipelined: bool
) -> Callable[[], object]:
    """Return what takes one step. The backward pass updates the tables: their optimizer is fused into it."""
    if not is_pipelined:

        def step() -> None:
            loss, _ = model(next(batches))
            loss.backward()

        return step
    pipeline = TrainPipelineSparseDist(model, model.fused_optimizer, torch.device("cpu"))
    return partial(pipeline.progress, batches)


def run(rank: int, task: Task, meeting: str) -> None:
    """Train one rank's part of the batches; rank 0 prints the rate of all."""
    torch.set_num_threads(task.threads)
    ranks = task.options["ranks"]
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    model = make_model(task)
    lengths = torch.ones(len(FEATURES) * task.batch, dtype=torch.int64)
    batches = (
        KeyedJaggedTensor(keys=FEATURES, values=torch.from_numpy(np.concatenate(batch)), lengths=lengths)
        for batch in task.batches(rank, ranks)
    )
    step = make_step(model, batches, task.options["pipelined"])

    def steps(count: int) -> float:
        dist.barrier()
        begin = time.perf_counter()
        for _ in range(count):
            step()
        dist.barrier()
        return time.perf_counter() - begin

    steps(task.warm_up)
    seconds = steps(task.steps)
    if rank == 0:
        print_rate(ranks * task.batch * task.steps, seconds, step_ms=1e3 * seconds / task.steps)
    dist.destroy_process_group()


def main() -> None:
    """Start the ranks."""
    task = Task.from_command_line()
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        torch.multiprocessing.spawn(run, (task, meeting), nprocs=task.options["ranks"])
    sys.stdout.flush()


if __name__ == "__main__":
    main()
