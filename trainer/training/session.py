"""The wiring of one worker's parts into the loop: what is opened for a run, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

import numpy as np

from kvstore.arrays import IntArray
from kvstore.checkpoint.reader import open_checkpoint
from kvstore.errors import CheckpointError, ClusterError, DivergedError
from kvstore.io.folder import Folder
from kvstore.store import NO_RESETS, RowStore
from trainer.config.schema import JobConfig, SplitName
from trainer.data.manifest import DatasetManifest
from trainer.data.reader import InteractionReader
from trainer.data.schedule import BatchSchedule
from trainer.data.vocabulary import Vocabulary
from trainer.embeddings.files import write_embeddings
from trainer.embeddings.staged import StagedEmbeddings
from trainer.evaluation.from_files import evaluate_embeddings
from trainer.evaluation.ranking import EvalMetrics, evaluate, load_held_out
from trainer.model.dense import DenseLayers
from trainer.model.engines.base import make_engine
from trainer.model.negatives import NegativeSampler, needs_counts
from trainer.model.spec import ModelSpec
from trainer.model.towers import Towers, TowerVectors, load_towers
from trainer.model.weighting import FrequencyWeighting
from trainer.monitoring.registry import ProcessMetrics
from trainer.runs.event_log import event_recorder
from trainer.runs.events import Event, EventSink, PhaseEvent
from trainer.runs.folder import RunFolder
from trainer.runs.inputs import load_inputs
from trainer.runs.row_selection import RowSelection, load_row_counts, select_rows
from trainer.training.checkpointing import CheckpointManager, CheckpointMetadata, restore_train_state
from trainer.training.loop import TrainLoop
from trainer.training.metrics import TrainingMetrics
from trainer.training.state import TrainState
from trainer.training.warm_start import open_warm_start


@dataclass(frozen=True)
class TrainingSession:
    """What a run consists of at one worker; ``saver`` and ``reader`` are open."""

    job: JobConfig
    folder: RunFolder
    store: RowStore
    data: Folder
    manifest: DatasetManifest
    model: ModelSpec
    identity: CheckpointMetadata
    vocabularies: dict[str, Vocabulary]
    reader: InteractionReader
    selection: RowSelection
    towers: Towers
    saver: CheckpointManager
    log_event: EventSink
    train_metrics: TrainingMetrics

    def loop(self) -> TrainLoop:
        """The loop of these parts; the items of the valid split are read for it."""
        job, model = self.job, self.model
        valid = self._has("valid")
        counts_N = self._item_counts(valid)
        engine = make_engine(job, model)
        self.train_metrics.watch_gpu(engine.gpu_memory)
        vectors = TowerVectors(self.towers, self.store.pull)
        return TrainLoop(
            train=job.train,
            optimizer=job.optimizer,
            select=job.evaluate.best_metric,
            model=model,
            store=self.store,
            engine=engine,
            schedule=BatchSchedule(
                self.reader,
                self.selection.groups,
                batch_size=job.train.batch_size,
                partitions=job.data.partitions,
                shuffle_block_rows=job.data.shuffle_block_rows,
                seed=job.train.seed,
            ),
            towers=self.towers,
            weighting=self._weighting(),
            sampler=NegativeSampler(
                job.resolved_negatives(model.item.rows),
                model.item.rows,
                counts_N,
                job.train.seed,
                warm_only=model.has_item_features,
            ),
            evaluator=self._judge(vectors, counts_N) if valid and counts_N is not None else lambda: None,
            save_embeddings=lambda epoch: self._keep(epoch, vectors),
            after_step=self.saver.after_step,
            emit=self.log_event,
            on_prefetcher=self.train_metrics.watch_ahead,
        )

    def restore_or_create(self, checkpoint: str | None) -> TrainState:
        """Make the tables, and the progress that they stand at."""
        job, store = self.job, self.store
        self.log_event(PhaseEvent(name="tables"))
        progress = TrainState() if checkpoint is None else restore_train_state(self.identity, checkpoint, store.rank)
        # The rows of a checkpoint of this run are already those of its data.
        start = None if checkpoint else open_warm_start(job, self.model, self.manifest)
        rows_from = start.checkpoint if start else checkpoint
        afresh = start.rows_to_reset(self.data, self.manifest) if start else NO_RESETS
        store.create(self.identity.tables, self.identity.optimizer, job.train.seed, rows_from, afresh)
        if rows_from and self.model.dense:
            self.towers.dense.load(open_checkpoint(rows_from))
        check_dense_in_sync(self.towers.dense, store)
        if job.train.save_embeddings == "best" and progress.best is not None and not self._has_best(progress):
            # They were left on another machine: the best of what is still to come will do.
            progress.best, progress.best_epoch, progress.evals_since_best = None, None, 0
        self.log_event(PhaseEvent(name="training", step=progress.step, rows_from=rows_from))
        return progress

    def quality(self, progress: TrainState) -> dict[str, EvalMetrics]:
        """The metrics of the best embeddings, by split; on test they are judged as they were written."""
        quality = {"valid": progress.best} if progress.best else {}
        if self.job.train.save_embeddings == "best" and self._has("test"):
            self.log_event(PhaseEvent(name="test"))
            best = self.folder.embeddings if self.job.cluster.shared_run_dir else self._kept().folder()
            quality["test"] = evaluate_embeddings(self.job, best, "test", self.store)
            self.train_metrics.record_evaluation("test", quality["test"])
        return quality

    def check_final_checkpoint(self, progress: TrainState) -> None:
        """See that a finished run leaves what it trained.

        Raises:
            CheckpointError: it does not.
        """
        if (
            self.store.rank == 0
            and self.job.train.save_embeddings == "none"
            and not self.saver.has_saved(progress.step)
        ):
            raise CheckpointError(
                f"{self.folder.checkpoints(self.job)}: training is done, but its last checkpoint was not written, and "
                "with train.save_embeddings=none it leaves nothing else; --resume goes on from the one before"
            )

    def _has(self, split: SplitName) -> bool:
        return split in self.manifest.splits and self.manifest.splits[split].rows > 0

    def _item_counts(self, valid: bool) -> IntArray | None:
        negatives = self.job.resolved_negatives(self.model.item.rows)
        if not valid and not needs_counts(negatives, self.model.has_item_features):
            return None
        return self.vocabularies[self.manifest.item].counts()

    def _weighting(self) -> FrequencyWeighting:
        train, counts = self.job.train, self.vocabularies
        return FrequencyWeighting(
            train.query_frequency_power,
            counts[self.manifest.query].counts() if train.query_frequency_power else None,
            train.item_frequency_power,
            counts[self.manifest.item].counts() if train.item_frequency_power else None,
        )

    def _judge(self, vectors: TowerVectors, counts_N: IntArray) -> Callable[[], EvalMetrics]:
        store, wanted = self.store, self.job.evaluate
        held_out = load_held_out(self.reader, self.manifest, "valid", wanted.exclude_splits, store.rank, store.workers)
        return lambda: evaluate(vectors, self.model, held_out, wanted, counts_N, store.all_reduce)

    def _keep(self, epoch: int, vectors: TowerVectors) -> None:
        """Write the embeddings of ``epoch``, the best so far."""
        if self.job.train.save_embeddings != "best":
            return
        best, tables = self.folder.embeddings, self.model.vectors
        if self.job.cluster.shared_run_dir:
            write_embeddings(self.store, tables, self.vocabularies, best, vectors)
        else:
            scratch = best.with_name(f".embeddings.worker-{self.store.rank}")
            self._kept().stage(self.store, tables, self.vocabularies, epoch, scratch, vectors)

    def _kept(self) -> StagedEmbeddings:
        return StagedEmbeddings(self.folder.checkpoints(self.job))

    def _has_best(self, progress: TrainState) -> bool:
        """Whether the best embeddings of ``progress``, or those of a later epoch that will come again, are there."""
        if self.job.cluster.shared_run_dir:
            return self.folder.embeddings.exists()
        epoch = self._kept().epoch()
        return epoch is not None and epoch >= (progress.best_epoch or 0)


def open_session(
    job: JobConfig,
    folder: RunFolder,
    store: RowStore,
    emit: EventSink,
    opened: ExitStack,
    metrics: ProcessMetrics,
    stop_requested: Callable[[], bool],
    checkpoints_requested: Callable[[], int],
) -> TrainingSession:
    """The parts of a run, wired; ``opened`` closes them.

    Raises:
        CrossfadeError: the data or the run folder cannot be used.
    """
    data, manifest, model = load_inputs(job)
    identity = CheckpointMetadata.of(job, folder.run_id(), model.tables)
    train_metrics = opened.enter_context(measure_training(job, model, store, metrics))
    log_event = train_metrics.wrap(_recorder(job, folder, emit, opened) if store.rank == 0 else _ignore)
    counts = load_row_counts(folder.path, job, identity.data, manifest.splits["train"])
    selection = select_rows(job, data, manifest, PhaseEventReporter(train_metrics.wrap(emit)), counts)
    reader = opened.enter_context(closing(InteractionReader(data, manifest, job.data.reader_threads)))
    towers = load_towers(job, model, data, manifest)
    saver = CheckpointManager(
        store,
        job.checkpoint,
        folder.checkpoints(job),
        identity,
        log_event,
        stop_requested,
        checkpoints_requested=checkpoints_requested,
        extra_files=towers.dense.files,
    )
    return TrainingSession(
        job=job,
        folder=folder,
        store=store,
        data=data,
        manifest=manifest,
        model=model,
        identity=identity,
        vocabularies={table.name: Vocabulary(data, manifest, table.name) for table in model.vectors},
        reader=reader,
        selection=selection,
        towers=towers,
        saver=opened.enter_context(saver),
        log_event=log_event,
        train_metrics=train_metrics,
    )


def check_dense_in_sync(dense: DenseLayers, store: RowStore) -> None:
    """See that all workers begin with the same dense layers: from then on each makes the same of the same sums."""
    own = float(dense.checksum())
    if dense.entities and store.all_reduce(np.array([own]))[0] != own * store.workers:
        raise ClusterError(
            "the workers do not begin with the same dense layers; expected hosts that compute alike: the same version "
            "of Crossfade and numpy on the same kind of processor"
        )


@contextmanager
def measure_training(
    job: JobConfig, model: ModelSpec, store: RowStore, metrics: ProcessMetrics
) -> Iterator[TrainingMetrics]:
    """What measures a training, shown by ``metrics``; a training that diverges it shows as such."""
    train_metrics = TrainingMetrics(job, model.tables, store.rank, metrics.mark_alive)
    metrics.register("training", train_metrics)
    metrics.state = lambda: train_metrics.state
    metrics.set_identity(store.rank)
    try:
        yield train_metrics
    except DivergedError:
        train_metrics.diverged()
        raise


def _recorder(job: JobConfig, folder: RunFolder, emit: EventSink, opened: ExitStack) -> EventSink:
    """What writes an event to the run's log and passes it on; ``opened`` closes the log.

    Where hosts share no folder, whoever gets the events writes the log.
    """
    return emit if job.no_shared_run_dir else event_recorder(folder, emit, opened)


class PhaseEventReporter:
    """Progress of long work before training, told as phases: signs of life, for whoever watches for a stall."""

    def __init__(self, emit: EventSink) -> None:
        """Tell ``emit``."""
        self._emit = emit
        self._name = ""

    def phase(self, name: str, total: int | None, unit: str) -> None:
        """Tell that it begins."""
        self._name = name
        self._emit(PhaseEvent(name=name))

    def advance(self, amount: int) -> None:
        """Tell that it goes on."""
        self._emit(PhaseEvent(name=self._name))


def _ignore(_event: Event) -> None:
    """The events of the other workers say what the first one's say."""
