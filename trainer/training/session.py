"""The open parts of one worker's run, from the data to the loop.

    with open_session(job, folder, hooks) as session:
        state = session.restore(checkpoint=None)
        finished = session.loop.run(state)

``run.run_training`` is the life of a session, from its start to the report.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from crossfade.base.errors import CheckpointError, Option
from crossfade.base.text import counted
from crossfade.kvstore.store import RowStore
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.reader import InteractionReader
from crossfade.trainer.data.schedule import BatchSchedule
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.evaluation.held_out import load_held_out
from crossfade.trainer.evaluation.ranking import EvalMetrics
from crossfade.trainer.model.allreduce import AllReduce
from crossfade.trainer.model.batches import BatchSource, FrequencyWeighting
from crossfade.trainer.model.negatives import NegativeSampler, needs_counts
from crossfade.trainer.model.towers import Towers, TowerVectors, load_towers
from crossfade.trainer.monitoring.registry import ProcessMetrics, TableMetrics
from crossfade.trainer.runs.events import EventSink, PhaseEvent, StoppedEvent, event_recorder
from crossfade.trainer.runs.job_inputs import (
    JobInputs,
    RowSelection,
    load_inputs,
    open_lineage,
    select_rows,
    trained_counts,
)
from crossfade.trainer.runs.run_folder import RunFolder
from crossfade.trainer.training.best_embeddings import BestEmbeddings
from crossfade.trainer.training.checkpointing import CheckpointManager, CheckpointMetadata, StopResult
from crossfade.trainer.training.composition import Composition, compose
from crossfade.trainer.training.hooks import PhaseReporter, TrainingHooks
from crossfade.trainer.training.loop import TrainLoop
from crossfade.trainer.training.report import describe_kernels, total_traffic
from crossfade.trainer.training.restore import create_tables, restore_train_state
from crossfade.trainer.training.state import TrainState
from crossfade.trainer.training.worker_metrics import TrainingMetrics, measure_training

_logger = logging.getLogger(__name__)

_FEW_NEGATIVES = 100


class FinishedRun(NamedTuple):
    """The results of a finished run.

    Attributes:
        metrics: metrics of the best embeddings, by split.
        popularity: how popularity enters scores, and the metrics on valid without that; None if it does not.
        traffic: rows and bytes that all workers moved.
    """

    metrics: dict[str, EvalMetrics]
    popularity: dict[str, Any] | None
    traffic: dict[str, int]


@dataclass(frozen=True)
class TrainingSession:
    """One worker's run. Every worker calls the same methods in the same order, since they synchronize.

    The loop's hook ``on_event`` drops the events of workers other than the first, which are the same;
    ``on_worker_event`` does not.
    """

    inputs: JobInputs
    selection: RowSelection
    composition: Composition
    metadata: CheckpointMetadata
    kernels: str
    towers: Towers
    loop: TrainLoop
    checkpoints: CheckpointManager
    embeddings: BestEmbeddings
    metrics: TrainingMetrics
    on_worker_event: EventSink

    def restore(self, checkpoint: str | None) -> TrainState:
        """Create the tables and the train state, from ``checkpoint`` if there is one.

        Raises:
            CrossfadeError: the checkpoint, or the warm start of the job, cannot be used.
        """
        self.loop.hooks.on_event(PhaseEvent(name="tables"))
        state = TrainState()
        if checkpoint:
            state = restore_train_state(self.metadata, checkpoint, self.composition.store.rank)
        self.composition.store.first_step = state.step
        store, progress = self.composition.store, PhaseReporter(self.on_worker_event)
        rows_from = create_tables(
            self.inputs, self.metadata, store, self.towers.dense, self.selection, checkpoint, progress
        )
        for line in self.composition.describe_tables():
            self.loop.hooks.log(line)
        self.embeddings.discard_missing(state)
        engine, devices = self.composition.engine.name, [self.composition.engine.device]
        self.loop.hooks.on_event(
            PhaseEvent(
                name="training",
                step=state.step,
                rows_from=rows_from,
                engine=engine,
                devices=devices,
                kernels=self.kernels,
            )
        )
        self.metrics.attach(state)
        self.checkpoints.begin(state)
        return state

    def stop(self, state: TrainState) -> StopResult:
        """Report that the run stops at ``state``, before it is finished."""
        result = self.checkpoints.stop_result(state)
        self.loop.hooks.on_event(StoppedEvent(step=result.step, checkpoint=result.checkpoint))
        return result

    def finish(self, state: TrainState) -> FinishedRun:
        """Start the last checkpoint, add the popularity term to the best embeddings, and evaluate these."""
        self.checkpoints.save_last(state)
        metrics, popularity = {"valid": state.best} if state.best else {}, None
        self.loop.hooks.on_event(PhaseEvent(name="popularity"))
        found = self.embeddings.add_popularity(has_queries=state.best is not None)
        if found is not None:
            card, with_it = found
            metrics |= {} if with_it is None else {"valid": with_it}
            popularity = {**card.model_dump(), "without": state.best}
        if self.inputs.job.train.save_embeddings == "best" and self.inputs.has_rows("test"):
            self.loop.hooks.on_event(PhaseEvent(name="test"))
            metrics["test"] = self.embeddings.evaluate_test()
            self.metrics.record_evaluation("test", metrics["test"])
        self.metrics.mark_done()
        return FinishedRun(metrics, popularity, total_traffic(state, self.composition.store))

    def check_has_output(self, state: TrainState) -> None:
        """Check that a run which keeps no embeddings has written its last checkpoint. Call it after the session.

        Raises:
            CheckpointError: it has not.
        """
        job, is_first = self.inputs.job, self.composition.store.rank == 0
        if is_first and job.train.save_embeddings == "none" and not self.checkpoints.has_saved(state.step):
            raise CheckpointError(
                f"{self.embeddings.folder.checkpoints(job)}: training is done, but its last checkpoint was not "
                "written, and train.save_embeddings=none keeps nothing else; ",
                Option("resume"),
                " continues from the one before",
            )


@contextmanager
def open_session(
    job: JobConfig,
    folder: RunFolder,
    hooks: TrainingHooks,
    servers: RowStore | None = None,
    all_reduce: AllReduce | None = None,
) -> Iterator[TrainingSession]:
    """Open the data and the model of ``job``, and what computes them.

    Args:
        job: the job; the session's has a value for each ``auto``.
        folder: the folder of the run, which has started.
        hooks: what the caller observes and requests.
        servers: the worker's store of several processes; None: the session has a store in this process, and closes it.
        all_reduce: sums gradients of dense layers over workers; None if there are no such layers or no other workers.

    Raises:
        CrossfadeError: the data or the run folder cannot be used.
    """
    with ExitStack() as opened:
        inputs = load_inputs(job)
        job, model, manifest = inputs.job, inputs.model, inputs.manifest
        rank = 0 if servers is None else servers.rank
        process_metrics = hooks.metrics or ProcessMetrics(job.name, "worker")
        metrics = opened.enter_context(measure_training(job, model, rank, process_metrics))
        # Phases before training are not logged, but they are signs of life of every worker.
        of_every_worker = metrics.observing(hooks.on_event)
        hooks = replace(
            hooks,
            on_event=metrics.observing(_first_worker_sink(job, folder, rank, hooks.on_event, opened)),
        )
        towers = load_towers(job, model, inputs.folder, manifest)
        towers.dense.all_reduce = all_reduce
        composition = _open_composition(inputs, towers, servers, process_metrics, hooks.log, opened)
        store, kernels = composition.store, describe_kernels(composition.engine.name)
        metrics.watch_gpu(composition.engine.gpu_memory)
        metadata = CheckpointMetadata.of(job, folder.run_id(), model.tables, folder.lock.command)
        selection = select_rows(job, inputs.folder, manifest, PhaseReporter(of_every_worker))
        vocabularies = {table.name: Vocabulary(inputs.folder, manifest, table.name) for table in model.vectors}
        checkpoints = opened.enter_context(
            CheckpointManager(store, job.checkpoint, folder.checkpoints(job), metadata, hooks, towers.dense.files)
        )
        embeddings = _best_embeddings(inputs, folder, store, vocabularies, towers)
        batches = _open_batches(inputs, store, selection, towers, opened)
        loop = TrainLoop(job, model, store, composition.step, batches, embeddings, checkpoints, hooks)
        made = inputs, selection, composition, metadata, kernels, towers, loop, checkpoints, embeddings
        yield TrainingSession(*made, metrics, of_every_worker)


def _first_worker_sink(
    job: JobConfig, folder: RunFolder, rank: int, on_event: EventSink, opened: ExitStack
) -> EventSink:
    """Return a sink that logs the events of rank 0 and passes them on. The other workers report the same."""
    if rank != 0:
        return lambda _: None
    # Without a shared run folder, the command that receives the events writes the log.
    return on_event if job.no_shared_run_dir else event_recorder(folder, on_event, opened)


def _best_embeddings(
    inputs: JobInputs, folder: RunFolder, store: RowStore, vocabularies: Mapping[str, Vocabulary], towers: Towers
) -> BestEmbeddings:
    """Load the worker's part of the valid split, by which the best embeddings are chosen."""
    job, held_out, counts_N = inputs.job, None, None
    if inputs.has_rows("valid"):
        with closing(open_lineage(job, inputs.folder, inputs.manifest)) as lineage:
            queries = job.evaluate.queries_of("valid", in_training=True)
            workers = store.rank, store.workers
            held_out = load_held_out(lineage, "valid", job.evaluate, *workers, towers.latest, queries)
            counts_N = lineage.counts(inputs.manifest.item)
    vectors = TowerVectors(towers, store.pull)
    return BestEmbeddings(inputs, folder, store, vocabularies, vectors, held_out, counts_N)


def _open_composition(
    inputs: JobInputs,
    towers: Towers,
    servers: RowStore | None,
    metrics: ProcessMetrics,
    log: Callable[[str], None],
    opened: ExitStack,
) -> Composition:
    """Choose store, engine, and step. The first worker logs why; a store in this process is measured and closed."""
    composition = compose(inputs.job, inputs.model, towers, servers)
    if composition.stats is not None:
        opened.enter_context(closing(composition.store))
        metrics.register("rows", TableMetrics(composition.stats))
    for note in composition.notes if composition.store.rank == 0 else ():
        log(note)
    return composition


def _open_batches(
    inputs: JobInputs,
    store: RowStore,
    selection: RowSelection,
    towers: Towers,
    opened: ExitStack,
) -> BatchSource:
    """Join what makes the worker's batches: the schedule of interactions, the sampler of negatives, and weights."""
    job, model, manifest = inputs.job, inputs.model, inputs.manifest
    train, negatives = job.train, job.negatives
    context = [table.name for table in model.context]
    reader = InteractionReader(
        inputs.folder,
        manifest,
        job.data.reader_threads,
        context,
        selection.ages,
        log_weights=train.weight_scale == "log",
    )
    opened.enter_context(closing(reader))
    schedule = BatchSchedule(
        reader,
        selection.groups,
        batch_size=train.batch_size,
        partitions=job.data.partitions,
        shuffle_block_rows=job.data.shuffle_block_rows,
        seed=train.seed,
        group_rows=job.data.group_rows,
        history_length=model.history.length if model.history else None,
    )
    if store.rank == 0:
        warn_odd_batches(train.batch_size, schedule.rows, schedule.partitions, negatives.kind)
    counts_N = trained_counts(inputs, manifest.item) if needs_counts(negatives, model.has_item_features) else None
    sampler = NegativeSampler(negatives, model.item.rows, counts_N, train.seed, warm_only=model.has_item_features)
    weighting = FrequencyWeighting(
        train.query_frequency_power,
        trained_counts(inputs, manifest.query) if train.query_frequency_power else None,
        train.item_frequency_power,
        trained_counts(inputs, manifest.item) if train.item_frequency_power else None,
    )
    return BatchSource(schedule, sampler, weighting, towers.add_tower_inputs, store.rank, store.workers)


def warn_odd_batches(batch_size: int, rows: int, partitions: int, negatives: str) -> None:
    """Log a warning if a batch is larger than the data, and one if examples have few in-batch negatives.

    Args:
        batch_size: interactions of a step.
        rows: interactions of an epoch.
        partitions: parts of a batch, inside which examples are negatives of each other.
        negatives: the kind of the negatives, with ``auto`` resolved.
    """
    if batch_size > rows:
        _logger.warning(
            f"train.batch_size is {batch_size:,}, but train has {counted(rows, 'interaction')}, so that an epoch is "
            "one step; lower train.batch_size"
        )
    others = min(batch_size, rows) // max(1, partitions) - 1
    if negatives == "in_batch" and others < _FEW_NEGATIVES:
        _logger.warning(
            f"in-batch negatives: an example has about {max(0, others):,}, the items of the other examples of its "
            f"partition (batches of {min(batch_size, rows):,} in {counted(partitions, 'partition')}); expected at "
            f"least {_FEW_NEGATIVES}: raise train.batch_size, lower data.partitions, or set negatives.kind to mixed"
        )
