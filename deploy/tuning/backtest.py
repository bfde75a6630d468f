"""Backtest a job by a rolling origin: each window is predicted by a training on its past, and by the baselines.

    with closing(Backtest.open(BacktestOptions.of(data="data/plays", windows=10))) as backtest:
        backtest.run(on_epochs=print, on_window=print, stop_requested=lambda: False)
        summarize(backtest.results())["model"]["ndcg@10"]

    FOLDER/  job.yaml  study.lock  backtest.json  window-01.json  window-01/  window-01.log  window-01-data/ ...

The interactions of a dataset are ordered by time. After the first ``first`` of them, the others are cut into windows of
as many interactions each. A window becomes a dataset of its own: its past is train, with the default valid of prepare
to choose the epoch by, and the window is test, without queries that have no past. Of a past too sparse for a valid, the
last epoch is judged. IDs, counts, popularity, and baselines thus follow from the past alone. IDs are the rows of the
dataset that is backtested; features, content, and context are kept.

Windows with a result are kept when a backtest is repeated, and a training that was interrupted resumes. All
interactions are in memory, at about 100 bytes each while a window is written.

Shapes: W windows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np

from crossfade.base.errors import ClusterError, InputError, Option
from crossfade.base.io.durable_file import replace_file
from crossfade.deploy.launch.trial_run import TrialProcess, TrialRun
from crossfade.deploy.tuning.options import BacktestOptions
from crossfade.deploy.tuning.study_folder import BACKTEST_FILE, OTHER_FOLDER, claim_study
from crossfade.deploy.tuning.windows import Window, WindowSource, cut_windows, raw_paths, read_by_time
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.config.sections import resolved
from crossfade.trainer.data.manifest import FILE_NAME, data_fingerprint
from crossfade.trainer.runs.job_inputs import JobInputs, load_inputs
from crossfade.trainer.runs.run_folder import default_run_dir
from crossfade.trainer.runs.shown_metrics import error_of, is_metric

MODEL = "model"


@dataclass(frozen=True)
class WindowResult:
    """A window that has been judged, with the metrics of the model and of each baseline by name."""

    window: Window
    metrics: Mapping[str, Mapping[str, float]]


class Backtest:
    """A backtest in one folder, which no other process runs until ``close``."""

    def __init__(
        self, folder: Path, job: JobConfig, windows: Sequence[Window], lock: IO[bytes], source: WindowSource
    ) -> None:
        self.folder, self.job, self.windows, self._lock, self.source = folder, job, windows, lock, source

    @staticmethod
    def open(options: BacktestOptions) -> Backtest:
        """Create or resume the backtest of ``options``; read the dataset.

        Raises:
            InputError: the job or the dataset cannot be backtested, or the folder holds something else.
        """
        job = options.load_backtest_job()
        inputs = load_inputs(job)
        _check(job, inputs)
        job = job.model_copy(update={"train": inputs.job.train})  # all windows have the epochs of the whole dataset
        source = WindowSource(
            inputs.folder, inputs.manifest, read_by_time(inputs.folder, inputs.manifest, options.splits)
        )
        queries = inputs.manifest.entities[inputs.manifest.query].rows
        windows = cut_windows(source.interactions, options.windows, options.first, queries)
        folder = options.out or default_run_dir(job).with_name(f"{inputs.folder.name}-backtest")
        lock = claim_study(folder, job, BACKTEST_FILE)
        plan = {"data": data_fingerprint(inputs.folder), "windows": [asdict(window) for window in windows]}
        path, text = folder / BACKTEST_FILE, json.dumps(plan, indent=1)
        if path.exists() and path.read_text(encoding="utf-8") != text:
            lock.close()
            raise InputError(f"{folder}: holds a backtest of other windows or data; ", OTHER_FOLDER, ", or delete it")
        replace_file(path, text.encode())
        return Backtest(folder, job, windows, lock, source)

    @property
    def epochs(self) -> int:
        """Return the epochs of all trainings together."""
        return len(self.windows) * resolved(self.job.train.epochs)

    def results(self) -> list[WindowResult]:
        """Return the windows that have been judged, in order of time."""
        paths = {window: self._result_path(window) for window in self.windows}
        return [WindowResult(window, json.loads(path.read_text())) for window, path in paths.items() if path.exists()]

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
                trial = TrialRun(self.folder, window.name, process)
                if not self._result_path(window).exists():
                    if not trial.is_finished and not self._train(window, trial, on_epochs, stop_requested):
                        return
                    self._write_result(window, trial)
                on_epochs(resolved(self.job.train.epochs) - trial.epochs)
                self._discard(window, trial)  # also what a process that was killed after it wrote the result has left
                on_window(self.results()[window.number - 1])

    def close(self) -> None:
        """Let other processes run the backtest."""
        self._lock.close()

    def _result_path(self, window: Window) -> Path:
        return self.folder / f"{window.name}.json"

    def _data_path(self, window: Window) -> Path:
        return self.folder / f"{window.name}-data"

    def _train(
        self, window: Window, trial: TrialRun, on_epochs: Callable[[int], None], stop_requested: Callable[[], bool]
    ) -> bool:
        """Prepare and train, unless a stop is requested; return whether the training has ended with a report."""
        data = self._data_path(window)
        if not (data / FILE_NAME).exists():
            self.source.write(window, data)
        values = {"data.path": str(data.absolute()), "train.save_embeddings": "best"}
        code = trial.train(values, stop_requested, on_epochs)
        if code and not stop_requested():
            raise ClusterError(f"{window.name}: the training failed: {trial.describe_failure()}")
        return code == 0

    def _write_result(self, window: Window, trial: TrialRun) -> None:
        report = trial.report()
        metrics = {MODEL: report["metrics"]["test"], **report["baselines"]["metrics"].get("test", {})}
        replace_file(self._result_path(window), json.dumps(metrics).encode())

    def _discard(self, window: Window, trial: TrialRun) -> None:
        """Delete all files of a window but its result and its log."""
        data = self._data_path(window)
        (data / FILE_NAME).unlink(missing_ok=True)  # first, so that the rest is not taken for a dataset
        shutil.rmtree(data, ignore_errors=True)
        for path in raw_paths(data).values():
            path.unlink(missing_ok=True)
        trial.discard()


def _check(job: JobConfig, inputs: JobInputs) -> None:
    folder, manifest = inputs.folder, inputs.manifest
    if not manifest.has_timestamp:
        raise InputError(f"{folder.uri}: has no timestamps to cut windows by; prepare it with ", Option("timestamp"))
    if manifest.earlier:
        raise InputError(
            f"{folder.uri}: extends a base dataset, whose events are not in its splits; prepare the events of both "
            "together"
        )
    if given := job.starting_points():
        raise InputError(f"{' and '.join(given)}: trainings of a backtest start from nothing else; leave it out")


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
