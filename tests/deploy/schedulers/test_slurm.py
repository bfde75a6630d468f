"""The batch script for Slurm: its directives, and a run of it on two nodes without Slurm."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_data import write_job
from command_here import crossfade_here
from needs import root
from net_hosts import network, unavailable
from paced_training import pace
from run_results import ENTITIES, report_of, vectors
from running_command import COMMAND_SECONDS, records, succeeded
from scheduled_jobs import planned, scheduled_job
from slurm_cluster import slurm_cluster
from slurm_cluster import unavailable as slurm_unavailable
from slurm_nodes import SlurmNodes
from waiting import wait_until

from crossfade.deploy.schedulers.options import SchedulerFiles
from crossfade.deploy.schedulers.sizes import size_hosts
from crossfade.deploy.schedulers.slurm import on_slurm, slurm_files
from crossfade.trainer.config.loading import make_job
from crossfade.trainer.config.schema import JobConfig

TOLERANCE = 2e-5
TRAIN = {"epochs": 8, "eval_every_epochs": 4, "patience": None}


def files_of(job: JobConfig, folder: Path, **options: Any) -> dict[str, str]:
    job = on_slurm(job)
    settings = SchedulerFiles(out=folder, run_dir=folder / "runs" / job.name, **{"time": "4:00:00", **options})
    return slurm_files(job, size_hosts(job, planned(job)), settings)


def directives(script: str) -> dict[str, str]:
    """Return the options of ``sbatch``; those without a value are empty."""
    found = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (text.partition("=") for text in found)}


@pytest.mark.parametrize("cluster", [{"servers": 0, "workers": 1}, {"hosts": 3}, {"servers": 0, "hosts": 3}])
def test_script_is_valid_bash(tmp_path: Path, planted_data: Path, cluster: dict[str, Any]) -> None:
    files = files_of(scheduled_job(tmp_path, planted_data, cluster=cluster), tmp_path / "it's here; $HOME")
    script = tmp_path / "script"
    script.write_text(files["planted.sbatch"])
    result = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    # Slurm reads directives up to the first command.
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:])
    assert "run_dir='" in script.read_text(), "the path is quoted"


@pytest.mark.parametrize("tables", [{"servers": 2}, {"store": "sharded", "servers": 0}])
def test_directives_request_the_plan(tmp_path: Path, planted_data: Path, tables: dict[str, Any]) -> None:
    cluster = {"hosts": 3, "grace_period_seconds": 45.5}
    job = scheduled_job(tmp_path, planted_data, cluster=cluster | tables)
    found = directives(files_of(job, tmp_path, partition="long")["planted.sbatch"])
    sizes = size_hosts(on_slurm(job), planned(on_slurm(job)))
    assert found["nodes"] == str(len(sizes)) == "3"
    assert found["mem"] == f"{max(size.memory_mib for size in sizes)}M"
    assert int(found["cpus-per-task"]) >= max(size.cpus for size in sizes)
    assert (found["ntasks-per-node"], found["time"], found["partition"]) == ("1", "4:00:00", "long")
    assert "gpus-per-node" not in found
    match = re.fullmatch(r"B:USR1@(\d+)", found["signal"])
    # Slurm sends the signal up to a minute late, and roles have 30 seconds to end after the checkpoint.
    assert match is not None
    assert int(match[1]) >= 45.5 + 60 + 30
    assert {"requeue", "open-mode"} <= set(found)


@pytest.mark.parametrize(
    ("device", "gpus"),
    [("gpu", "1"), ("gpu:0", "1"), ("gpu:1", "2"), (["gpu:0", "gpu:1"], "2"), (["gpu:3", "gpu:1"], "4")],
)
def test_gpus_are_requested_for_jobs_on_gpus(tmp_path: Path, planted_data: Path, device: Any, gpus: str) -> None:
    job = scheduled_job(tmp_path, planted_data, train={"device": device})
    found = directives(files_of(job, tmp_path)["planted.sbatch"])
    assert (found["gpus-per-node"], "partition" in found) == (gpus, False)


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_gpus_are_not_requested_for_other_jobs(tmp_path: Path, planted_data: Path, device: str) -> None:
    job = scheduled_job(tmp_path, planted_data, train={"device": device})
    assert "gpus-per-node" not in directives(files_of(job, tmp_path)["planted.sbatch"])


def test_job_file_is_the_job_on_a_shared_folder(tmp_path: Path, planted_data: Path) -> None:
    cluster = {"hosts": 2, "shared_run_dir": False, "coordinator_address": "10.0.0.1:7070", "host": "10.0.0.1"}
    job = scheduled_job(tmp_path, planted_data, cluster=cluster, checkpoint={"path": "s3://music/checkpoints"})
    written = make_job(files_of(job, tmp_path)["job.yaml"], "job.yaml")
    assert written == on_slurm(job)
    assert (written.cluster.hosts, written.cluster.shared_run_dir, written.data.path) == (2, True, str(planted_data))
    assert (written.cluster.coordinator_address, written.cluster.host) == (None, "127.0.0.1")


@pytest.mark.slow
@pytest.mark.cluster
def test_script_stops_at_the_time_limit_and_continues_when_requeued(tmp_path: Path, planted_data: Path) -> None:
    if reason := unavailable():
        pytest.skip(root(reason))
    cluster, checkpoint = {"servers": 1, "workers": 2, "hosts": 2}, {"interval_steps": 20}
    job = scheduled_job(tmp_path, planted_data, train=TRAIN, cluster=cluster, checkpoint=checkpoint)
    for name, text in files_of(job, tmp_path).items():
        (tmp_path / name).write_text(text)
    script, run_dir, release = tmp_path / "planted.sbatch", tmp_path / "runs" / "planted", tmp_path / "release"
    with network(2) as hosts:
        nodes = SlurmNodes(tmp_path, hosts)
        variables = pace(tmp_path, release)
        with nodes.start(script, 7, variables) as batch:

            def has_saved() -> bool:
                assert batch.poll() is None, batch.communicate()
                return any(record["event"] == "checkpoint_saved" for record in records(run_dir))

            wait_until(has_saved, "a checkpoint", seconds=COMMAND_SECONDS)
            # As Slurm signals the script of a job whose time limit approaches.
            batch.send_signal(signal.SIGUSR1)
            log, _ = batch.communicate(timeout=COMMAND_SECONDS)
        assert batch.returncode == 143, log
        assert nodes.requeued() == ["7"]
        assert ": worker-1 (logs: " in log, "the agent on the second node"
        assert not (run_dir / "report.json").exists()

        release.touch()
        with nodes.start(script, 7, variables) as batch:
            log, _ = batch.communicate(timeout=COMMAND_SECONDS)
        assert batch.returncode == 0, log
        assert nodes.requeued() == ["7"]
    [stopped] = [record["step"] for record in records(run_dir) if record["event"] == "stopped"]
    assert f"crossfade: resuming from step {stopped}\n" in log
    write_job(tmp_path / "here.yaml", planted_data, train=TRAIN)
    succeeded(crossfade_here("train", "here.yaml", "--run-dir", "here", cwd=tmp_path))
    for entity in ENTITIES:
        assert np.abs(vectors(run_dir, entity) - vectors(tmp_path / "here", entity)).max() < TOLERANCE


@pytest.mark.slow
@pytest.mark.cluster
def test_slurm_runs_the_script_to_the_end_of_the_training(tmp_path: Path, planted_data: Path) -> None:
    if reason := slurm_unavailable():
        pytest.skip(reason)
    job = scheduled_job(tmp_path, planted_data, cluster={"servers": 1, "workers": 2, "hosts": 2})
    for name, text in files_of(job, tmp_path).items():
        (tmp_path / name).write_text(text)
    command = tmp_path / "crossfade"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m crossfade "$@"\n')
    command.chmod(0o755)
    with slurm_cluster(tmp_path, 2) as slurm:
        result = slurm.run(
            *("sbatch", "--wait", "planted.sbatch"), variables={"CROSSFADE_COMMAND": str(command)}, check=False
        )
        log = "".join(path.read_text() for path in tmp_path.glob("planted-*.log"))
        assert result.returncode == 0, f"{result.stderr}\n{log}"
    assert ": worker-1 (logs: " in log, "the agent on the second node"
    assert report_of(tmp_path / "runs" / "planted")["steps"] > 0
