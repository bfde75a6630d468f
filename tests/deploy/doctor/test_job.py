"""Whether a job can run here: its run folder, dataset, memory, disks, and ports."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_data import write_job, write_planted
from killed_process import holding
from needs import root
from saved_shards import random_table, save_shards, split_table
from small_disk import MountError, fill, mounted_disk

from crossfade.base.errors import CrossfadeError
from crossfade.base.machine import available_bytes
from crossfade.base.signals import StopSignal
from crossfade.deploy.doctor.findings import Check, Finding, run_check
from crossfade.deploy.doctor.run_checks import JobChecks
from crossfade.kvstore.checkpoint.lifecycle import step_folder
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.runs.run_folder import RunFolder

pytestmark = pytest.mark.slow

SERVERS = {"servers": 1, "workers": 1}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_planted(tmp_path / "data")


def checks(data: Path, run: Path | None = None, **sections: Any) -> JobChecks:
    job = load_job(write_job(data.parent / "job.yaml", data, **sections))
    return JobChecks(job, RunFolder(run or data.parent / "run"))


def only(check: Check) -> Finding:
    """Return the one finding of a check, with its errors."""
    [finding] = run_check("it", check, 60)
    return finding


def test_job_that_can_run_has_nothing_to_fix_and_nothing_is_written(data: Path) -> None:
    job = checks(data, cluster=SERVERS)
    before = set(data.parent.rglob("*"))
    every = (job.check_run, job.check_checkpoints, job.check_data, job.check_memory, job.check_disks, job.check_ports)
    assert [(only(check).state, check.__name__) for check in every] == [("ok", check.__name__) for check in every]
    assert list(job.check_packages()) == []
    assert set(data.parent.rglob("*")) == before


def test_missing_dataset_is_to_be_fixed_and_leaves_memory_unknown(tmp_path: Path) -> None:
    job = checks(tmp_path / "none")
    found = only(job.check_data)
    assert (found.state, "no such file; expected a folder written by" in found.message) == ("fix", True)
    assert (only(job.check_memory).state, only(job.check_disks).state) == ("warning", "ok")


def test_job_that_does_not_fit_gets_the_advice_of_the_plan(data: Path) -> None:
    rows = available_bytes() // (4 * 65_536)
    job = checks(write_planted(data.parent / "large", tracks=rows), model={"dim": 65_536})
    assert only(job.check_data).state == "ok"
    found = only(job.check_memory)
    assert (found.state, "lower model.dim to " in found.message) == ("fix", True)


def test_workers_that_hold_the_tables_need_ports_but_neither_mxnet_nor_horovod(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = checks(data, model={"dense": {"item": [8]}}, cluster={"workers": 3})
    for package in ("mxnet", "horovod"):
        monkeypatch.setitem(sys.modules, package, None)
    assert list(job.check_packages()) == []
    found = only(job.check_ports)
    # Its own for metrics, that of the rendezvous, and two of each worker.
    assert (found.state, found.message) == ("ok", "as many as the job needs (8) are free on 127.0.0.1")


def test_packages_that_the_job_needs_are_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = checks(
        data,
        model={"dense": {"item": [8]}},
        cluster={"servers": 1, "workers": 2},
        tracking={"tensorboard": True},
    )
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    found = only(job.check_packages)
    assert (found.state, "pip install 'crossfade[tensorboard]'" in found.message) == ("fix", True)
    monkeypatch.delitem(sys.modules, "tensorboard")
    monkeypatch.setitem(sys.modules, "horovod", None)
    assert "run 'make horovod'" in only(job.check_packages).message


def test_package_of_the_engine_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = only(checks(data, train={"engine": "torch"}).check_packages)
    assert (found.state, "pip install 'crossfade[torch]'" in found.message) == ("fix", True)
    assert list(checks(data).check_packages()) == []


def test_ports_in_use_are_named_by_their_keys(data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for sections, key in (
            ({"metrics": {"port": port}}, "metrics.port"),
            ({"cluster": {**SERVERS, "scheduler_port": port}}, "cluster.scheduler_port"),
            ({"cluster": {**SERVERS, "host": "192.0.2.7"}}, "cluster.host"),
            ({"cluster": {**SERVERS, "hosts": 2}}, "the job has 2 hosts"),
        ):
            found = only(checks(data, **sections).check_ports)
            assert (found.state, found.message.startswith(key)) == ("fix", True), found


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    try:
        with mounted_disk(tmp_path / "disk", 2**26) as disk:
            yield disk
    except MountError as reason:
        pytest.skip(root(reason))


def test_disk_that_is_full_or_read_only_is_to_be_fixed(data: Path, disk: Path) -> None:
    job = checks(data, disk / "runs" / "planted", checkpoint={"path": str(data.parent / "checkpoints")})
    assert [finding.state for finding in job.check_disks()] == ["ok", "ok"]
    fill(disk, leave=2**20)
    full, other = job.check_disks()
    assert (full.state, other.state) == ("fix", "ok")
    assert full.message.startswith(f"{disk}/runs/planted: 1.05 MB are free; make room")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert next(iter(job.check_disks())).message.startswith(f"{disk}/runs/planted: cannot be written; ")


def test_disk_too_small_for_all_checkpoints_is_a_warning(data: Path, disk: Path) -> None:
    job = checks(data, disk / "run", model={"dim": 2048}, checkpoint={"keep_latest": 30})
    assert (only(job.check_data).state, only(job.check_memory).state) == ("ok", "ok")
    found = only(job.check_disks)
    assert (found.state, "lower checkpoint.keep_latest" in found.message) == ("warning", True)


def test_run_in_progress_is_found_and_its_memory_and_ports_are_not_compared(data: Path) -> None:
    job = checks(data)
    with holding(lambda: job.run.open_run(job.job)):
        assert only(job.check_run).message.endswith("a run is in progress, so that memory and ports are not compared")
        assert only(job.check_data).state == "ok"
        assert list(job.check_memory()) == list(job.check_ports()) == []
    found = only(job.check_run)
    assert (found.state, job.in_progress) == ("warning", False)
    resume = f"'crossfade train {job.run.path}/job.yaml --run-dir {job.run.path} --resume'"
    assert found.message.endswith(f"its run was killed; to resume it: {resume}")


def test_corrupt_and_lost_checkpoints_are_found(data: Path) -> None:
    job, table, sgd = checks(data), TableSpec("track", rows=6, dim=2, init_std=0.1), OptimizerSpec("sgd")
    with job.run.open_run(job.job):
        pass
    assert only(job.check_run).message.endswith("its run is finished")
    checkpoints = job.run.checkpoints(job.job)
    for step in (1, 2):
        save_shards(checkpoints, step, [table], sgd, [split_table(table, random_table(table, sgd), 1)], {"run": "x"})
    Path(step_folder(checkpoints, 2), "track", "weights.00000-of-00001.npy").unlink()
    complete, corrupt = job.check_checkpoints()
    assert (complete.state, complete.message) == ("ok", f"{checkpoints}: 1 complete")
    assert (corrupt.state, corrupt.message.startswith("step 2 is not used: ")) == ("warning", True)


def test_run_that_cannot_be_resumed_is_to_be_fixed(data: Path) -> None:
    job = checks(data)
    with holding(lambda: job.run.open_run(job.job)) as pid:
        os.kill(pid, signal.SIGSTOP)
    saved = '{"time": 1, "event": "checkpoint_saved", "step": 7, "checkpoint": "x", "seconds": 1, "bytes": 1,'
    (job.run.path / "events.jsonl").write_text(f'{saved} "pause_seconds": 0}}\n')
    found = only(job.check_run)
    assert (found.state, found.message.startswith("cannot resume: ")) == ("fix", True), found
    (job.run.path / "run.json").write_text("{")
    assert "run.json: is not as 'crossfade train' writes it" in only(job.check_run).message


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (StopSignal(), "its run was stopped"),
        (CrossfadeError("diverged"), "its run has failed, or was interrupted"),
    ],
)
def test_run_that_has_ended_can_be_resumed(data: Path, error: BaseException, ended: str) -> None:
    job = checks(data)
    with pytest.raises(type(error)), job.run.open_run(job.job):
        raise error
    found = only(job.check_run)
    assert (found.state, f": {ended}; to resume it: 'crossfade train " in found.message) == ("ok", True), found.message
