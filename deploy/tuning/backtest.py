"""Backtest a job by a rolling origin: each window is predicted by a training on its past, and by the baselines.

    with closing(Backtest.open(BacktestOptions.of(data="data/plays", windows=10))) as backtest:
        backtest.run(on_epochs=print, on_window=print, stop_requested=lambda: False)
        summarize(backtest.results())["model"]["ndcg@10"]

    FOLDER/  job.yaml  study.lock  backtest.json  window-01.json  window-01/  window-01.log ...
             window-01-full.json  window-01-refresh.json  refresh.json  version-00/ ...      with other strategies
             strategies.png

The interactions of a dataset are ordered by time. After the first ``first`` of them, the others are cut into windows of
as many interactions each. A window becomes a dataset of its own: its past is train, with the default valid of prepare
to choose the epoch by, and the window is test, without queries that have no past. Of a past too sparse for a valid, the
last epoch is judged. IDs, counts, popularity, and baselines thus follow from the past alone. IDs are the rows of the
dataset that is backtested; features, content, and context are kept.

Other ways to have a model for a window (``strategies.py``) are judged on the same. They begin with version 0, which is
kept; increments are trained again if their settings have changed.

Windows with a result are kept when a backtest is repeated, and a training that was interrupted resumes. All
interactions are in memory, at about 100 bytes each while a window is written.

Shapes: W windows.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from crossfade.base.errors import InputError, MissingExtraError, OptionError, option_named
from crossfade.base.io.durable_file import replace_file
from crossfade.deploy.tuning.options import STRATEGIES, BacktestOptions, Strategy
from crossfade.deploy.tuning.strategies import (
    JudgedWindow,
    TrainingProgress,
    Versions,
    WindowTraining,
    judge_fold_in,
    judge_refresh,
)
from crossfade.deploy.tuning.study_folder import BACKTEST_FILE, OTHER_FOLDER, claim_study, discard_study
from crossfade.deploy.tuning.trial_run import TrialProcess
from crossfade.deploy.tuning.windows import Window, WindowSource, cut_windows, read_by_time
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.manifest import FILE_NAME, data_fingerprint
from crossfade.trainer.runs.job_inputs import JobInputs, load_inputs
from crossfade.trainer.runs.run_folder import default_run_dir
from crossfade.trainer.runs.shown_metrics import error_of, is_metric

MODEL = "model"
SECONDS = "seconds"
"""The name of the processor seconds among the means of a strategy."""
PICTURE_FILE = "strategies.png"
_REFRESH_FILE = "refresh.json"
_COLORS: dict[Strategy, str] = {"full": "#4477aa", "refresh": "#ee6677", "fold-in": "#228833"}
_DAY_SECONDS = 86_400


@dataclass(frozen=True)
class StrategyResult:
    """The metrics of a strategy on a window, and the processor seconds of its stages."""

    metrics: Mapping[str, float]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class WindowResult:
    """A window that has been judged, with the metrics of the model and of each baseline by name.

    ``strategies`` has the strategies that are compared, the model, as full, among them.
    """

    window: Window
    metrics: Mapping[str, Mapping[str, float]]
    strategies: Mapping[Strategy, StrategyResult] = field(default_factory=dict)


class Backtest:
    """A backtest in one folder, which no other process runs until ``close``."""

    def __init__(
        self,
        folder: Path,
        options: BacktestOptions,
        windows: Sequence[Window],
        lock: IO[bytes],
        source: WindowSource,
    ) -> None:
        self.folder, self.windows, self._lock, self.source = folder, windows, lock, source
        self.job, self._increment_job = options.load_backtest_job(), options.load_increment_job()
        self.strategies = [name for name in STRATEGIES if name in options.strategies]
        self._options = options

    @staticmethod
    def open(options: BacktestOptions) -> Backtest:
        """Create or resume the backtest of ``options``; read the dataset.

        Raises:
            InputError: the job or the dataset cannot be backtested, or the folder holds something else.
        """
        job = options.load_backtest_job()
        options.load_increment_job()
        inputs = load_inputs(job)
        _check(job, inputs, options)
        source = WindowSource(
            inputs.folder, inputs.manifest, read_by_time(inputs.folder, inputs.manifest, options.splits)
        )
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
        return Backtest(folder, options, windows, lock, source)

    @property
    def epochs(self) -> int:
        """Return the epochs of all trainings together."""
        return sum(self._epochs_of(window, name) for window in self.windows for name in self.strategies)

    def _epochs_of(self, window: Window, strategy: Strategy) -> int:
        if strategy == "full" or (window.number == 1 and strategy == self.strategies[1]):  # it trains version 0
            return self.job.train.epochs
        return self._increment_job.train.epochs if strategy == "refresh" and window.number > 1 else 0

    def results(self) -> list[WindowResult]:
        """Return the windows that have been judged, in order of time."""
        judged = [window for window in self.windows if all(self._is_judged(window, name) for name in self.strategies)]
        return [self._read(window) for window in judged]

    def _read(self, window: Window) -> WindowResult:
        compared = self.strategies if self._options.is_comparison else []
        texts = {name: self._strategy_path(window, name).read_text() for name in compared}
        found: dict[Strategy, StrategyResult] = {
            name: StrategyResult(**json.loads(text)) for name, text in texts.items()
        }
        return WindowResult(window, json.loads(self._result_path(window).read_text()), found)

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
            versions = Versions(self.folder, self.source, self.windows, self._options, process)
            self._discard_refresh_if_changed(versions)
            for window in self.windows:
                for name in self.strategies:
                    if stop_requested():
                        return
                    progress = TrainingProgress(on_epochs, stop_requested)
                    if not self._is_judged(window, name) and not self._judge(window, name, versions, progress):
                        return
                    on_epochs(max(0, self._epochs_of(window, name) - progress.ended))
                # Also of a process that was killed just after it wrote the result.
                WindowTraining(self.folder, window.name, process).discard()
                on_window(self.results()[window.number - 1])
            versions.discard_increments()

    def close(self) -> None:
        """Let other processes run the backtest."""
        self._lock.close()

    def _result_path(self, window: Window) -> Path:
        return self.folder / f"{window.name}.json"

    def _strategy_path(self, window: Window, strategy: Strategy) -> Path:
        return self.folder / f"{window.name}-{strategy}.json"

    def _is_judged(self, window: Window, strategy: Strategy) -> bool:
        paths = [self._result_path(window)] if strategy == "full" else []
        if self._options.is_comparison:
            paths.append(self._strategy_path(window, strategy))
        return all(path.exists() for path in paths)

    def _judge(self, window: Window, strategy: Strategy, versions: Versions, progress: TrainingProgress) -> bool:
        """Prepare, train, and write the result, unless a stop is requested; return whether it is written."""
        training = WindowTraining(self.folder, window.name, versions.process)
        if strategy == "full":
            result = self._judge_full(window, training, progress)
        else:
            if not (training.data / FILE_NAME).exists():
                self.source.write(window, training.data)
            judge = self._judge_refresh if strategy == "refresh" else self._judge_fold_in
            result = judge(window, JudgedWindow.open(self.job, training.data, self.source), versions, progress)
        if result is None:
            return False
        if self._options.is_comparison:
            replace_file(self._strategy_path(window, strategy), json.dumps(asdict(result)).encode())
        return True

    def _judge_full(
        self, window: Window, training: WindowTraining, progress: TrainingProgress
    ) -> StrategyResult | None:
        if not training.run(lambda data: self.source.write(window, data), (), progress):
            return None
        report = training.trial.report()
        metrics = {MODEL: report["metrics"]["test"], **report["baselines"]["metrics"].get("test", {})}
        replace_file(self._result_path(window), json.dumps(metrics).encode())
        return StrategyResult(metrics[MODEL], training.seconds())

    def _judge_refresh(
        self, window: Window, judged: JudgedWindow, versions: Versions, progress: TrainingProgress
    ) -> StrategyResult | None:
        number = window.number - 1
        if not versions.train(number, progress):
            return None
        version = versions.version(number)
        metrics = judge_refresh(version.trial.path, judged)
        if number > 1:  # its dataset is one that later versions extend
            versions.version(number - 1).trial.discard()
        return StrategyResult(metrics, version.seconds())

    def _judge_fold_in(
        self, window: Window, judged: JudgedWindow, versions: Versions, progress: TrainingProgress
    ) -> StrategyResult | None:
        if not versions.train(0, progress):
            return None
        version = versions.version(0)
        past = self.source.interactions.take(slice(0, window.past))
        metrics, seconds = judge_fold_in(version.trial.path, judged, past)
        before = version.seconds() if window.number == 1 else {}
        return StrategyResult(metrics, {**before, "fold_in": round(seconds, 2)})

    def _discard_refresh_if_changed(self, versions: Versions) -> None:
        """Delete the increments, and their results, that were trained with other settings."""
        if "refresh" not in self.strategies:
            return
        path = self.folder / _REFRESH_FILE
        text = json.dumps({"replay": self._options.replay, "increment": self._options.increment_settings})
        if path.exists() and path.read_text(encoding="utf-8") != text:
            versions.discard_increments()
            for window in self.windows[1:]:
                self._strategy_path(window, "refresh").unlink(missing_ok=True)
        replace_file(path, text.encode())


def _check(job: JobConfig, inputs: JobInputs, options: BacktestOptions) -> None:
    folder, manifest = inputs.folder, inputs.manifest
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
    if options.is_comparison and inputs.model.history is not None and job.evaluate.by == "moment":
        raise OptionError(
            "strategies",
            found=" ".join(options.strategies),
            problem="others than full are judged by histories before the window, and evaluate.by is moment",
            fix="set that to query",
        )


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


def compare_strategies(results: Sequence[WindowResult]) -> dict[str, dict[str, dict[str, float]]]:
    """Return of each strategy the means, with standard errors, over the windows after the first, and ratios to full.

    Processor seconds are among them. The first window is where all strategies begin, with a training on its past. The
    error of a ratio is that of paired windows, by the delta method.
    """
    of_windows = [
        {
            name: {**{key: of.metrics[key] for key in of.metrics if is_metric(key)}, SECONDS: sum(of.seconds.values())}
            for name, of in result.strategies.items()
        }
        for result in results[1:]
    ]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in results[0].strategies:
        means = dict(_means([window[name] for window in of_windows]))
        ratios: dict[str, float] = {}
        for key in (key for key in means if error_of(key) in means):
            pairs_W2 = np.array([[window[each].get(key, np.nan) for each in (name, "full")] for window in of_windows])
            if (full := float(pairs_W2[:, 1].mean())) > 0:
                ratios[key] = means[key] / full
                rest_W = pairs_W2[:, 0] - ratios[key] * pairs_W2[:, 1]
                ratios[error_of(key)] = float(rest_W.std(ddof=1) / np.sqrt(len(rest_W)) / full)
        found[name] = {"means": means, "of_full": ratios}
    return found


def trained_until(strategy: Strategy, window: Window, first: Window) -> int:
    """Return the first timestamp that the tables of a strategy were not trained on when it predicts ``window``.

    Folding in trains no table after the ``first`` window; the vectors of its customers follow from all earlier events.
    """
    return first.since if strategy == "fold-in" else window.since


def draw_strategies(results: Sequence[WindowResult], metric: str, *, in_seconds: bool) -> bytes:
    """Return a PNG with a chart of quality, of processor seconds, and of freshness by window, a line per strategy.

    Args:
        results: the windows, with several strategies.
        metric: the metric of the first chart, which also has that of popularity.
        in_seconds: whether timestamps are in seconds; ages are in days then, otherwise in their unit.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "map", PICTURE_FILE) from error

    figure: Any = Figure(figsize=(8, 7.5), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    quality, cost, age = figure.subplots(3, sharex=True, height_ratios=(2, 1, 1))
    windows, first = [result.window for result in results], results[0].window
    number_W = [window.number for window in windows]
    unit, unit_name = (_DAY_SECONDS, "days") if in_seconds else (1, "in the unit of the timestamps")
    for name in results[0].strategies:
        of_W = [result.strategies[name] for result in results]
        line = {"color": _COLORS[name], "marker": "o", "markersize": 4, "label": name}
        quality.plot(number_W, [of.metrics[metric] for of in of_W], **line)
        cost.plot(number_W, [sum(of.seconds.values()) for of in of_W], **line)
        age_W = [(window.until - trained_until(name, window, first)) / unit for window in windows]
        # Those of full and refresh are the same: one is seen through the other.
        age.plot(number_W, age_W, **line, linestyle="--" if name == "refresh" else "-")
    if all("popularity" in result.metrics for result in results):
        popularity_W = [result.metrics["popularity"][metric] for result in results]
        quality.plot(number_W, popularity_W, color="#999999", linestyle=":", label="by popularity")
    for axes, title in (
        (quality, f"{metric} of each window"),
        (cost, "processor seconds of preparing, training, and folding in"),
        (age, f"age of the newest event that tables were trained on, at the window's end ({unit_name})"),
    ):
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_ylim(bottom=0)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    age.set_xticks(number_W)
    age.set_xlabel("window")
    quality.legend(frameon=False, ncols=4, loc="lower left")
    written = io.BytesIO()
    figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


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
