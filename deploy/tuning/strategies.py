"""Keep a model of a backtest fresh in another way than by training anew: continue it, or fold customers in.

    training = WindowTraining(folder, "window-01", process)         # a dataset, a run, and what they cost
    training.run(lambda data: source.write(window, data), settings, progress)
    versions = Versions(folder, source, windows, options, process)
    versions.train(3, progress)                                     # continues version 2, by the events of window 3
    judge_refresh(versions.version(3).trial.path, judged)           # ``judged`` is window 4
    judge_fold_in(versions.version(0).trial.path, judged, past)

Version 0 is a training on the past of the first window. Version N continues version N - 1 by a warm start, on the
events of window N and a replay of earlier ones, as ``crossfade refresh`` does. So version N - 1 predicts window N. To
fold in, the tables of version 0 stay, and the vectors of customers follow from all their events before the window, in
the average context.

All strategies are judged on the same queries, held-out pairs, and exclusions: those of the dataset of the window, by
the IDs of the dataset that is backtested. Other datasets have other rows, so vectors are looked up by these IDs. An
item that a strategy has no row of, or of which fold-in has no trained vector, is never recommended.

Shapes: Q queries, N interactions, R rows of an entity, I items that are ranked, D columns.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import ClusterError
from crossfade.base.io.durable_file import replace_file
from crossfade.base.io.folder import Folder
from crossfade.deploy.tuning.options import BacktestOptions
from crossfade.deploy.tuning.trial_run import EpochRecord, TrialProcess, TrialRun
from crossfade.deploy.tuning.windows import Window, WindowSource, raw_paths
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.manifest import FILE_NAME, DatasetManifest
from crossfade.trainer.data.reader import Interactions
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.evaluation.held_out import HeldOut, load_held_out
from crossfade.trainer.evaluation.ranking import EvalMetrics, evaluate
from crossfade.trainer.recommend.fold_in import new_query_vectors
from crossfade.trainer.recommend.history import Histories, make_sequences
from crossfade.trainer.recommend.trained_model import TrainedModel, with_trained_model
from crossfade.trainer.runs.job_inputs import JobInputs, open_inputs, open_lineage
from crossfade.trainer.runs.options import ModelSource


class TrainingProgress:
    """Passes on the epochs of a training that have ended, each once."""

    def __init__(self, on_epochs: Callable[[int], None], stop_requested: Callable[[], bool]) -> None:
        self._on_epochs, self.stop_requested, self.ended = on_epochs, stop_requested, 0

    def watch(self, epochs: list[EpochRecord]) -> bool:
        """Take the epochs that a training has logged; return whether to stop it."""
        newest = max([self.ended, *(epoch["epoch"] for epoch in epochs)])  # a run that resumes repeats epochs
        self._on_epochs(newest - self.ended)
        self.ended = newest
        return self.stop_requested()


class WindowTraining:
    """A training of a backtest: its dataset, its run, and the processor seconds of both."""

    def __init__(self, folder: Path, name: str, process: TrialProcess) -> None:
        self.name, self.data, self.trial = name, folder / f"{name}-data", TrialRun(folder, name, process)
        self._process, self._seconds_path = process, folder / f"{name}-seconds.json"

    def run(self, write: Callable[[Path], None], settings: Sequence[str], progress: TrainingProgress) -> bool:
        """Prepare the dataset by ``write``, and train, or go on; return whether the training has ended with a report.

        Raises:
            ClusterError: the training failed.
        """
        if self.trial.is_finished:
            return True
        if not (self.data / FILE_NAME).exists():
            before = time.process_time()
            write(self.data)
            self._record({"prepare": time.process_time() - before})
        given = [f"data.path={json.dumps(str(self.data.absolute()))}", "train.save_embeddings=best"]
        code = self.trial.train([*settings, *given], progress.watch)
        seconds = self.seconds()
        self._record({**seconds, "train": seconds.get("train", 0.0) + self._process.cpu_seconds})
        if code and not progress.stop_requested():
            raise ClusterError(f"{self.name}: the training failed: {self.trial.describe_failure()}")
        return code == 0

    def seconds(self) -> dict[str, float]:
        """Return the processor seconds of preparing and of training, so far."""
        found: dict[str, float] = json.loads(self._seconds_path.read_text()) if self._seconds_path.exists() else {}
        return found

    def discard(self) -> None:
        """Delete all but the log."""
        (self.data / FILE_NAME).unlink(missing_ok=True)  # first, so that the rest is not taken for a dataset
        shutil.rmtree(self.data, ignore_errors=True)
        for path in (*raw_paths(self.data).values(), self._seconds_path):
            path.unlink(missing_ok=True)
        self.trial.discard()

    def _record(self, seconds: Mapping[str, float]) -> None:
        rounded = {stage: round(value, 2) for stage, value in seconds.items()}
        replace_file(self._seconds_path, json.dumps(rounded).encode())


class Versions:
    """The models of a backtest that continue each other; a missing version is made again from the one before."""

    def __init__(
        self,
        folder: Path,
        source: WindowSource,
        windows: Sequence[Window],
        options: BacktestOptions,
        process: TrialProcess,
    ) -> None:
        self._folder, self._source, self._windows = folder, source, windows
        self._options, self.process = options, process

    def version(self, number: int) -> WindowTraining:
        """Return the training of a version."""
        return WindowTraining(self._folder, f"version-{number:02}", self.process)

    def train(self, number: int, progress: TrainingProgress) -> bool:
        """Train a version, after those before it, unless a stop is requested; return whether it is trained.

        Raises:
            ClusterError: the training failed.
        """
        training = self.version(number)
        if training.trial.is_finished:
            return True
        if number == 0:
            return training.run(lambda data: self._source.write_past(self._windows[0], data), (), progress)
        before = self.version(number - 1)
        if not self.train(number - 1, TrainingProgress(lambda _: None, progress.stop_requested)):
            return False
        window, replay = self._windows[number - 1], self._options.replay
        # As in a service, whose increments serve their last epoch.
        epochs = self._options.load_increment_job().train.epochs
        checkpoints = json.dumps(str((before.trial.path / "checkpoints").absolute()))
        return training.run(
            lambda data: self._source.write_increment(window, data, before.data, replay),
            [
                *self._options.increment_settings,
                f"train.eval_every_epochs={epochs}",
                f"checkpoint.warm_start_from={checkpoints}",
            ],
            progress,
        )

    def discard_increments(self) -> None:
        """Delete all versions but version 0."""
        for number in range(1, len(self._windows)):
            self.version(number).discard()


@dataclass(frozen=True)
class JudgedWindow:
    """What all strategies are judged on: the dataset of a window, with the interactions that it was cut from."""

    inputs: JobInputs
    held_out: HeldOut
    counts_I: IntArray
    source: WindowSource

    @staticmethod
    def open(job: JobConfig, data: Path, source: WindowSource) -> JudgedWindow:
        """Read the dataset of a window in ``data``.

        Raises:
            InputError: a file is missing or corrupt.
        """
        path = str(data.absolute())
        inputs = open_inputs(job.model_copy(update={"data": job.data.model_copy(update={"path": path})}))
        with closing(open_lineage(inputs.job, inputs.folder, inputs.manifest)) as lineage:
            spec, queries = inputs.job.evaluate, inputs.job.evaluate.queries_of("test")
            held_out = load_held_out(lineage, "test", spec, rank=0, workers=1, queries=queries)
            counts_I = lineage.counts(inputs.manifest.item)
        return JudgedWindow(inputs, held_out, counts_I, source)

    def ids(self, entity: str) -> IntArray:
        """Return the ID of each row of ``entity``, which is its row in the dataset that is backtested, int64 (R,)."""
        return _ids(self.inputs.folder, self.inputs.manifest, entity)

    def metrics(self, vectors: MappedVectors, context: Mapping[str, IntArray]) -> EvalMetrics:
        """Return the metrics of ``vectors``, of queries in ``context``."""
        item_I = np.flatnonzero(vectors.rows[self.inputs.manifest.item] >= 0)
        held_out = replace(self.held_out, item_I=item_I, context=context)
        spec = self.inputs.job.evaluate
        return evaluate(vectors, self.inputs.model, held_out, spec, self.counts_I, np.asarray)


def _ids(folder: Folder, manifest: DatasetManifest, entity: str) -> IntArray:
    vocabulary = Vocabulary(folder, manifest, entity)
    id_R: IntArray = vocabulary.read(0, vocabulary.rows, ["id"]).column("id").to_numpy()
    return id_R


class MappedVectors:
    """Vectors of a model by the rows of the dataset of a window; zeros where it has no such row.

    Attributes:
        rows: by entity, the row of the model for each row of the window, int64 (R,), -1 for none.
    """

    def __init__(self, model: TrainedModel, judged: JudgedWindow) -> None:
        self._model = model
        tables = [table.name for table in (*model.spec.vectors, *model.spec.context)]
        self.rows = {name: self.rows_of(name, judged)[judged.ids(name)] for name in dict.fromkeys(tables)}
        self.given: dict[str, FloatArray] = {}
        """By entity, vectors of all rows of the window in place of the model's."""

    def rows_of(self, entity: str, judged: JudgedWindow) -> IntArray:
        """Return the row of the model for each row of the dataset that is backtested, int64 (R,), -1 for none."""
        row_R = np.full(judged.source.manifest.entities[entity].rows, -1)
        id_R = _ids(self._model.data, self._model.manifest, entity)
        row_R[id_R] = np.arange(len(id_R))
        return row_R

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Return the vectors of ``rows_N``, int64: float32 (N, D)."""
        if entity in self.given:
            return self.given[entity][rows_N]
        row_N = self.rows[entity][rows_N]
        has_N = row_N >= 0
        vector_ND = np.zeros((len(rows_N), self._model.spec.query.dim), np.float32)
        known_N, place_N = np.unique(row_N[has_N], return_inverse=True)
        if len(known_N):
            vector_ND[has_N] = self._model.vectors.vectors(entity, known_N)[place_N]
        return vector_ND


def judge_refresh(run: Path, judged: JudgedWindow) -> EvalMetrics:
    """Return the metrics of the trained ``run`` on a window.

    Raises:
        InputError: the run or its dataset cannot be read.
    """

    def judge(model: TrainedModel) -> EvalMetrics:
        return judged.metrics(MappedVectors(model, judged), judged.held_out.context)

    return with_trained_model(_source(run), _no_log, judge)


def judge_fold_in(run: Path, judged: JudgedWindow, past: Interactions) -> tuple[EvalMetrics, float]:
    """Return the metrics of ``run`` with its queries folded in from ``past``, and the processor seconds that it took.

    Raises:
        InputError: the run or its dataset cannot be read, or too few queries are trained.
    """

    def judge(model: TrainedModel) -> tuple[EvalMetrics, float]:
        begin = time.process_time()
        query, item = model.spec.query.name, model.spec.item.name
        vectors = MappedVectors(model, judged)
        row_R = vectors.rows_of(item, judged)
        row_R[(row_R >= 0) & ~model.trained_rows(model.spec.item)[row_R]] = -1
        vectors.rows[item] = row_R[judged.ids(item)]
        row_Q, id_R = np.unique(judged.held_out.queries_Q), judged.ids(query)
        vectors.given[query] = np.zeros((len(id_R), model.spec.query.dim), np.float32)
        histories = _histories(past, id_R[row_Q], row_R, model.spec.item.rows)
        vectors.given[query][row_Q] = new_query_vectors(model).vectors(histories)
        seconds = time.process_time() - begin
        return judged.metrics(vectors, {}), seconds

    return with_trained_model(_source(run), _no_log, judge)


def _histories(past: Interactions, id_Q: IntArray, row_R: IntArray, items: int) -> Histories:
    """Return the histories of the queries ``id_Q`` in ``past``, of items that have a row in ``row_R``."""
    order_Q = np.argsort(id_Q)
    place_N = np.minimum(np.searchsorted(id_Q, past.query_N, sorter=order_Q), len(id_Q) - 1)
    query_N, item_N = order_Q[place_N], row_R[past.item_N]
    chosen_N = (id_Q[query_N] == past.query_N) & (item_N >= 0)
    order_M = np.argsort(query_N[chosen_N], kind="stable")
    query_M, item_M, weight_M = (each_N[chosen_N][order_M] for each_N in (query_N, item_N, past.weight_N))
    return make_sequences(query_M, item_M, weight_M, len(id_Q), items)


def _source(run: Path) -> ModelSource:
    return ModelSource.of(source=str(run))


def _no_log(_: str) -> None:
    """Drop a line about checkpoints that are skipped."""
