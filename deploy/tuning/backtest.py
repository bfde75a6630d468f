"""Backtest a job by a rolling origin: each window is predicted by a training on its past, and by the baselines.

    with closing(Backtest.open(BacktestOptions.of(data="data/plays", windows=10))) as backtest:
        backtest.run(on_epochs=print, on_window=print, stop_requested=lambda: False)
        summarize(backtest.results())["model"]["ndcg@10"]

    FOLDER/  job.yaml  study.lock  backtest.json  window-01.json  window-01/  window-01.log ...

The interactions of a dataset are ordered by time. After the first ``first`` of them, the others are cut into windows of
as many interactions each. A window becomes a dataset of its own: its past is train, with the default valid of prepare
to choose the epoch by, and the window is test, without queries that have no past. Of a past too sparse for a valid, the
last epoch is judged. IDs, counts, popularity, and baselines thus follow from the past alone. IDs are the rows of the
dataset that is backtested; features, content, and context are kept.

Windows with a result are kept when a backtest is repeated, and a training that was interrupted resumes. All
interactions are in memory, at about 100 bytes each while a window is written.

Shapes: N interactions, W windows, R rows of the query entity.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.errors import ClusterError, InputError, OptionError, option_named
from crossfade.base.io.durable_file import replace_file
from crossfade.base.io.folder import Folder
from crossfade.deploy.tuning.options import BacktestOptions
from crossfade.deploy.tuning.study_folder import BACKTEST_FILE, OTHER_FOLDER, claim_study, discard_study
from crossfade.deploy.tuning.trial_run import EpochRecord, TrialProcess, TrialRun
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.column_names import TIMESTAMP, WEIGHT
from crossfade.trainer.data.manifest import FILE_NAME, DataFile, DatasetManifest, data_fingerprint
from crossfade.trainer.data.reader import InteractionReader, Interactions, concatenate
from crossfade.trainer.data.split_names import ALL_SPLITS
from crossfade.trainer.prepare.hold_out import DEFAULT
from crossfade.trainer.prepare.option_values import EntityColumn, FeatureFile
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.pipeline import prepare
from crossfade.trainer.runs.job_inputs import load_inputs
from crossfade.trainer.runs.run_folder import default_run_dir
from crossfade.trainer.runs.shown_metrics import error_of, is_metric

_logger = logging.getLogger(__name__)

MODEL = "model"


@dataclass(frozen=True)
class Window:
    """A window: what it is cut from, and what is judged.

    Attributes:
        number: its place in time, from 1.
        since: its first timestamp.
        until: the first timestamp after it.
        past: interactions before it, which are the first so many.
        end: interactions to its end.
        new_queries: queries of the window that have no past, and are left out.
    """

    number: int
    since: int
    until: int
    past: int
    end: int
    new_queries: int

    @property
    def name(self) -> str:
        """Return the name of its files."""
        return f"window-{self.number:02}"


@dataclass(frozen=True)
class WindowResult:
    """A window that has been judged, with the metrics of the model and of each baseline by name."""

    window: Window
    metrics: Mapping[str, Mapping[str, float]]


def cut_windows(interactions: Interactions, windows: int, first: float, queries: int) -> list[Window]:
    """Cut ``interactions``, ordered by time, of ``queries`` rows: ``windows`` of equal size after a share of ``first``.

    Raises:
        InputError: there are no interactions, or a window has no query with a past.
    """
    total, timestamp_N = len(interactions), interactions.timestamp_N
    if not total:
        raise OptionError("splits", problem="they have no interaction", fix="name others")
    assert timestamp_N is not None
    places_W1 = np.linspace(first * total, total, windows + 1).astype(np.int64)
    # Interactions of one time are in one window.
    begins_W = np.searchsorted(timestamp_N, timestamp_N[np.minimum(places_W1[:-1], total - 1)])
    ends_W = np.append(begins_W[1:], total)
    found = []
    for number, (past, end) in enumerate(zip(begins_W.tolist(), ends_W.tolist(), strict=True), start=1):
        known_R, seen_R = np.zeros(queries, np.bool_), np.zeros(queries, np.bool_)
        positive_N = interactions.weight_N > 0
        known_R[interactions.query_N[:past][positive_N[:past]]] = True
        seen_R[interactions.query_N[past:end][positive_N[past:end]]] = True
        if not (known_R & seen_R).any():
            raise OptionError(
                "windows",
                found=windows,
                problem=f"window {number} has no interaction of positive weight of a query that has an earlier one",
                fix="cut fewer windows, or begin them later",
            )
        since, last = int(timestamp_N[past]), int(timestamp_N[end - 1])
        until = int(timestamp_N[end]) if end < total else last + 1
        found.append(Window(number, since, until, past, end, int((seen_R & ~known_R).sum())))
    return found


class Backtest:
    """A backtest in one folder, which no other process runs until ``close``."""

    def __init__(
        self, folder: Path, job: JobConfig, windows: Sequence[Window], lock: IO[bytes], source: WindowSource
    ) -> None:
        self.folder, self.job, self.windows = folder, job, windows
        self._lock, self.source = lock, source

    @staticmethod
    def open(options: BacktestOptions) -> Backtest:
        """Create or resume the backtest of ``options``; read the dataset.

        Raises:
            InputError: the job or the dataset cannot be backtested, or the folder holds something else.
        """
        job = options.load_backtest_job()
        inputs = load_inputs(job)
        _check(job, inputs.manifest, inputs.folder)
        source = WindowSource(inputs.folder, inputs.manifest, _read_by_time(inputs.folder, inputs.manifest, options))
        queries = inputs.manifest.entities[inputs.manifest.query].rows
        windows = cut_windows(source.interactions, options.windows, options.first, queries)
        folder = options.out or default_run_dir(job).with_name(f"{inputs.folder.name}-backtest")
        if options.overwrite:
            discard_study(folder, BACKTEST_FILE)
        lock = claim_study(folder, job, BACKTEST_FILE)
        plan = {"data": data_fingerprint(inputs.folder), "windows": [asdict(window) for window in windows]}
        path, text = folder / BACKTEST_FILE, json.dumps(plan, indent=1)
        if path.exists() and path.read_text(encoding="utf-8") != text:
            lock.close()
            raise InputError(
                f"{folder}: holds a backtest of other windows or data; {OTHER_FOLDER}, or replace it with "
                f"{option_named('overwrite')}"
            )
        replace_file(path, text.encode())
        return Backtest(folder, job, windows, lock, source)

    @property
    def epochs(self) -> int:
        """Return the epochs of all trainings together."""
        return len(self.windows) * self.job.train.epochs

    def results(self) -> list[WindowResult]:
        """Return the windows that have been judged, in order of time."""
        paths = [(window, self._result_path(window)) for window in self.windows]
        return [WindowResult(window, json.loads(path.read_text())) for window, path in paths if path.exists()]

    def run(
        self,
        on_epochs: Callable[[int], None],
        on_window: Callable[[WindowResult], None],
        stop_requested: Callable[[], bool],
    ) -> None:
        """Judge all windows, or until a stop is requested.

        Args:
            on_epochs: receives the number of epochs that have ended.
            on_window: receives each window that has been judged, also earlier.
            stop_requested: whether to stop; called twice a second.

        Raises:
            ClusterError: a training failed.
        """
        with closing(TrialProcess()) as process:
            for window in self.windows:
                if stop_requested():
                    return
                ended = 0
                if not self._result_path(window).exists():
                    ended = self._judge(window, process, on_epochs, stop_requested)
                if not self._result_path(window).exists():
                    return
                # Also of a process that was killed just after it wrote the result.
                self._discard(window, process)
                on_epochs(self.job.train.epochs - ended)
                on_window(self.results()[window.number - 1])

    def close(self) -> None:
        """Let other processes run the backtest."""
        self._lock.close()

    def _data_path(self, window: Window) -> Path:
        return self.folder / f"{window.name}-data"

    def _result_path(self, window: Window) -> Path:
        return self.folder / f"{window.name}.json"

    def _judge(
        self,
        window: Window,
        process: TrialProcess,
        on_epochs: Callable[[int], None],
        stop_requested: Callable[[], bool],
    ) -> int:
        """Prepare, train, and write the result, unless a stop is requested; return the epochs that have ended."""
        data, run = self._data_path(window), TrialRun(self.folder, window.name, process)
        if not (data / FILE_NAME).exists():
            self.source.write(window, data)
        ended = 0

        def watch(epochs: list[EpochRecord]) -> bool:
            nonlocal ended
            newest = max([ended, *(epoch["epoch"] for epoch in epochs)])  # a run that resumes repeats epochs
            on_epochs(newest - ended)
            ended = newest
            return stop_requested()

        settings = [f"data.path={json.dumps(str(data.absolute()))}", "train.save_embeddings=best"]
        code = run.train(settings, watch)
        if code == 0:
            report = run.report()
            metrics = {MODEL: report["metrics"]["test"], **report["baselines"]["metrics"].get("test", {})}
            replace_file(self._result_path(window), json.dumps(metrics).encode())
        elif not stop_requested():
            raise ClusterError(f"{window.name}: the training failed: {run.describe_failure()}")
        return ended

    def _discard(self, window: Window, process: TrialProcess) -> None:
        """Delete what judging ``window`` has left, but its result and its log."""
        data = self._data_path(window)
        shutil.rmtree(data, ignore_errors=True)
        for path in _raw_paths(data).values():
            path.unlink(missing_ok=True)
        TrialRun(self.folder, window.name, process).discard()


def _raw_paths(data: Path) -> dict[str, Path]:
    """Return the files, by split, from which the dataset ``data`` of a window is prepared."""
    return {split: data.with_name(f"{data.name}-{split}.parquet") for split in ("train", "test")}


@dataclass(frozen=True)
class WindowSource:
    """The dataset that is backtested, with its interactions ordered by time."""

    folder: Folder
    manifest: DatasetManifest
    interactions: Interactions

    def write(self, window: Window, out: Path) -> None:
        """Prepare the dataset of ``window`` in ``out``."""
        manifest, raw = self.manifest, _raw_paths(out)
        past = self.interactions.take(slice(0, window.past))
        future = self.interactions.take(slice(window.past, window.end))
        known_N = np.isin(future.query_N, past.query_N[past.weight_N > 0])
        attributes = {
            kind: [
                FeatureFile(entity, self._pattern(of.files), "row", {name: "value"})
                for entity, columns in found.items()
                for name, of in columns.items()
            ]
            for kind, found in (("features", manifest.features), ("content", manifest.content))
        }
        options = PrepareOptions.of(
            **{split: [str(path)] for split, path in raw.items()},
            **attributes,
            query=EntityColumn(manifest.query),
            item=EntityColumn(manifest.item),
            weight=WEIGHT,
            timestamp=TIMESTAMP,
            context={name: name for name in manifest.context},
            hold_out_valid=DEFAULT,
            order="grouped" if manifest.is_grouped else "random",
            out=str(out),
            overwrite=True,
        )
        try:
            pq.write_table(self._table(past), raw["train"])
            pq.write_table(self._table(future.take(known_N)), raw["test"])
            prepare(options, keep=False)
        finally:
            for path in raw.values():
                path.unlink(missing_ok=True)

    def _table(self, interactions: Interactions) -> pa.Table:
        columns = {
            self.manifest.query: interactions.query_N,
            self.manifest.item: interactions.item_N,
            WEIGHT: interactions.weight_N,
            TIMESTAMP: interactions.timestamp_N,
        }
        if interactions.context_NK is not None:
            for place, name in enumerate(self.manifest.context):
                row_N = interactions.context_NK[:, place]
                columns[name] = pa.array(row_N, mask=row_N < 0)
        return pa.table(columns)

    def _pattern(self, files: Sequence[DataFile]) -> str:
        """Return what matches ``files``, which are in one folder."""
        return f"{self.folder.uri}/{PurePosixPath(files[0].path).parent}/*.parquet"


def _check(job: JobConfig, manifest: DatasetManifest, folder: Folder) -> None:
    if not manifest.has_timestamp:
        raise InputError(
            f"{folder.uri}: has no timestamps to cut windows by; prepare it with {option_named('timestamp')}"
        )
    if manifest.base is not None:
        raise InputError(
            f"{folder.uri}: extends a base dataset, whose events are not in it; prepare the events of both together"
        )
    if given := job.starting_points():
        raise InputError(f"{' and '.join(given)}: trainings of a backtest start from nothing else; leave it out")


def _read_by_time(folder: Folder, manifest: DatasetManifest, options: BacktestOptions) -> Interactions:
    """Read the interactions of the splits to cut, ordered by time, and then by their place in the files."""
    splits = [manifest.splits[name] for name in ALL_SPLITS if name in options.splits and name in manifest.splits]
    if not splits:
        found = ", ".join(manifest.splits)
        raise OptionError("splits", found=" ".join(options.splits), problem=f"{folder.uri} has only {found}")
    with closing(InteractionReader(folder, manifest)) as reader:
        parts = [part for split in splits for part in reader.read_all(split, manifest.context, timestamps=True)]
    interactions = concatenate(parts)
    if interactions.timestamp_N is None:  # there are no parts
        return interactions
    return interactions.take(np.argsort(interactions.timestamp_N, kind="stable"))


def summarize(results: Sequence[WindowResult]) -> dict[str, dict[str, float]]:
    """Return the mean of each metric over windows, and its standard error, of the model and of each baseline.

    A baseline that is not computed for every window is left out. The model also has the number of its queries in all
    windows, and the fewest that have a cold item in one.
    """
    found: dict[str, dict[str, float]] = {}
    for name in results[0].metrics:
        windows = [result.metrics[name] for result in results if name in result.metrics]
        if len(windows) == len(results):
            found[name] = dict(_means([{key: of[key] for key in of if is_metric(key)} for of in windows]))
    of_model = [result.metrics[MODEL] for result in results]
    found[MODEL]["queries"] = sum(metrics["queries"] for metrics in of_model)
    found[MODEL]["queries_cold"] = min(metrics.get("queries_cold", 0) for metrics in of_model)
    return found


def gains(results: Sequence[WindowResult], metric: str) -> dict[str, dict[str, float]]:
    """Return by how much the model exceeds each baseline in ``metric``, on average over windows, and its error."""
    differences = [
        {name: result.metrics[MODEL][metric] - of[metric] for name, of in result.metrics.items() if name != MODEL}
        for result in results
    ]
    means = dict(_means(differences))
    return {name: {"mean": means[name], "error": means[error_of(name)]} for name in differences[0] if name in means}


def _means(windows: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, float]]:
    """Yield mean and standard error of each value that all ``windows`` have."""
    for name in windows[0]:
        value_W = np.array([values[name] for values in windows if name in values])
        if len(value_W) == len(windows):
            yield name, float(value_W.mean())
            yield error_of(name), float(value_W.std(ddof=1) / np.sqrt(len(value_W)))
