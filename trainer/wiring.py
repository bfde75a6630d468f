"""The wiring of one worker's parts into the loop: what is opened for a run, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvstore.arrays import IntArray
from kvstore.checkpoint import open_checkpoint
from kvstore.errors import CheckpointError, ClusterError, DivergedError
from kvstore.storage import Folder
from kvstore.store import NONE_AFRESH, RowStore
from trainer.balance import Balance
from trainer.checkpoints import Identity, Saver, starting_rows, take_up
from trainer.data.manifest import Manifest
from trainer.data.shards import Schedule, ShardReader
from trainer.data.vocabulary import Vocabulary
from trainer.dense import DenseLayers
from trainer.embeddings import write_embeddings
from trainer.engines.base import make_engine
from trainer.evaluate import Metrics, evaluate, load_held_out
from trainer.job import Job, SplitName
from trainer.job_data import load_data
from trainer.judging import evaluate_embeddings
from trainer.kept_embeddings import KeptEmbeddings
from trainer.loop import Emit, Loop
from trainer.metrics import RoleMetrics
from trainer.model import Model
from trainer.negatives import Sampler, needs_counts
from trainer.progress import Progress
from trainer.run_folder import RunFolder, recorder
from trainer.selection import Selection, found_counts, select
from trainer.towers import Towers, TowerVectors, load_towers
from trainer.training_metrics import TrainingMetrics


@dataclass(frozen=True)
class Wiring:
    """What a run consists of at one worker; ``saver`` and ``reader`` are open."""

    job: Job
    folder: RunFolder
    store: RowStore
    data: Folder
    manifest: Manifest
    model: Model
    identity: Identity
    vocabularies: dict[str, Vocabulary]
    reader: ShardReader
    selection: Selection
    towers: Towers
    saver: Saver
    record: Emit
    measured: TrainingMetrics

    def loop(self) -> Loop:
        """The loop of these parts; the items of the valid split are read for it."""
        job, model = self.job, self.model
        valid = self._has("valid")
        counts_N = self._item_counts(valid)
        engine = make_engine(job, model)
        self.measured.watch_gpu(engine.gpu_memory)
        vectors = TowerVectors(self.towers, self.store.pull)
        return Loop(
            train=job.train,
            optimizer=job.optimizer,
            select=job.evaluate.select,
            model=model,
            store=self.store,
            engine=engine,
            schedule=Schedule(
                self.reader,
                self.selection.groups,
                batch_size=job.train.batch_size,
                lanes=job.data.lanes,
                window=job.data.shuffle_window,
                seed=job.train.seed,
            ),
            towers=self.towers,
            balance=self._balance(),
            sampler=Sampler(
                job.negatives_among(model.item.rows),
                model.item.rows,
                counts_N,
                job.train.seed,
                met_alone=model.has_item_features,
            ),
            evaluator=self._judge(vectors, counts_N) if valid and counts_N is not None else lambda: None,
            keep=lambda epoch: self._keep(epoch, vectors),
            after_step=self.saver.after_step,
            emit=self.record,
            watch_ahead=self.measured.watch_ahead,
        )

    def start(self, checkpoint: str | None) -> Progress:
        """Make the tables, and the progress that they stand at."""
        job, store = self.job, self.store
        self.record({"event": "phase", "name": "tables"})
        progress = Progress() if checkpoint is None else take_up(self.identity, checkpoint, store.rank)
        # The rows of a checkpoint of this run are already those of its data.
        start = None if checkpoint else starting_rows(job, self.model, self.manifest)
        rows_from = start.checkpoint if start else checkpoint
        afresh = start.rows_afresh(self.data, self.manifest) if start else NONE_AFRESH
        store.create(self.identity.tables, self.identity.optimizer, job.train.seed, rows_from, afresh)
        if rows_from and self.model.dense:
            self.towers.dense.load(open_checkpoint(rows_from))
        check_agreement(self.towers.dense, store)
        if job.train.embeddings == "best" and progress.best is not None and not self._has_best(progress):
            # They were left on another machine: the best of what is still to come will do.
            progress.best, progress.best_epoch, progress.stale = None, None, 0
        self.record({"event": "phase", "name": "training", "step": progress.step, "rows_from": rows_from})
        return progress

    def quality(self, progress: Progress) -> dict[str, Metrics]:
        """The metrics of the best embeddings, by split; on test they are judged as they were written."""
        quality = {"valid": progress.best} if progress.best else {}
        if self.job.train.embeddings == "best" and self._has("test"):
            self.record({"event": "phase", "name": "test"})
            best = self.folder.embeddings if self.job.cluster.shared_folder else self._kept().folder()
            quality["test"] = evaluate_embeddings(self.job, best, "test", self.store)
            self.measured.judged("test", quality["test"])
        return quality

    def check_left(self, progress: Progress) -> None:
        """See that a finished run leaves what it trained.

        Raises:
            CheckpointError: it does not.
        """
        if self.store.rank == 0 and self.job.train.embeddings == "none" and not self.saver.has_saved(progress.step):
            raise CheckpointError(
                f"{self.folder.checkpoints(self.job)}: training is done, but its last checkpoint was not written, and "
                "with train.embeddings=none it leaves nothing else; --resume goes on from the one before"
            )

    def _has(self, split: SplitName) -> bool:
        return split in self.manifest.splits and self.manifest.splits[split].rows > 0

    def _item_counts(self, valid: bool) -> IntArray | None:
        negatives = self.job.negatives_among(self.model.item.rows)
        if not valid and not needs_counts(negatives, self.model.has_item_features):
            return None
        return self.vocabularies[self.manifest.item].counts()

    def _balance(self) -> Balance:
        train, counts = self.job.train, self.vocabularies
        return Balance(
            train.balance,
            counts[self.manifest.query].counts() if train.balance else None,
            train.item_balance,
            counts[self.manifest.item].counts() if train.item_balance else None,
        )

    def _judge(self, vectors: TowerVectors, counts_N: IntArray) -> Callable[[], Metrics]:
        store, wanted = self.store, self.job.evaluate
        held_out = load_held_out(self.reader, self.manifest, "valid", wanted.exclude, store.rank, store.workers)
        return lambda: evaluate(vectors, self.model, held_out, wanted, counts_N, store.sum)

    def _keep(self, epoch: int, vectors: TowerVectors) -> None:
        """Write the embeddings of ``epoch``, the best so far."""
        if self.job.train.embeddings != "best":
            return
        best, tables = self.folder.embeddings, self.model.vectors
        if self.job.cluster.shared_folder:
            write_embeddings(self.store, tables, self.vocabularies, best, vectors)
        else:
            scratch = best.with_name(f".embeddings.worker-{self.store.rank}")
            self._kept().keep(self.store, tables, self.vocabularies, epoch, scratch, vectors)

    def _kept(self) -> KeptEmbeddings:
        return KeptEmbeddings(self.folder.checkpoints(self.job))

    def _has_best(self, progress: Progress) -> bool:
        """Whether the best embeddings of ``progress``, or those of a later epoch that will come again, are there."""
        if self.job.cluster.shared_folder:
            return self.folder.embeddings.exists()
        epoch = self._kept().epoch()
        return epoch is not None and epoch >= (progress.best_epoch or 0)


def open_wiring(
    job: Job,
    folder: RunFolder,
    store: RowStore,
    emit: Emit,
    opened: ExitStack,
    metrics: RoleMetrics,
    stop_requested: Callable[[], bool],
    saves_wanted: Callable[[], int],
) -> Wiring:
    """The parts of a run, wired; ``opened`` closes them.

    Raises:
        CrossfadeError: the data or the run folder cannot be used.
    """
    data, manifest, model = load_data(job)
    identity = Identity.of(job, folder.run_id(), model.tables)
    measured = opened.enter_context(measuring(job, model, store, metrics))
    record = measured.first(_recorder(job, folder, emit, opened) if store.rank == 0 else _ignore)
    counts = found_counts(folder.path, job, identity.data, manifest.splits["train"])
    selection = select(job, data, manifest, _PhaseEvents(measured.first(emit)), counts)
    reader = opened.enter_context(closing(ShardReader(data, manifest, job.data.readers)))
    towers = load_towers(job, model, data, manifest)
    saver = Saver(
        store,
        job.checkpoint,
        folder.checkpoints(job),
        identity,
        record,
        stop_requested,
        saves_wanted=saves_wanted,
        beside=towers.dense.files,
    )
    return Wiring(
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
        record=record,
        measured=measured,
    )


def check_agreement(dense: DenseLayers, store: RowStore) -> None:
    """See that all workers begin with the same dense layers: from then on each makes the same of the same sums."""
    own = float(dense.checksum())
    if dense.entities and store.sum(np.array([own]))[0] != own * store.workers:
        raise ClusterError(
            "the workers do not begin with the same dense layers; expected hosts that compute alike: the same version "
            "of Crossfade and numpy on the same kind of processor"
        )


@contextmanager
def measuring(job: Job, model: Model, store: RowStore, metrics: RoleMetrics) -> Iterator[TrainingMetrics]:
    """What measures a training, shown by ``metrics``; a training that diverges it shows as such."""
    measured = TrainingMetrics(job, model.tables, store.rank, metrics.sign)
    metrics.show("training", measured)
    metrics.state = lambda: measured.state
    metrics.joined(store.rank)
    try:
        yield measured
    except DivergedError:
        measured.diverged()
        raise


def _recorder(job: Job, folder: RunFolder, emit: Emit, opened: ExitStack) -> Emit:
    """What writes an event to the run's log and passes it on; ``opened`` closes the log.

    Where hosts share no folder, whoever gets the events writes the log.
    """
    return emit if job.hosts_apart else recorder(folder, emit, opened)


class _PhaseEvents:
    """Progress of long work before training, told as phases: signs of life, for whoever watches for a stall."""

    def __init__(self, emit: Emit) -> None:
        """Tell ``emit``."""
        self._emit = emit
        self._name = ""

    def phase(self, name: str, total: int | None, unit: str) -> None:
        """Tell that it begins."""
        self._name = name
        self._emit({"event": "phase", "name": name})

    def advance(self, amount: int) -> None:
        """Tell that it goes on."""
        self._emit({"event": "phase", "name": self._name})


def _ignore(_event: dict[str, Any]) -> None:
    """The events of the other workers say what the first one's say."""
