"""A run: the wiring of one worker's parts into the loop, and the report that comes of it."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.checkpoint import open_checkpoint
from kvstore.errors import CheckpointError, ClusterError, DivergedError, InputError, UnreachableError
from kvstore.local import LocalStore
from kvstore.storage import Folder
from kvstore.store import NONE_AFRESH, RowStore
from trainer.balance import Balance
from trainer.checkpoints import Identity, Saver, Stop, newest_usable, starting_rows, take_up
from trainer.data.manifest import Manifest, read_manifest
from trainer.data.shards import Schedule, ShardReader
from trainer.data.vocabulary import Vocabulary
from trainer.dense import DenseLayers
from trainer.dense_reduction import Reduction
from trainer.embeddings import EmbeddingFiles, write_embeddings
from trainer.engines.base import make_engine
from trainer.evaluate import Metrics, evaluate, load_held_out
from trainer.geometry import Found, label_precision
from trainer.job import Job, SplitName
from trainer.kept_embeddings import KeptEmbeddings
from trainer.labels import LabelSource, read_labels
from trainer.loop import Emit, Loop
from trainer.metrics import RoleMetrics, RowMetrics
from trainer.model import Model, make_model
from trainer.negatives import Sampler, needs_counts
from trainer.progress import Progress
from trainer.run_folder import RunFolder, recorder
from trainer.selection import Selection, check_row_groups, found_counts, select
from trainer.towers import Towers, TowerVectors, load_towers
from trainer.training_metrics import TrainingMetrics


def open_data(job: Job) -> tuple[Folder, Manifest, Model]:
    """``load_data`` for a command that begins: storage that does not answer then was named wrongly, most likely.

    Raises:
        InputError: the data cannot be used, or reached, or has nothing to train on.
    """
    try:
        return load_data(job)
    except UnreachableError as error:
        raise InputError(str(error)) from error


def load_data(job: Job) -> tuple[Folder, Manifest, Model]:
    """The data folder of ``job``, its manifest, and the model that fits it.

    Raises:
        InputError: the data cannot be used, or has nothing to train on.
        UnreachableError: storage does not answer.
    """
    folder = Folder(job.data.shards)
    manifest = read_manifest(folder)
    model = make_model(job, manifest)
    if "train" not in manifest.splits or manifest.splits["train"].rows == 0:
        raise InputError(f"{folder.uri}: its train split is empty: there is nothing to train on; prepare other data")
    check_row_groups(job, folder, manifest)
    return folder, manifest, model


def run_training(
    job: Job,
    folder: RunFolder,
    store: RowStore,
    emit: Emit,
    *,
    checkpoint: str | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
    saves_wanted: Callable[[], int] = lambda: 0,
    metrics: RoleMetrics | None = None,
    reduction: Reduction | None = None,
) -> dict[str, Any] | Stop:
    """Train as one worker of ``job`` on ``store``, on from ``checkpoint`` if one is given; ``metrics`` show it.

    Rank 0 writes the records, the checkpoints and the report. Where several workers train dense layers, ``reduction``
    sums their gradients. Returns the report or, where ``stop_requested`` said at
    any worker that the run shall stop, where that was. A checkpoint is written whenever ``saves_wanted`` has grown.

    Raises:
        CrossfadeError: the run failed; its exit code says how.
    """
    assert reduction is not None or not job.sums_dense_layers
    started = time.perf_counter()
    data, manifest, model = load_data(job)
    identity = Identity.of(job, folder.run_id(), model.tables)
    vocabularies = {table.name: Vocabulary(data, manifest, table.name) for table in model.vectors}
    with ExitStack() as opened:
        measured = opened.enter_context(_measuring(job, model, store, metrics or RoleMetrics(job.name, "worker")))
        record = measured.first(_recorder(job, folder, emit, opened) if store.rank == 0 else _ignore)
        counts = found_counts(folder.path, job, identity.data, manifest.splits["train"])
        selection = select(job, data, manifest, PhaseEvents(measured.first(emit)), counts)
        reader = opened.enter_context(closing(ShardReader(data, manifest, job.data.readers)))
        towers = load_towers(job, model, data, manifest)
        towers.dense.reduction = reduction
        saver = opened.enter_context(
            Saver(
                store,
                job.checkpoint,
                folder.checkpoints(job),
                identity,
                record,
                stop_requested,
                saves_wanted=saves_wanted,
                beside=towers.dense.files,
            )
        )
        loop = _make_loop(
            job, folder, store, manifest, model, reader, selection, vocabularies, towers, saver, record, measured
        )
        progress = _start(job, folder, store, data, manifest, model, identity, towers, checkpoint, record)
        measured.follow(progress)
        saver.begin(progress)
        if not loop.run(progress):
            stop = saver.stop(progress)
            record({"event": "stopped", **asdict(stop)})
            return stop
        saver.save_last(progress)
        quality = {"valid": progress.best} if progress.best else {}
        if job.train.embeddings == "best" and "test" in manifest.splits and manifest.splits["test"].rows > 0:
            record({"event": "phase", "name": "test"})
            best = folder.embeddings if job.cluster.shared_folder else KeptEmbeddings(folder.checkpoints(job)).folder()
            quality["test"] = evaluate_embeddings(job, best, "test", store)
            measured.judged("test", quality["test"])
        measured.done()
        traffic = _total_traffic(progress, store)
    if store.rank == 0 and job.train.embeddings == "none" and not saver.has_saved(progress.step):
        raise CheckpointError(
            f"{folder.checkpoints(job)}: training is done, but its last checkpoint was not written, and with "
            "train.embeddings=none it leaves nothing else; --resume goes on from the one before"
        )
    report = {
        **_report(job, model, progress, quality, store),
        "restarts": len(folder.restarts()),
        "restart_causes": folder.restarts(),
        **traffic,
        "train_seconds": progress.train_seconds,
        "examples_per_second": progress.examples_total / progress.train_seconds,
        "wall_seconds": time.perf_counter() - started,
    }
    if store.rank == 0 and job.hosts_apart:
        emit({"event": "report", "report": report})
    elif store.rank == 0:
        folder.write_report(report)
    return report


def run_in_process(
    job: Job,
    folder: RunFolder,
    emit: Emit,
    *,
    resume: bool,
    stop_requested: Callable[[], bool],
    saves_wanted: Callable[[], int] = lambda: 0,
    say: Callable[[str], None],
    metrics: RoleMetrics | None = None,
) -> dict[str, Any] | Stop:
    """``run_training`` without servers; with ``resume``, on from the newest checkpoint that proves to be whole.

    ``say`` gets a line for each that does not, and for the one that does.
    """
    refused: set[str] = set()
    while True:
        found = newest_usable(folder.checkpoints(job), refused, say) if resume else None
        checkpoint = found.uri if found else None
        if found:
            say(f"going on from step {found.manifest.step:,}")
        try:
            with closing(LocalStore()) as store:
                if metrics is not None:
                    metrics.show("rows", RowMetrics(store.work))
                return run_training(
                    job,
                    folder,
                    store,
                    emit,
                    checkpoint=checkpoint,
                    stop_requested=stop_requested,
                    saves_wanted=saves_wanted,
                    metrics=metrics,
                )
        except CheckpointError as error:
            if checkpoint is None or error.checkpoint != checkpoint:
                raise
            say(f"passed over a checkpoint: {error}")
            refused.add(checkpoint)


def _start(
    job: Job,
    folder: RunFolder,
    store: RowStore,
    data: Folder,
    manifest: Manifest,
    model: Model,
    identity: Identity,
    towers: Towers,
    checkpoint: str | None,
    record: Emit,
) -> Progress:
    """Make the tables, and the progress that they stand at."""
    record({"event": "phase", "name": "tables"})
    progress = Progress() if checkpoint is None else take_up(identity, checkpoint, store.rank)
    # The rows of a checkpoint of this run are already those of its data.
    start = None if checkpoint else starting_rows(job, model, manifest)
    rows_from = start.checkpoint if start else checkpoint
    afresh = start.rows_afresh(data, manifest) if start else NONE_AFRESH
    store.create(identity.tables, identity.optimizer, job.train.seed, rows_from, afresh)
    if rows_from and model.dense:
        towers.dense.load(open_checkpoint(rows_from))
    _check_agreement(towers.dense, store)
    if job.train.embeddings == "best" and progress.best is not None and not _has_best(job, folder, progress):
        # They were left on another machine: the best of what is still to come will do.
        progress.best, progress.best_epoch, progress.stale = None, None, 0
    record({"event": "phase", "name": "training", "step": progress.step, "rows_from": rows_from})
    return progress


def _check_agreement(dense: DenseLayers, store: RowStore) -> None:
    """See that all workers begin with the same dense layers: from then on each makes the same of the same sums."""
    own = float(dense.checksum())
    if dense.entities and store.sum(np.array([own]))[0] != own * store.workers:
        raise ClusterError(
            "the workers do not begin with the same dense layers; expected hosts that compute alike: the same version "
            "of Crossfade and numpy on the same kind of processor"
        )


def _has_best(job: Job, folder: RunFolder, progress: Progress) -> bool:
    """Whether the best embeddings of ``progress``, or those of a later epoch that will come again, are there."""
    if job.cluster.shared_folder:
        return folder.embeddings.exists()
    epoch = KeptEmbeddings(folder.checkpoints(job)).epoch()
    return epoch is not None and epoch >= (progress.best_epoch or 0)


@contextmanager
def _measuring(job: Job, model: Model, store: RowStore, metrics: RoleMetrics) -> Iterator[TrainingMetrics]:
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


class PhaseEvents:
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


def _make_loop(
    job: Job,
    folder: RunFolder,
    store: RowStore,
    manifest: Manifest,
    model: Model,
    reader: ShardReader,
    selection: Selection,
    vocabularies: dict[str, Vocabulary],
    towers: Towers,
    saver: Saver,
    record: Emit,
    measured: TrainingMetrics,
) -> Loop:
    negatives = job.negatives_among(model.item.rows)
    has_valid = "valid" in manifest.splits and manifest.splits["valid"].rows > 0
    counted = has_valid or needs_counts(negatives, model.has_item_features)
    counts_N = vocabularies[manifest.item].counts() if counted else None
    schedule = Schedule(
        reader,
        selection.groups,
        batch_size=job.train.batch_size,
        lanes=job.data.lanes,
        window=job.data.shuffle_window,
        seed=job.train.seed,
    )
    if has_valid:
        held_out = load_held_out(reader, manifest, "valid", job.evaluate.exclude, store.rank, store.workers)

    vectors = TowerVectors(towers, store.pull)

    def judge() -> Metrics | None:
        if not has_valid or counts_N is None:
            return None
        return evaluate(vectors, model, held_out, job.evaluate, counts_N, store.sum)

    def keep(epoch: int) -> None:
        if job.train.embeddings != "best":
            return
        if job.cluster.shared_folder:
            write_embeddings(store, model.vectors, vocabularies, folder.embeddings, vectors)
        else:
            scratch = folder.embeddings.with_name(f".embeddings.worker-{store.rank}")
            KeptEmbeddings(folder.checkpoints(job)).keep(store, model.vectors, vocabularies, epoch, scratch, vectors)

    engine = make_engine(job, model)
    measured.watch_gpu(engine.gpu_memory)
    return Loop(
        train=job.train,
        optimizer=job.optimizer,
        select=job.evaluate.select,
        model=model,
        store=store,
        engine=engine,
        schedule=schedule,
        towers=towers,
        balance=Balance(
            job.train.balance,
            vocabularies[manifest.query].counts() if job.train.balance else None,
            job.train.item_balance,
            vocabularies[manifest.item].counts() if job.train.item_balance else None,
        ),
        sampler=Sampler(negatives, model.item.rows, counts_N, job.train.seed, met_alone=model.has_item_features),
        evaluator=judge,
        keep=keep,
        after_step=saver.after_step,
        emit=record,
        watch_ahead=measured.watch_ahead,
    )


def evaluate_embeddings(
    job: Job, embeddings: Path | Folder, split: SplitName, store: RowStore | None = None
) -> Metrics:
    """Judge written embeddings on ``split``, by all workers of ``store`` together or, without one, alone.

    Raises:
        InputError: the data or the embeddings cannot be read, or the data has no such split.
    """
    data, manifest, model = load_data(job) if store else open_data(job)
    if split not in manifest.splits:
        raise InputError(f"{data.uri}: has no split '{split}'; it has {', '.join(manifest.splits)}")
    rank, workers = (store.rank, store.workers) if store else (0, 1)
    with closing(ShardReader(data, manifest, job.data.readers)) as reader:
        held_out = load_held_out(reader, manifest, split, job.evaluate.exclude, rank, workers)
    total = store.sum if store else np.asarray
    counts_N = Vocabulary(data, manifest, manifest.item).counts()
    return evaluate(EmbeddingFiles(embeddings), model, held_out, job.evaluate, counts_N, total)


def judge_labels(job: Job, embeddings: Path | Folder, wanted: LabelSource, least: int) -> Found:
    """How far neighbours among written embeddings share the labels ``wanted`` (``geometry.py``).

    Those rows take part that are liked ``least`` times in train.

    Raises:
        InputError: the data, the embeddings or the labels cannot be read, or too few rows have labels.
    """
    data, manifest, model = open_data(job)
    labels = read_labels(data, manifest, wanted)
    counts_R = Vocabulary(data, manifest, wanted.entity).counts()
    with closing(ShardReader(data, manifest, job.data.readers)) as reader:
        source = EmbeddingFiles(embeddings)
        return label_precision(
            source, model, reader, manifest, wanted.entity, labels, counts_R, least=least, seed=job.train.seed
        )


def _total_traffic(progress: Progress, store: RowStore) -> dict[str, int]:
    mine = asdict(progress.traffic)
    totals = store.sum(np.array(list(mine.values()), dtype=np.float64))
    return {name: int(value) for name, value in zip(mine, totals, strict=True)}


def _report(job: Job, model: Model, progress: Progress, metrics: dict[str, Metrics], store: RowStore) -> dict[str, Any]:
    return {
        "name": job.name,
        "metrics": metrics,
        "best_epoch": progress.best_epoch,
        "stopped_early": progress.stopped_early,
        "examples": progress.examples_total,
        "steps": progress.step,
        "epochs": progress.epochs,
        "parameters": model.parameters,
        "seconds_by_phase": progress.seconds,
        "background_seconds": progress.background,
        "checkpoints": asdict(progress.saves),
        "engine": job.train.engine,
        "store": type(store).__name__,
        "servers": job.cluster.servers,
        "workers": store.workers,
        "versions": {"python": platform.python_version(), **dict(_package_versions())},
    }


def _package_versions() -> Iterator[tuple[str, str]]:
    for package in ("crossfade", "numpy", "numba", "pyarrow"):
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed as a package"
    if "mxnet" in sys.modules:  # which comes in packages of several names
        yield "mxnet", sys.modules["mxnet"].__version__
