"""The open parts of one worker's run, from the data to the loop.

    with open_session(job, folder, store, hooks) as session:
        state = session.restore(checkpoint=None)
        finished = session.loop.run(state)

``run.run_training`` is the life of a session, from its start to the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace

from crossfade.base.arrays import IntArray
from crossfade.base.errors import CheckpointError, option_named
from crossfade.kvstore.store import RowStore
from crossfade.kvstore.torch.store import DeviceStore
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.reader import InteractionReader
from crossfade.trainer.data.schedule import BatchSchedule
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.evaluation.held_out import load_held_out
from crossfade.trainer.evaluation.ranking import EvalMetrics
from crossfade.trainer.model.allreduce import AllReduce
from crossfade.trainer.model.engines.base import Engine, make_engine
from crossfade.trainer.model.engines.choice import EngineChoice, choose_engine, local_rank
from crossfade.trainer.model.negatives import NegativeSampler, needs_counts
from crossfade.trainer.model.towers import Towers, TowerVectors, load_towers
from crossfade.trainer.model.weighting import FrequencyWeighting
from crossfade.trainer.monitoring.registry import ProcessMetrics
from crossfade.trainer.runs.event_log import event_recorder
from crossfade.trainer.runs.events import EventSink, PhaseEvent, StoppedEvent
from crossfade.trainer.runs.folder import RunFolder
from crossfade.trainer.runs.inputs import JobInputs, load_inputs, open_lineage
from crossfade.trainer.runs.row_selection import RowSelection, load_row_counts, select_rows
from crossfade.trainer.training.batch_source import BatchSource
from crossfade.trainer.training.batch_warnings import warn_odd_batches
from crossfade.trainer.training.best_embeddings import BestEmbeddings
from crossfade.trainer.training.checkpoint_metadata import CheckpointMetadata
from crossfade.trainer.training.checkpointing import CheckpointManager, StopResult
from crossfade.trainer.training.cpu_kernels import describe_kernels, warn_if_unlike_first
from crossfade.trainer.training.hooks import PhaseReporter, TrainingHooks
from crossfade.trainer.training.loop import TrainLoop
from crossfade.trainer.training.metrics import TrainingMetrics, measure_training
from crossfade.trainer.training.report import total_traffic
from crossfade.trainer.training.restore import create_tables, restore_train_state
from crossfade.trainer.training.state import TrainState
from crossfade.trainer.training.steps import make_step


@dataclass(frozen=True)
class TrainingSession:
    """One worker's run. Every worker calls the same methods in the same order, since they synchronize.

    ``on_event`` drops the events of workers other than the first, which are the same; ``on_worker_event`` does not.
    """

    job: JobConfig
    inputs: JobInputs
    store: RowStore
    metadata: CheckpointMetadata
    engine: Engine
    towers: Towers
    loop: TrainLoop
    checkpoints: CheckpointManager
    embeddings: BestEmbeddings
    metrics: TrainingMetrics
    on_event: EventSink
    on_worker_event: EventSink
    log: Callable[[str], None]

    def restore(self, checkpoint: str | None) -> TrainState:
        """Create the tables and the train state, from ``checkpoint`` if there is one.

        Raises:
            CrossfadeError: the checkpoint, or the warm start of the job, cannot be used.
        """
        self.on_event(PhaseEvent(name="tables"))
        state = TrainState()
        if checkpoint:
            state = restore_train_state(self.metadata, checkpoint, self.store.rank, self.on_event)
        self.store.first_step = state.step
        rows_from = create_tables(self.inputs, self.metadata, self.store, self.towers.dense, checkpoint)
        warn_if_unlike_first(self.metadata.kernels, self.store, self.on_worker_event)
        if isinstance(self.store, DeviceStore):
            on_device, on_host = self.store.memory()
            self.log(
                f"tables take {on_device / 2**30:.2f} GiB on {self.store.device}, {on_host / 2**30:.2f} on the host"
            )
            for note in self.store.notes:
                self.log(note)
        self.embeddings.discard_missing(state)
        name, devices = self.engine.name, list(self.engine.devices)
        self.on_event(
            PhaseEvent(
                name="training",
                step=state.step,
                rows_from=rows_from,
                engine=name,
                devices=devices,
                kernels=self.metadata.kernels,
            )
        )
        self.metrics.attach(state)
        self.checkpoints.begin(state)
        return state

    def stop(self, state: TrainState) -> StopResult:
        """Report that the run stops at ``state``, before it is finished."""
        result = self.checkpoints.stop_result(state)
        self.on_event(StoppedEvent(step=result.step, checkpoint=result.checkpoint))
        return result

    def finish(self, state: TrainState) -> tuple[dict[str, EvalMetrics], dict[str, int]]:
        """Start the last checkpoint and evaluate the best embeddings of a finished run.

        Returns the metrics by split, and the traffic of all workers.
        """
        self.checkpoints.save_last(state)
        metrics = {"valid": state.best} if state.best else {}
        if self.job.train.save_embeddings == "best" and self.inputs.has_rows("test"):
            self.on_event(PhaseEvent(name="test"))
            metrics["test"] = self.embeddings.evaluate_test()
            self.metrics.record_evaluation("test", metrics["test"])
        self.metrics.mark_done()
        return metrics, total_traffic(state, self.store)

    def check_has_output(self, state: TrainState) -> None:
        """Check that a run which keeps no embeddings has written its last checkpoint. Call it after the session.

        Raises:
            CheckpointError: it has not.
        """
        keeps_embeddings = self.job.train.save_embeddings != "none"
        if self.store.rank == 0 and not keeps_embeddings and not self.checkpoints.has_saved(state.step):
            raise CheckpointError(
                f"{self.embeddings.folder.checkpoints(self.job)}: training is done, but its last checkpoint was not "
                f"written, and train.save_embeddings=none keeps nothing else; {option_named('resume')} continues "
                "from the one before"
            )


@contextmanager
def open_session(
    job: JobConfig, folder: RunFolder, store: RowStore, hooks: TrainingHooks, all_reduce: AllReduce | None = None
) -> Iterator[TrainingSession]:
    """Open the data and the model of ``job``, and connect them to ``store``.

    Args:
        job: the job; the session's has a value for each ``auto``.
        folder: the folder of the run, which has started.
        store: holds the tables; they are created by ``TrainingSession.restore``.
        hooks: what the caller observes and requests.
        all_reduce: sums gradients of dense layers over workers; None if there are no such layers or no other workers.

    Raises:
        CrossfadeError: the data or the run folder cannot be used.
    """
    with ExitStack() as opened:
        inputs = load_inputs(job)
        job = inputs.job
        process_metrics = hooks.metrics or ProcessMetrics(job.name, "worker")
        metrics = opened.enter_context(measure_training(job, inputs.model, store, process_metrics))
        # Phases before training are not logged, but they are signs of life of every worker.
        of_every_worker = metrics.observing(hooks.on_event)
        reporter = PhaseReporter(of_every_worker)
        hooks = replace(
            hooks,
            on_event=metrics.observing(_first_worker_sink(job, folder, store, hooks.on_event, opened)),
            on_prefetcher=metrics.observing_prefetcher(hooks.on_prefetcher),
        )
        parts = _Parts(job, folder, store, inputs, opened, hooks.log, all_reduce)
        metadata = parts.metadata()
        row_counts = load_row_counts(folder.path, job, metadata.data, inputs.manifest.splits["train"])
        selection = select_rows(job, inputs.folder, inputs.manifest, reporter, row_counts)
        checkpoints = opened.enter_context(parts.checkpoints(metadata, hooks))
        metrics.watch_gpu(parts.engine.gpu_memory)
        embeddings = parts.embeddings()
        yield TrainingSession(
            job=job,
            inputs=inputs,
            store=store,
            metadata=metadata,
            engine=parts.engine,
            towers=parts.towers,
            loop=parts.loop(selection, embeddings, checkpoints, hooks),
            checkpoints=checkpoints,
            embeddings=embeddings,
            metrics=metrics,
            on_event=hooks.on_event,
            on_worker_event=of_every_worker,
            log=hooks.log,
        )


def _choose_engine(job: JobConfig, store: RowStore, log: Callable[[str], None]) -> EngineChoice:
    """Choose the engine of this worker; the first one logs it if it is not the default, and notes about GPUs."""
    choice = choose_engine(job.train, local_rank(store.rank), store.workers)
    notes = list(choice.notes)
    if choice.engine != "cpu":
        notes.append(f"gradients are computed by engine {choice.engine} on {', '.join(choice.devices)}")
    for note in notes if store.rank == 0 else ():
        log(note)
    return choice


def _first_worker_sink(
    job: JobConfig, folder: RunFolder, store: RowStore, on_event: EventSink, opened: ExitStack
) -> EventSink:
    """Return a sink that logs the events of rank 0 and passes them on. The other workers report the same."""
    if store.rank != 0:
        return lambda _: None
    # Without a shared run folder, the command that receives the events writes the log.
    return on_event if job.no_shared_run_dir else event_recorder(folder, on_event, opened)


class _Parts:
    """Makes the parts of a session, each from the job and the parts before it."""

    def __init__(
        self,
        job: JobConfig,
        folder: RunFolder,
        store: RowStore,
        inputs: JobInputs,
        opened: ExitStack,
        log: Callable[[str], None],
        all_reduce: AllReduce | None,
    ) -> None:
        self._job, self._folder, self._store, self._inputs = job, folder, store, inputs
        context = [table.name for table in inputs.model.context]
        reader = InteractionReader(inputs.folder, inputs.manifest, job.data.reader_threads, context)
        self._reader = opened.enter_context(closing(reader))
        self.towers = load_towers(job, inputs.model, inputs.folder, inputs.manifest)
        self.towers.dense.all_reduce = all_reduce
        self.engine = make_engine(job, inputs.model, _choose_engine(job, store, log))
        names = [table.name for table in inputs.model.vectors]
        self._vocabularies = {name: Vocabulary(inputs.folder, inputs.manifest, name) for name in names}
        self._negatives = job.negatives
        self._counts_N = self._item_counts()

    def _item_counts(self) -> IntArray | None:
        for_negatives = needs_counts(self._negatives, self._inputs.model.has_item_features)
        if not for_negatives:
            return None
        return self._vocabularies[self._inputs.manifest.item].counts()

    def metadata(self) -> CheckpointMetadata:
        command, kernels = self._folder.lock.command, describe_kernels(self.engine.name)
        return CheckpointMetadata.of(self._job, self._folder.run_id(), self._inputs.model.tables, command, kernels)

    def checkpoints(self, metadata: CheckpointMetadata, hooks: TrainingHooks) -> CheckpointManager:
        return CheckpointManager(
            self._store,
            self._job.checkpoint,
            self._folder.checkpoints(self._job),
            metadata,
            hooks,
            extra_files=self.towers.dense.files,
        )

    def embeddings(self) -> BestEmbeddings:
        job, store, held_out, counts_N = self._job, self._store, None, None
        if self._inputs.has_rows("valid"):
            with closing(open_lineage(job, self._inputs.folder, self._inputs.manifest)) as lineage:
                latest = self.towers.latest
                held_out = load_held_out(lineage, "valid", job.evaluate, store.rank, store.workers, latest)
                counts_N = lineage.counts(self._inputs.manifest.item)
        return BestEmbeddings(
            job,
            self._folder,
            store,
            self._inputs.model,
            self._vocabularies,
            TowerVectors(self.towers, store.pull),
            held_out,
            counts_N,
        )

    def loop(
        self,
        selection: RowSelection,
        embeddings: BestEmbeddings,
        checkpoints: CheckpointManager,
        hooks: TrainingHooks,
    ) -> TrainLoop:
        return TrainLoop(
            job=self._job,
            model=self._inputs.model,
            store=self._store,
            step=make_step(self._job, self._inputs.model, self._store, self.engine, self.towers),
            batches=self._batches(selection),
            embeddings=embeddings,
            checkpoints=checkpoints,
            hooks=hooks,
        )

    def _batches(self, selection: RowSelection) -> BatchSource:
        job, model = self._job, self._inputs.model
        schedule = BatchSchedule(
            self._reader,
            selection.groups,
            batch_size=job.train.batch_size,
            partitions=job.data.partitions,
            shuffle_block_rows=job.data.shuffle_block_rows,
            seed=job.train.seed,
            group_rows=job.data.group_rows,
            history_length=model.history.length if model.history else None,
        )
        if self._store.rank == 0:
            warn_odd_batches(job.train.batch_size, schedule.rows, schedule.partitions, self._negatives.kind)
        sampler = NegativeSampler(
            self._negatives, model.item.rows, self._counts_N, job.train.seed, warm_only=model.has_item_features
        )
        return BatchSource(schedule, sampler, self._weighting(), self.towers, self._store.rank, self._store.workers)

    def _weighting(self) -> FrequencyWeighting:
        train, manifest = self._job.train, self._inputs.manifest
        return FrequencyWeighting(
            train.query_frequency_power,
            self._vocabularies[manifest.query].counts() if train.query_frequency_power else None,
            train.item_frequency_power,
            self._vocabularies[manifest.item].counts() if train.item_frequency_power else None,
        )
