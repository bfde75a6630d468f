"""The page of ``make bench`` is what the suite writes from the recorded figures, and it shows what has failed."""

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.append(str(ROOT / "benchmarks"))

from suite.charts import line_chart  # noqa: E402
from suite.gpu_page import read_gpus  # noqa: E402
from suite.page import PAGE, RECORD, render  # noqa: E402
from suite.plan import QUICK  # noqa: E402
from suite.provenance import keep_other_sections  # noqa: E402
from suite.results import Result, Results  # noqa: E402
from suite.training import summarize  # noqa: E402

MACHINE = {"processor": "EPYC", "cores": 2, "memory_gib": 24.0, "system": "Linux", "virtual": True}
RATES = {
    "single/uniform/crossfade": [900_000, 1_000_000, 1_100_000],
    "single/uniform/implicit": [500_000, 500_000, 500_000],
}


def quick_record() -> dict[str, Any]:
    """Return the record of a run at the quick scale in which FBGEMM did not install."""
    measurements = [
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
        "measurements": [*measurements, failed],
    }


def test_committed_page_is_rendered_from_committed_figures() -> None:
    files = render(json.loads((DOCS / RECORD).read_text(encoding="utf-8")), read_gpus(DOCS))
    changed = [name for name, text in files.items() if (DOCS / name).read_text(encoding="utf-8") != text]
    assert changed == [], "run: .venv/bin/python benchmarks/bench.py --render"


def test_page_shows_medians_ranges_and_ratios() -> None:
    page = render(quick_record())[PAGE]
    assert "| Crossfade | 1,000 | 900 to 1,100 | 1.00 |" in page
    assert "| implicit, BPR | 500 | 500 to 500 | 2.00 |" in page
    assert "| in process over implicit, uniform | ≥ 1.30 | 2.00 | met |" in page


def test_page_names_peer_that_failed_with_reason() -> None:
    page = render(quick_record())[PAGE]
    assert "| FBGEMM, row-wise AdaGrad | failed, see below |" in page
    assert "| `single/uniform/fbgemm` | not installed: no / wheel |" in page
    assert "| in process over FBGEMM, uniform | ≥ 6.00 |  | not measured |" in page


def test_page_of_a_run_on_a_busy_machine_is_preliminary() -> None:
    quiet, busy = quick_record(), quick_record()
    for entry in busy["measurements"]:
        entry["load"] = 5.0
    assert "preliminary" not in render(quiet)[PAGE]
    assert "preliminary" in render(busy)[PAGE]


def test_each_section_names_commit_date_repeats_and_load() -> None:
    record = quick_record()
    entry = {"key": "products/all", "repeat": 0, "commit": "def", "date": "2026-12-01", "values": {"share": 0.7}}
    record["measurements"].append({**entry, "load": 1.25})
    page = render(record)[PAGE]
    old = "Commit abc, 2026-11-27; 3 repeats; load before a measurement: median 0.5, at most 0.5."
    new = "Commit def, 2026-12-01; 1 repeat; load before a measurement: median 1.2, at most 1.2."
    assert page.index("## One machine") < page.index(old) < page.index("## Softmax and evaluation") < page.index(new)


def run_of_products() -> dict[str, Any]:
    """Return the record of a later run of one section, with other versions."""
    entry = {"key": "products/all", "repeat": 0, "commit": "def", "date": "2026-12-01", "values": {"share": 0.7}}
    versions = {"numpy": "2.0", "mxnet": "1.9.1"}
    return {**quick_record(), "commit": "def", "date": "2026-12-01", "versions": versions, "measurements": [entry]}


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


def test_sections_and_charts_without_measurements_are_left_out() -> None:
    record = quick_record()
    files = render(record)
    assert list(files) == [PAGE]
    assert "## Dense against sparse\n\nNot measured." in files[PAGE]
    key = f"dense/crossfade/{QUICK.dense_rows[0]}"
    record["measurements"].append({"key": key, "repeat": 0, "commit": "abc", "values": {"step_ms": 2.5}, "load": 0.5})
    files = render(record)
    assert "(performance-rows.svg)" in files[PAGE]
    ElementTree.fromstring(files["performance-rows.svg"])


def test_chart_draws_every_series() -> None:
    chart = ElementTree.fromstring(line_chart("Title", "x", "y", {"one": [(1e3, 2), (1e6, 30)], "two": [(1e3, 5)]}))
    lines = [element for element in chart.iter() if element.tag.endswith("polyline")]
    assert len(lines) == 2


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
