"""The page of ``make bench`` is written from the recorded figures, and names what was not measured."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.append(str(ROOT / "benchmarks"))

from suite.page import PAGE, RECORD, render  # noqa: E402
from suite.plan import FULL, QUICK, SECTIONS, measurements  # noqa: E402
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


def test_page_has_medians_ranges_ratios_and_failures() -> None:
    page = render(quick_record())
    assert "| uniform, crossfade | 1,000 (900 to 1,100) |  |" in page
    assert "| uniform, implicit | 500.0 (500.0 to 500.0) | 0.5 of crossfade |" in page
    assert "| uniform, fbgemm | failed |  |" in page
    assert "| `single/uniform/fbgemm` | not installed: no / wheel |" in page
    assert "## Waiting" in page
    assert "Not measured: `make bench ARGS='--only waiting'` does it." in page


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
