"""``make bench``: its page is written from the recorded figures, and the work and times behind them are right."""

import json
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
DOCS = ROOT / "docs"
sys.path.append(str(ROOT / "benchmarks"))

from peers.columns import HELD_OUT, TRAIN  # noqa: E402
from peers.plays import ndcg, read_plays  # noqa: E402
from suite.page import PAGE, RECORD, render  # noqa: E402
from suite.plain_prepare import prepare  # noqa: E402
from suite.plan import FULL, QUICK, SECTIONS, measurements  # noqa: E402
from suite.processes import MeasurementError, run_module  # noqa: E402
from suite.provenance import keep_other_sections  # noqa: E402
from suite.results import Result, Results  # noqa: E402
from suite.training import summarize  # noqa: E402
from suite.waiting_work import WaitingSizes, make_events, make_plays  # noqa: E402

MACHINE = {"processor": "EPYC", "cores": 2, "memory_gib": 24.0, "system": "Linux", "virtual": True}
RATES = {
    "single/uniform/crossfade": [900_000, 1_000_000, 1_100_000],
    "single/uniform/implicit": [500_000, 500_000, 500_000],
}
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


def quick_record() -> dict[str, Any]:
    """Return the record of a run at the quick scale in which FBGEMM did not install."""
    measured = [
        {"key": key, "repeat": repeat, "commit": "abc", "values": {"triples_per_second": rate}, "load": 0.5}
        for key, rates in RATES.items()
        for repeat, rate in enumerate(rates)
    ]
    failed = {"key": "single/uniform/fbgemm", "repeat": 0, "commit": "abc", "error": "not installed: no | wheel"}
    return {
        "scale": "quick",
        "commit": "abc",
        "date": "2026-11-27",
        "command": "make bench ARGS='--quick'",
        "machine": MACHINE,
        "versions": {"numpy": "1.26.4"},
        "measurements": [*measured, failed],
    }


def run_of_products() -> dict[str, Any]:
    """Return the record of a later run of one section, with other versions."""
    entry = {"key": "products/all", "repeat": 0, "commit": "def", "date": "2026-12-01", "values": {"share": 0.7}}
    versions = {"numpy": "2.0", "mxnet": "1.9.1"}
    return {**quick_record(), "commit": "def", "date": "2026-12-01", "versions": versions, "measurements": [entry]}


def test_committed_page_is_rendered_from_committed_figures() -> None:
    page = render(json.loads((DOCS / RECORD).read_text(encoding="utf-8")))
    assert (DOCS / PAGE).read_text(encoding="utf-8") == page, "run: .venv/bin/python benchmarks/bench.py --render"


def test_page_has_medians_ranges_ratios_targets_and_failures() -> None:
    page = render(quick_record())
    assert "| uniform, crossfade | 1,000 (900 to 1,100) |  |" in page
    assert "| uniform, implicit | 500.0 (500.0 to 500.0) | 0.5 of crossfade |" in page
    assert "| uniform, fbgemm | failed |  |" in page
    assert "| in process over implicit, uniform | ≥ 1.30 | 2.00 | met |" in page
    assert "| in process over FBGEMM, uniform | ≥ 6.00 |  | not measured |" in page
    assert "| `single/uniform/fbgemm` | not installed: no / wheel |" in page
    assert "## Waiting" in page
    assert "Not measured: `make bench ARGS='--only waiting'` does it." in page


def test_page_of_a_run_on_a_busy_machine_is_preliminary() -> None:
    quiet, busy = quick_record(), quick_record()
    for entry in busy["measurements"]:
        entry["load"] = 5.0
    assert "preliminary" not in render(quiet)
    assert "preliminary" in render(busy)


def test_each_section_names_commit_date_repeats_and_load() -> None:
    record = quick_record()
    [entry] = run_of_products()["measurements"]
    record["measurements"].append({**entry, "load": 1.25})
    page = render(record)
    old = "Commit abc, 2026-11-27; 3 repeats; load before a measurement: median 0.5, at most 0.5."
    new = "Commit def, 2026-12-01; 1 repeat; load before a measurement: median 1.2, at most 1.2."
    assert page.index("## One machine") < page.index(old) < page.index("## Softmax and evaluation") < page.index(new)


def test_run_of_one_section_keeps_figures_of_others() -> None:
    said: list[str] = []
    first = keep_other_sections(run_of_products(), quick_record(), ["products"], said.append)
    again = keep_other_sections(run_of_products(), first, ["products"], said.append)
    dates = {(entry["key"].partition("/")[0], entry["commit"], entry["date"]) for entry in again["measurements"]}
    assert dates == {("single", "abc", "2026-11-27"), ("products", "def", "2026-12-01")}
    assert again["measurements"] == first["measurements"]
    assert again["versions"] == {"numpy": "1.26.4 and 2.0", "mxnet": "1.9.1"}
    assert said == ["kept the earlier figures of single"] * 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"scale": "full"}, "scale was full and is quick"),
        ({"machine": {**MACHINE, "cores": 4}}, "cores was 4 and is 2"),
        ({"machine": {**MACHINE, "processor": "Xeon"}}, "processor was Xeon and is EPYC"),
    ],
)
def test_figures_of_another_scale_or_machine_are_dropped(changes: dict[str, Any], reason: str) -> None:
    said: list[str] = []
    record = keep_other_sections(run_of_products(), quick_record() | changes, ["products"], said.append)
    assert record == run_of_products()
    assert said == [f"dropped the earlier figures of single: {reason}"]


def test_every_planned_measurement_belongs_to_a_section(tmp_path: Path) -> None:
    for scale in (FULL, QUICK):
        assert {each.section for each in measurements(scale, tmp_path, install=False)} == set(SECTIONS)


def test_results_of_another_commit_are_not_resumed(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    Results.open(file, "old").add(Result("a", 0, "old", {"x": 1.0}))
    Results.open(file, "new").add(Result("a", 1, "new", error="broken"))
    found = Results.open(file, "new")
    assert [(result.repeat, result.commit) for result in found] == [(1, "new")]
    assert not found.has("a", 1)
    assert Results.open(file, "old").has("a", 0)


def test_rate_of_a_run_excludes_its_warm_up() -> None:
    steps = [
        {"time": time, "step": step, "examples": 100 * step, "seconds": {"push": 0.1 * step}}
        for time, step in ((10.0, 1), (11.0, 2), (12.0, 12), (13.0, 22))
    ]
    report = {"rows_pulled": 6_600, "examples": 2_200, "steps": 22, "examples_per_second": 550.0}
    result = summarize(report, steps)
    assert result["triples_per_second"] == pytest.approx(1_000)
    assert result["rows_per_second"] == pytest.approx(3_000)
    assert result["phases_ms"]["push"] == pytest.approx(100)


def test_plays_are_distinct_and_held_out_ones_are_not_in_train(tmp_path: Path) -> None:
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
