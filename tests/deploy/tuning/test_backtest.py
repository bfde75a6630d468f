"""``crossfade backtest``: windows of time, each judged by what lies before it; repeated, it trains nothing again."""

import json
import math
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_here import crossfade_here
from running_command import succeeded

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.deploy.tuning.backtest import Backtest
from crossfade.deploy.tuning.options import BacktestOptions
from crossfade.deploy.tuning.windows import Window, cut_windows
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.reader import Interactions
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.pipeline import prepare

CUSTOMERS, TRACKS, EVENTS = 40, 30, 900
SETTINGS = ("--windows", "2", "--set", "train.max_steps=2", "--set", "model.dim=8", "--set", "metrics.port=null")


def timed(times: list[int], queries: list[int], weights: list[float] | None = None) -> Interactions:
    weight_N = np.ones(len(times), np.float32) if weights is None else np.array(weights, np.float32)
    return Interactions(np.array(queries), np.zeros(len(times), np.int64), weight_N, timestamp_N=np.array(times))


def test_windows_have_equal_sizes_and_keep_equal_times_together() -> None:
    times = [0, 1, 2, 3, 4, 4, 6, 7]
    assert cut_windows(timed(times, [0] * 8), 2, 0.5, queries=1) == [
        Window(1, since=4, until=6, past=4, end=6, new_queries=0),
        Window(2, since=6, until=8, past=6, end=8, new_queries=0),
    ]
    found = cut_windows(timed(times, [0] * 8), 3, 0.375, queries=1)
    assert [(window.past, window.end) for window in found] == [(3, 4), (4, 6), (6, 8)]


def test_queries_without_a_positive_past_are_counted() -> None:
    interactions = timed([0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 1, 0], [1, -1, 1, 1, 1, 1])
    (window, _) = cut_windows(interactions, 2, 0.34, queries=4)
    assert (window.past, window.end, window.new_queries) == (2, 4, 1)
    with pytest.raises(InputError, match="window 2 has no interaction of positive weight of a query that has an earl"):
        cut_windows(timed([0, 1, 2, 3], [0, 0, 0, 1]), 2, 0.5, queries=2)
    with pytest.raises(InputError, match=r"splits: they have no interaction; name others"):
        cut_windows(timed([], []), 2, 0.5, queries=2)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare plays with genres of tracks and devices of plays; backtest them."""
    folder = tmp_path_factory.mktemp("backtest")
    draw = np.random.default_rng(1)
    rows = draw.integers(0, [CUSTOMERS, TRACKS, 3], (EVENTS, 3)).tolist()
    lines = [f"c{row[0]},{row[1]},{1000 + at},{['', 'phone', 'desk'][row[2]]}" for at, row in enumerate(rows)]
    (folder / "plays.csv").write_text("\n".join(["customer,track,at,device", *lines]))
    (folder / "tracks.csv").write_text("\n".join(["id,genre", *(f"{track},g{track % 4}" for track in range(TRACKS))]))
    prepare(
        PrepareOptions.of(
            train=[folder / "plays.csv"],
            item="track",
            timestamp="at",
            context="device=device",
            features=f"track={folder / 'tracks.csv'}:id:genre",
            hold_out_test="after:1800",
            out=folder / "data",
        )
    )
    result = succeeded(crossfade_here("backtest", "data", *SETTINGS, "--json", cwd=folder))
    (folder / "found.json").write_text(result.stdout)
    return folder


def opened(workspace: Path, out: Path, **options: Any) -> Backtest:
    return Backtest.open(BacktestOptions.of(data=str(workspace / "data"), windows=2, out=out, **options))


@pytest.mark.slow
def test_dataset_of_a_window_has_its_past_and_its_queries_with_features_and_context(
    workspace: Path, tmp_path: Path
) -> None:
    with closing(opened(workspace, tmp_path / "out")) as backtest:
        window, data = backtest.windows[0], tmp_path / "window"
        backtest.source.write(window, data)
    manifest = read_manifest(Folder(data))
    times = {
        split: np.concatenate([pq.read_table(data / file.path)["timestamp"].to_numpy() for file in files.files])
        for split, files in manifest.splits.items()
    }
    assert set(times) == {"train", "valid", "test"}
    assert Counter(np.concatenate([times["train"], times["valid"]])) == Counter(range(1000, window.since))
    assert len(times["test"]) > 0
    assert window.since <= times["test"].min() <= times["test"].max() < window.until
    whole = read_manifest(Folder(workspace / "data"))
    assert manifest.features["track"]["genre"].pairs == whole.features["track"]["genre"].pairs
    assert (manifest.context, manifest.entities["device"].rows) == (["device"], 2)


@pytest.mark.slow
def test_means_are_over_windows_and_beside_baselines(workspace: Path) -> None:
    found = json.loads((workspace / "found.json").read_text())
    assert [(window["since"], window["until"]) for window in found["windows"]] == [(1450, 1675), (1675, 1900)]
    for name in ("model", "popularity", "recent_popularity", "item_cosine"):
        values = [window["metrics"][name]["ndcg@10"] for window in found["windows"]]
        assert found["means"][name]["ndcg@10"] == pytest.approx(sum(values) / 2)
        assert found["means"][name]["ndcg@10_se"] == pytest.approx(abs(values[0] - values[1]) / 2)
        if name != "model":
            gain = found["means"]["model"]["ndcg@10"] - sum(values) / 2
            assert found["gains"]["ndcg@10"][name]["mean"] == pytest.approx(gain)
            assert math.isfinite(found["gains"]["ndcg@10"][name]["error"])


@pytest.mark.slow
def test_repeated_backtest_keeps_windows_and_rejects_others(workspace: Path) -> None:
    folder = workspace / "runs" / "data-backtest"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == []
    kept = (folder / "window-01.json").stat().st_mtime_ns
    (folder / "window-02.json").unlink()
    # A process that is killed may leave the data and the run folder of a window beside its result.
    leftovers = [folder / "window-01-data", folder / "window-01", folder / "window-01-data-test.parquet"]
    for path in leftovers[:2]:
        path.mkdir()
    leftovers[2].touch()
    text = succeeded(crossfade_here("backtest", "data", *SETTINGS, cwd=workspace)).stdout
    assert (folder / "window-01.json").stat().st_mtime_ns == kept
    assert [path for path in leftovers if path.exists()] == []
    assert [line.split(",")[0] for line in text.splitlines()[:2]] == ["window 1", "window 2"]
    found = json.loads((workspace / "found.json").read_text())
    assert json.loads((folder / "window-02.json").read_text()) == found["windows"][1]["metrics"]
    shown = f"{found['means']['item_cosine']['ndcg@10']:.4f} ± "
    assert any(line.startswith("  by item cosine") and shown in line for line in text.splitlines())
    for options, message in (
        (("--first", "0.6"), "holds a backtest of other windows or data"),
        (("--set", "model.dim=9"), "holds a study of another job: model.dim was 8 and is now 9"),
    ):
        rejected = crossfade_here("backtest", "data", *SETTINGS, *options, cwd=workspace)
        assert (rejected.returncode, message in rejected.stderr) == (2, True)
    settings = list(SETTINGS[3::2])
    with closing(opened(workspace, folder, set=settings)), pytest.raises(InputError, match="another process runs this"):
        opened(workspace, folder, set=settings)


@pytest.mark.slow
def test_what_cannot_be_backtested_is_refused_before_any_work(workspace: Path, tmp_path: Path) -> None:
    untimed = PrepareOptions.of(train=[workspace / "plays.csv"], item="track", out=tmp_path / "untimed")
    prepare(untimed)
    for options, expected in (
        ({"data": str(tmp_path / "untimed")}, "has no timestamps to cut windows by"),
        ({"set": ["checkpoint.warm_start_from=runs/a"]}, "checkpoint.warm_start_from: trainings of a backtest start"),
        ({"set": ["model.dim=x"]}, "model.dim"),
    ):
        values = {"data": str(workspace / "data"), "out": tmp_path / "out", **options}
        with pytest.raises(InputError) as caught:
            Backtest.open(BacktestOptions.of(**values))
        assert expected in str(caught.value)
    assert not (tmp_path / "out").exists()
