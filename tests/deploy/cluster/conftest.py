"""Scripted clusters, datasets and jobs of the cluster tests."""

import fcntl
import os
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from fault_runs import CHECKPOINT, TRAIN
from running_command import succeeded
from scripted_agents import Cluster, Host, step


@pytest.fixture
def alone() -> Cluster:
    """Return one host, whose generation 1 has trained a step."""
    cluster = Cluster()
    cluster.start()
    cluster.local.report_events(step(1))
    return cluster


@pytest.fixture
def cluster() -> Cluster:
    """Return a cluster of two hosts, whose generation 1 has trained a step."""
    cluster = Cluster(hosts=2)
    cluster.join("10.0.0.2")
    cluster.start()
    cluster.local.report_events(step(1))
    return cluster


@pytest.fixture
def other(cluster: Cluster) -> Host:
    """Return the second host of the cluster."""
    return cluster.hosts[1]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a dataset and a job."""
    return write_fault_job(tmp_path_factory.mktemp("faults"))


def write_fault_job(folder: Path) -> Path:
    """Write a dataset and ``job.yaml`` to ``folder``."""
    data = write_planted(folder / "data")
    write_job(folder / "job.yaml", data, optimizer={"kind": "adagrad"}, train=TRAIN, checkpoint=CHECKPOINT)
    return folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train undisturbed in process, once for all test processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "undisturbed"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "run" / "report.json").exists():
            write_fault_job(folder)
            succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=folder))
    return folder / "run"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Write a job that trains very long."""
    train = {"epochs": 1_000_000, "eval_every_epochs": 1_000_000}
    return write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"), train=train)
