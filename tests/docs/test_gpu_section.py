"""``make bench-gpu``: it runs on the CPU to be checked, refuses to measure without a GPU, and writes its section."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from needs import TORCH

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from suite.gpu_page import gpu_section, read_gpus  # noqa: E402
from suite.gpu_plan import FULL, GIB, SECTIONS, TINY, gpu_measurements  # noqa: E402

MACHINE = {"processor": "Xeon", "cores": 8, "memory_gib": 62.0, "system": "Linux", "virtual": True}
GPU = {"name": "NVIDIA A10G", "memory_gib": 22.0, "capability": "8.6", "cuda_version": "13.0"}


def bench_gpu(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script with ``arguments``."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)


@pytest.mark.slow
def test_without_a_gpu_one_line_gives_the_reason() -> None:
    done = bench_gpu(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stderr.startswith("bench: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.slow
def test_measurements_on_the_cpu_are_marked_and_have_their_figures(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason=TORCH)
    before = read_gpus(ROOT / "docs")
    done = bench_gpu("--device", "cpu", "--only", "bandwidth", "softmax", "--repeats", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "these figures compare nothing" in done.stderr
    record = json.loads((tmp_path / "gpus.json").read_text())
    assert (record["scale"], record["gpu"]["name"]) == ("tiny", "none: checked on the CPU")
    values = {entry["key"]: entry["values"] for entry in record["measurements"]}
    assert set(values) == {"bandwidth/update", *(f"softmax/{name}" for name in SOFTMAX)}
    assert {"share", "copy_gbytes", "update_gbytes"} <= set(values["bandwidth/update"])
    assert all(values[f"softmax/{name}"]["triples_per_second"] > 0 for name in SOFTMAX)
    assert values["softmax/crossfade"]["step"] == "DeviceStep"
    assert read_gpus(ROOT / "docs") == before


SOFTMAX = ("crossfade", "torch-sparse")


def steps_on_tables(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Return the figures of steps on large tables, measured on the CPU in this process."""
    from suite import gpu_plan, gpu_steps

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_plan, "run_module", lambda _python, _module, task, _timeout: gpu_steps.measure(task))
        for measurement in gpu_measurements(TINY, tmp_path, "cpu", GIB):
            if measurement.section == "tables":
                found[measurement.key] = measurement.run()
    return found


@pytest.mark.slow
def test_large_tables_are_on_the_device_or_half_of_them_on_the_host(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason=TORCH)
    found = steps_on_tables(tmp_path)
    resident, spilled = found["tables/resident"], found["tables/spilled"]
    assert resident["host_gib"] == 0.0
    assert resident["device_gib"] * GIB == pytest.approx(1 << 20, rel=0.01)
    assert spilled["device_gib"] == pytest.approx(spilled["host_gib"], rel=0.01)
    assert spilled["rows_per_second"] > 0


def test_plan_has_each_section_and_the_peers_of_a_gpu(tmp_path: Path) -> None:
    keys = [measurement.key for measurement in gpu_measurements(FULL, tmp_path, "gpu:0", 80 * GIB)]
    assert {key.partition("/")[0] for key in keys} == set(SECTIONS)
    peers = {"bpr/fbgemm", "bpr/implicit", "bpr/torch-sparse", "softmax/torch-sparse"}
    assert peers <= set(keys)
    on_cpu = [measurement.key for measurement in gpu_measurements(TINY, tmp_path, "cpu", GIB)]
    assert set(keys) - set(on_cpu) == {"bpr/fbgemm", "bpr/implicit"}


def record_of(measurements: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the record of a run on a GPU in which FBGEMM did not install."""
    entries = [
        {"key": key, "repeat": 0, "commit": "abc", "values": values, "load": 1.0}
        for key, values in measurements.items()
    ]
    failed = {"key": "bpr/fbgemm", "repeat": 0, "commit": "abc", "error": "not installed: no | wheel", "load": 1.0}
    facts = {"scale": "full", "commit": "abc", "date": "2026-11-28", "command": "make bench-gpu"}
    return {**facts, "gpu": GPU, "machine": MACHINE, "versions": {"torch": "2.13"}, "measurements": [*entries, failed]}


def test_section_without_a_run_says_so_and_has_the_targets() -> None:
    section = "\n".join(gpu_section(None))
    assert "No GPU was available: these have not run; `make bench-gpu` measures them" in section
    assert section.count("| not measured |") == 3
    assert "≥ 1.20" in section
    assert "≥ 60 %" in section


def test_section_of_a_run_names_the_card_and_judges_targets() -> None:
    softmax = {"crossfade": 6e6, "torch-sparse": 1e6}
    rates = {f"softmax/{name}": {"triples_per_second": rate, "step_ms": 1.0} for name, rate in softmax.items()}
    update = {"share": 0.5, "copy_gbytes": 400.0, "update_gbytes": 200.0}
    training = {
        "triples_per_second": 2e6,
        "step_ms": 32.0,
        "phases_ms": {"data": 0.0, "sample": 1.0, "gradients": 30.0},
    }
    section = "\n".join(gpu_section(record_of({"bandwidth/update": update, "train/bpr": training, **rates})))
    assert "| GPU | NVIDIA A10G, 22.0 GiB, compute capability 8.6; its driver supports CUDA up to 13.0 |" in section
    assert "| softmax, batch negatives, over PyTorch's sparse embeddings | ≥ 5.00 | 6.00 | met |" in section
    assert "| update of rows: share of a copy's bandwidth | ≥ 60 % | 50 % | missed |" in section
    assert "| BPR, tables in GPU memory, over FBGEMM | ≥ 1.20 |  | not measured |" in section
    assert "| BPR | 2,000 | 32.0 | 0.0 | 1.0 | 30.0 |" in section
    assert "| `bpr/fbgemm` | not installed: no / wheel |" in section
