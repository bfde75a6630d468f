"""The section of ``make bench`` on waiting: its page and targets, and the work, quality, and times behind them."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from peers.columns import HELD_OUT, TRAIN  # noqa: E402
from peers.plays import ndcg, read_plays  # noqa: E402
from suite.page import PAGE, render  # noqa: E402
from suite.plain_prepare import prepare  # noqa: E402
from suite.plan import FULL, measurements  # noqa: E402
from suite.processes import MeasurementError, run_module  # noqa: E402
from suite.waiting_work import WaitingSizes, make_events, make_plays  # noqa: E402

SIZES = WaitingSizes(
    events=2_000,
    event_users=50,
    event_tracks=40,
    plays=900,
    users=100,
    tracks=500,
    trained=(1, 1, 1),
    calls=1,
    starts=1,
)
TIMES = {"seconds": 12.0, "cpu_seconds": 20.0}


def page_of(figures: dict[str, dict[str, float]]) -> str:
    """Return the page of a run at the full scale with these figures, by key."""
    common = {"repeat": 0, "commit": "abc", "load": 0.5, "date": "2026-11-29"}
    machine = {"processor": "EPYC", "cores": 2, "memory_gib": 24.0, "system": "Linux", "virtual": True}
    record: dict[str, Any] = {"scale": "full", "commit": "abc", "date": "2026-11-29", "command": "make bench"}
    measured = [{"key": f"waiting/{key}", "values": values, **common} for key, values in figures.items()]
    return render({**record, "versions": {}, "machine": machine, "measurements": measured})[PAGE]


def test_figures_of_every_measurement_are_on_the_page(tmp_path: Path) -> None:
    names = ("events_per_second", "peak_gib", "recommend_ms", "similar_ms", "second_seconds", "second_cpu_seconds")
    figures = TIMES | dict.fromkeys([*names, "evaluate_seconds", "step_seconds", "share"], 1.0)
    planned = [each.key.partition("/")[2] for each in measurements(FULL, tmp_path, False) if each.section == "waiting"]
    section = page_of(dict.fromkeys(planned, figures)).partition("## Waiting\n")[2].partition("\n## ")[0]
    assert "not measured" not in section
    for key in planned:
        assert "not measured" in page_of(dict.fromkeys({*planned} - {key}, figures)).partition("## Waiting\n")[2]


def test_ratios_to_peers_are_targets() -> None:
    page = page_of(
        {
            "prepare/crossfade": {**TIMES, "events_per_second": 1.6e6, "peak_gib": 1.5},
            "prepare/plain": {**TIMES, "seconds": 6.0},
            "prepare/csv": {**TIMES, "events_per_second": 0.9e6},
            "fit/crossfade": {**TIMES, "ndcg@10": 0.2},
            "fit/implicit": {**TIMES, "seconds": 3.0},
            "calls/crossfade": {"recommend_ms": 0.5, "similar_ms": 1.5},
            "evaluation": {"share": 0.06},
        }
    )
    assert "| Crossfade, Parquet | 12.0 | 20.0 | 1.60 | 1.50 | 2.00 |" in page
    assert "| Crossfade | 12.0 | 20.0 | 0.2000 | 4.00 |" in page
    assert "| prepare over plain DuckDB statements, time | ≤ 1.60 | 2.00 | missed |" in page
    assert "| prepare from CSV, million events per second | ≥ 1.00 | 0.90 | missed |" in page
    assert "| fit over implicit's ALS, time | ≤ 5.00 | 4.00 | met |" in page
    assert "| recommend of one ID, milliseconds | ≤ 1.00 | 0.50 | met |" in page
    assert "| similar of one ID, milliseconds | ≤ 1.00 | 1.50 | missed |" in page
    assert "| crossfade --help, seconds | ≤ 0.25 |  | not measured |" in page
    assert "| evaluation, of the time of training | ≤ 10 % | 6 % | met |" in page


def test_plays_are_distinct_and_those_held_out_are_not_in_train(tmp_path: Path) -> None:
    folder = make_plays(tmp_path, SIZES)
    train, held_out = read_plays(folder, TRAIN), read_plays(folder, HELD_OUT)
    assert (len(train), len(held_out)) == (900, 100)
    assert not pd.concat([train, held_out]).duplicated().any()
    assert csv.read_csv(folder / "plays.csv").to_pydict() == train.to_dict("list")
    assert make_plays(tmp_path, SIZES) == folder


def test_quality_is_the_mean_over_customers_with_held_out_plays() -> None:
    held_out = pd.DataFrame({"user": ["a", "a", "b", "c"], "track": ["x", "y", "x", "x"]})
    recommended = pd.DataFrame({"user": ["a", "a", "b", "d"], "track": ["z", "x", "x", "x"], "rank": [1, 2, 1, 1]})
    second = 1 / math.log2(3)
    assert ndcg(recommended, held_out) == pytest.approx((second / (1 + second) + 1 + 0) / 3)


def test_plain_statements_number_by_frequency_and_keep_all_events(tmp_path: Path) -> None:
    folder = make_events(tmp_path, SIZES)
    out = tmp_path / "plain.parquet"
    prepare(str(folder / "events.parquet"), str(out))
    events, plain = pd.read_parquet(folder / "events.parquet"), pq.read_table(out).to_pandas()
    assert csv.read_csv(folder / "events.csv").to_pydict() == events.to_dict("list")
    for column in ("user", "track"):
        counts = events[column].value_counts().to_numpy()
        assert np.array_equal(plain[f"{column}_number"].value_counts().sort_index().to_numpy(), counts)
    assert sorted(plain["time"]) == sorted(events["time"])


@pytest.mark.slow
def test_failed_command_is_a_failed_measurement_with_its_reason() -> None:
    def timed(code: str) -> dict[str, Any]:
        return run_module(sys.executable, "suite.timed_command", {"command": [sys.executable, "-c", code]}, 60)

    assert timed("sum(range(10 ** 6))")["cpu_seconds"] > 0
    with pytest.raises(MeasurementError, match="exit code 3: no such run"):
        timed("import sys; print('no such run', file=sys.stderr); sys.exit(3)")
