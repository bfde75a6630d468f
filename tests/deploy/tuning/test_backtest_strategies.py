"""``crossfade backtest --strategies``: other ways to have a model for a window, judged on the same held-out pairs."""

import hashlib
import json
import math
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_here import crossfade_here
from matplotlib.image import imread
from running_command import succeeded

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.deploy.tuning.backtest import Backtest
from crossfade.deploy.tuning.options import BacktestOptions
from crossfade.deploy.tuning.strategies import JudgedWindow, TrainingProgress, WindowTraining, judge_refresh
from crossfade.deploy.tuning.trial_run import TrialProcess
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.pipeline import prepare

EVENTS, TRACKS, LATE = 900, 24, 24
STRATEGIES = ("full", "refresh", "fold-in")
SETTINGS = ["train.epochs=3", "model.dim=4", "metrics.port=null", "evaluate.k=[10,30]", "evaluate.best_metric=ndcg@10"]
pytestmark = pytest.mark.slow


def plays() -> list[tuple[int, int, int]]:
    """Return customers, tracks, and times; a track appears after the first window's past."""
    rows = np.random.default_rng(2).integers(0, [40, TRACKS, 6], (EVENTS, 3)).tolist()
    return [(row[0], LATE if at >= 460 and not row[2] else row[1], 1000 + at) for at, row in enumerate(rows)]


def options(folder: Path, **more: Any) -> BacktestOptions:
    given = {"data": str(folder / "data"), "out": folder / "out", "windows": 3, "set": SETTINGS}
    compared = {"strategies": STRATEGIES, "increment_set": ["train.epochs=1"]}
    return BacktestOptions.of(**{**given, **compared, **more})


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def ids(data: Path, entity: str) -> list[int]:
    manifest = read_manifest(Folder(data))
    vocabulary = Vocabulary(Folder(data), manifest, entity)
    return list(vocabulary.read(0, vocabulary.rows, ["id"]).column("id").to_pylist())


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare plays, and backtest them until the first increment is judged."""
    folder = tmp_path_factory.mktemp("strategies")
    lines = [f"c{customer},{track},{at},{['phone', 'desk'][at % 2]}" for customer, track, at in plays()]
    (folder / "plays.csv").write_text("\n".join(["customer,track,at,device", *lines]))
    genres = [f"{track},g{track % 4}" for track in range(TRACKS + 1)]
    (folder / "tracks.csv").write_text("\n".join(["id,genre", *genres]))
    prepare(
        PrepareOptions.of(
            train=[folder / "plays.csv"],
            item="track",
            timestamp="at",
            context="device=device",
            features=f"track={folder / 'tracks.csv'}:id:genre",
            hold_out_valid="none",
            out=folder / "data",
        )
    )
    with closing(Backtest.open(options(folder))) as backtest:
        backtest.run(lambda _: None, lambda _: None, (folder / "out" / "window-02-refresh.json").exists)
        assert [result.window.number for result in backtest.results()] == [1]
    return folder


def test_rows_of_an_increment_continue_those_of_the_version_before(stopped: Path) -> None:
    out = stopped / "out"
    before, after = (read_manifest(Folder(out / f"version-{number:02}-data")) for number in range(2))
    assert after.base is not None
    for entity in ("customer", "track"):
        first, second = (ids(out / f"version-{number:02}-data", entity) for number in range(2))
        assert second[: len(first)] == first
        assert len(second) == len(first) + (entity == "track")
    rows = sum(split.rows for name, split in after.splits.items() if name != "replay")
    assert (rows, sum(split.rows for split in before.splits.values())) == (150, 450)
    job = (out / "version-01" / "job.yaml").read_text()
    assert f"{out.resolve()}/version-00/checkpoints" in job
    assert json.loads((out / "version-01" / "report.json").read_text())["epochs"] == 1


@pytest.fixture(scope="module")
def finished(stopped: Path) -> tuple[Path, dict[str, Any], dict[str, str], dict[str, int]]:
    """Resume the backtest; return its folder, what it prints, and files as they were before."""
    out = stopped / "out"
    tables = digests(out / "version-00")
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("window-0*.json") if "seconds" not in path.name}
    with closing(Backtest.open(options(stopped))) as backtest:
        total = backtest.epochs
        ended: list[int] = []
        backtest.run(ended.append, lambda _: None, lambda: False)
        assert sum(ended) == total == 3 * 3 + 3 + 2 * 1
    printed = succeeded(crossfade_here("backtest", *words(stopped), "--json")).stdout
    return out, json.loads(printed), tables, times


def words(folder: Path, epochs: int = 1) -> list[str]:
    settings = [word for each in SETTINGS for word in ("--set", each)]
    chosen = ["--strategies", *STRATEGIES, "--increment-set", f"train.epochs={epochs}"]
    return [str(folder / "data"), "--out", str(folder / "out"), "--windows", "3", *settings, *chosen]


def test_stopped_backtest_resumes_without_training_again(finished: Any) -> None:
    out, found, _, times = finished
    assert {"window-01-full.json", "window-02-refresh.json"} <= times.keys()
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times
    assert [list(window["strategies"]) for window in found["windows"]] == [list(STRATEGIES)] * 3
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"version-00", "version-00-data"}


def test_all_strategies_are_judged_on_the_pairs_of_the_window(finished: Any) -> None:
    _, found, _, _ = finished
    for window in found["windows"]:
        past = {(customer, track) for customer, track, _ in plays()[: window["past"]]}
        pairs = {(customer, track, at % 2) for customer, track, at in plays()[window["past"] : window["end"]]}
        known = {customer for customer, _ in past}
        expected = {pair for pair in pairs if pair[0] in known and pair[:2] not in past}
        for of in window["strategies"].values():
            queries = len({(customer, device) for customer, _, device in expected})
            assert (of["metrics"]["pairs"], of["metrics"]["queries"]) == (len(expected), queries)
            assert min(of["seconds"].values()) >= 0 < sum(of["seconds"].values())
        assert window["strategies"]["full"]["metrics"] == window["metrics"]["model"]
    assert found["windows"][0]["strategies"]["full"]["seconds"].keys() == {"prepare", "train"}


def test_fold_in_keeps_tables_and_never_ranks_an_item_without_a_vector(finished: Any) -> None:
    out, found, tables, _ = finished
    assert digests(out / "version-00") == tables
    # All items fit into 30 places, so that only an item that is never ranked is missed.
    recalls = {name: found["windows"][2]["strategies"][name]["metrics"]["recall@30"] for name in STRATEGIES}
    assert recalls["full"] == recalls["refresh"] == 1.0
    assert 0.5 < recalls["fold-in"] < 1.0


def test_means_and_ratios_are_over_the_windows_after_the_first(finished: Any) -> None:
    _, found, _, _ = finished
    values = {
        name: [window["strategies"][name]["metrics"]["ndcg@10"] for window in found["windows"][1:]]
        for name in STRATEGIES
    }
    for name, of in found["strategies"].items():
        ratio = sum(values[name]) / sum(values["full"])
        assert of["means"]["ndcg@10"] == pytest.approx(sum(values[name]) / 2)
        assert of["of_full"]["ndcg@10"] == pytest.approx(ratio)
        rest = [value - ratio * full for value, full in zip(values[name], values["full"], strict=True)]
        expected = abs(rest[0] - rest[1]) / 2 / (sum(values["full"]) / 2)
        assert of["of_full"]["ndcg@10_se"] == pytest.approx(expected)
        assert math.isfinite(of["of_full"]["seconds_se"])


def test_other_increment_settings_train_only_increments_again(finished: Any, stopped: Path) -> None:
    out, found, tables, times = finished
    text = succeeded(crossfade_here("backtest", *words(stopped, epochs=2))).stdout
    kept = [name for name in times if "refresh" not in name or name.startswith("window-01")]
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == {name: times[name] for name in kept}
    assert (out / "window-02-refresh.json").stat().st_mtime_ns > times["window-02-refresh.json"]
    assert digests(out / "version-00") == tables
    table = text[text.index("strategies, means over windows 2 to 3") :].splitlines()
    assert [line.split()[0] for line in table[2:]] == list(STRATEGIES)
    assert [line.split("  ")[-1].strip() for line in table[2:]] == ["the window", "the window", "window 1"]
    windows = found["windows"]
    for name, of in (("full", windows), ("refresh", windows), ("fold-in", windows[:1] * 3)):
        assert [each["strategies"][name]["trained_until"] for each in windows] == [each["since"] for each in of]
    colors = {tuple(color) for color in (imread(out / "strategies.png")[..., :3] * 255).round().reshape(-1, 3).tolist()}
    assert {(68, 119, 170), (238, 102, 119), (34, 136, 51)} <= colors  # a line for each strategy
    assert f"{found['strategies']['fold-in']['means']['ndcg@10']:.4f} ± " in table[4]
    full = succeeded(crossfade_here("backtest", *words(stopped)[:-6], "--json"))
    alone = json.loads(full.stdout)
    assert [window["metrics"] for window in alone["windows"]] == [window["metrics"] for window in found["windows"]]
    assert alone.keys() == {"windows", "means", "gains"}


def test_vectors_are_looked_up_by_the_ids_of_the_backtested_dataset(stopped: Path, tmp_path: Path) -> None:
    data, out = str(stopped / "data"), tmp_path / "out"
    given = BacktestOptions.of(data=data, out=out, windows=3, set=SETTINGS)
    with closing(Backtest.open(given)) as backtest, closing(TrialProcess()) as process:
        window, training = backtest.windows[1], WindowTraining(backtest.folder, "window-02", process)
        progress = TrainingProgress(lambda _: None, lambda: False)
        assert training.run(lambda data: backtest.source.write(window, data), (), progress)
        judged = JudgedWindow.open(backtest.job, training.data, backtest.source)
        assert ids(training.data, "track") != sorted(ids(training.data, "track"))
        assert judge_refresh(training.trial.path, judged) == training.trial.report()["metrics"]["test"]


def test_options_that_cannot_work_are_rejected(tmp_path: Path) -> None:
    for given, message in (
        ({"strategies": ["refresh"]}, "the others are compared with full"),
        ({"strategies": ["full", "fold-in"], "windows": 2}, "expected at least 3"),
        ({"replay": 1}, "describes the strategy refresh"),
        ({"strategies": ["full", "refresh"], "increment_set": ["data.path=x"]}, "a backtest decides it"),
        ({"strategies": ["full", "refresh"], "replay": 101}, "replay"),
    ):
        with pytest.raises(InputError, match=message):
            BacktestOptions.of(data=str(tmp_path), **given)
