"""A run whose tables are in the memory of a GPU learns as a run on the CPU does, and resumes with the same bits."""

from pathlib import Path
from typing import Any

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from run_results import assert_same_bits, report_of
from running_command import succeeded

pytestmark = pytest.mark.gpu

SOFTMAX: dict[str, Any] = {"loss": "softmax", "negatives": {"kind": "in_batch"}}
BPR: dict[str, Any] = {"loss": "bpr", "negatives": {"kind": "per_example", "count": 2}}


def train(folder: Path, name: str, sections: dict[str, Any], *options: str, **train: Any) -> Path:
    """Train on planted plays for 8 epochs; return the run."""
    if not (folder / "data").exists():
        write_planted(folder / "data")
    job = write_job(folder / f"{name}.json", folder / "data", name=name, **sections, train={"epochs": 8, **train})
    succeeded(crossfade_here("train", str(job), *options, cwd=folder))
    return folder / "runs" / name


@pytest.mark.parametrize("sections", [SOFTMAX, BPR], ids=["softmax", "bpr"])
def test_run_on_the_gpu_reaches_the_metrics_of_the_cpu(
    tmp_path: Path, gpu_device: str, sections: dict[str, Any]
) -> None:
    on_cpu = report_of(train(tmp_path, "cpu", sections, engine="cpu", device="cpu"))["metrics"]["test"]["ndcg@10"]
    run = train(tmp_path, "gpu", sections, engine="torch", device=gpu_device, tables="device")
    report = report_of(run)
    assert (report["store"], report["engine"], report["devices"]) == ("DeviceStore", "torch", [gpu_device])
    assert report["metrics"]["test"]["ndcg@10"] == pytest.approx(on_cpu, abs=0.01)
    assert on_cpu > 0.08
    again = train(tmp_path, "again", sections, engine="torch", device=gpu_device, tables="device")
    assert_same_bits(run, again)


def test_run_with_tables_on_the_gpu_resumes_with_the_same_bits(tmp_path: Path, gpu_device: str) -> None:
    on_gpu = {"engine": "torch", "device": gpu_device, "tables": "device"}
    whole = train(tmp_path, "whole", BPR, **on_gpu)
    train(tmp_path, "resumed", BPR, max_steps=30, **on_gpu)
    resumed = train(tmp_path, "resumed", BPR, "--resume", **on_gpu)
    assert_same_bits(whole, resumed)
