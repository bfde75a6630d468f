"""Choose what computes a run: the store of its tables, the engine of its gradients, and the step that joins them.

    composition = compose(job, model, towers)               # a run in this process
    composition = compose(job, model, towers, servers)      # a worker of a distributed run, whose store is ``servers``,
                                                            # MXNet's servers or all workers
    loss, rows = composition.step.take(batch, lr_factor, state)

The engine follows from ``train.engine`` and ``train.device``. Without servers, tables are in the memory that
``train.tables`` names. The step is the fastest one whose needs the three fulfil.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.stats import UpdateStats
from crossfade.kvstore.store import RowStore
from crossfade.kvstore.torch.store import DeviceStore, fits_device
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.model.engines.engine import Engine, EngineChoice, choose_engine, local_rank
from crossfade.trainer.model.engines.torch import TorchEngine, torch_device
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.spec import ModelSpec
from crossfade.trainer.model.towers import Towers
from crossfade.trainer.training.steps import DeviceStep, InPlaceStep, PullPushStep, Step


@dataclass(frozen=True)
class Composition:
    """What computes one worker's part of a run.

    Attributes:
        store: holds the tables, which are created later.
        engine: computes gradients.
        step: takes steps.
        notes: what the user should know about the choice of the engine, a line each.
        stats: counters of the tables in this process; None: servers hold them, or all workers, who count themselves.
        describe_tables: returns lines for the user about where created tables are.
    """

    store: RowStore
    engine: Engine
    step: Step
    notes: tuple[str, ...]
    stats: UpdateStats | None = None
    describe_tables: Callable[[], list[str]] = list


def compose(job: JobConfig, model: ModelSpec, towers: Towers, servers: RowStore | None = None) -> Composition:
    """Choose store, engine, and step of a worker of ``job``, which has a value for each ``auto``.

    Args:
        job: the job.
        model: the tables and the score.
        towers: turn rows of tables into the vectors of ``model``.
        servers: the worker's store on servers, or on all workers; None: the tables are in this process, whose store
            the caller closes.

    Raises:
        MissingExtraError: a package is not installed.
        InputError: a GPU is not available.
    """
    rank, workers = (servers.rank, servers.workers) if servers is not None else (0, 1)
    choice = choose_engine(job.train, local_rank(rank), workers)
    engine = choice.build(job, model)
    # Rows of tables are the vectors that are compared: neither features, sums, nor dense layers are computed.
    vectors_are_rows = not (model.towers or model.query_sum or towers.dense.entities)
    notes = choice.notes
    if choice.engine != "cpu":
        notes += (f"gradients are computed by engine {choice.engine} on {choice.device}",)
    if servers is not None:
        return Composition(servers, engine, PullPushStep(servers, engine, towers), notes)
    if not _keeps_tables_on_device(job, choice, model):
        local = LocalStore()
        step: Step = PullPushStep(local, engine, towers)
        is_plain = vectors_are_rows and not model.score.normalized
        if is_plain and engine.name == "cpu" and job.negatives.kind == "per_example":
            step = InPlaceStep(local, model, LossSpec.of(job))
        return Composition(local, engine, step, notes, local.stats)
    device = DeviceStore(torch_device(choice.device))
    step = PullPushStep(device, engine, towers)
    if vectors_are_rows:
        assert isinstance(engine, TorchEngine)
        step = DeviceStep(device, engine, model)
    return Composition(device, engine, step, notes, device.stats, device.describe)


def _keeps_tables_on_device(job: JobConfig, choice: EngineChoice, model: ModelSpec) -> bool:
    """Return whether tables are in the memory of a device.

    With ``train.tables`` ``auto``, they are on the GPU where they fit, and a step need not leave it: features and dense
    layers are computed on the host, as is what several GPUs have in common.
    """
    if job.train.tables != "auto":
        return job.train.tables == "device"
    stays = choice.engine == "torch" and choice.on_gpu and not job.model.has_towers
    return stays and fits_device(torch_device(choice.device), model.tables, job.optimizer_spec.kind)
