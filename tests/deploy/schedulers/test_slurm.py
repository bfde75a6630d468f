"""The batch script for Slurm: its directives, and a run of it on two nodes without Slurm."""

import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_data import write_job
from command_here import crossfade_here
from needs import root
from net_hosts import network, unavailable
from paced_training import pace
from run_results import ENTITIES, vectors
from running_command import COMMAND_SECONDS, records, succeeded
from scheduled_jobs import planned_files
from slurm_nodes import SlurmNodes
from waiting import wait_until

from crossfade.trainer.config.loading import make_job

TOLERANCE = 2e-5
TRAIN = {"epochs": 8, "eval_every_epochs": 4, "patience": None}
ADDRESSES = {"coordinator_address": "10.0.0.1:7070", "host": "10.0.0.1", "shared_run_dir": False}
STORED = {"checkpoint": {"path": "s3://music/checkpoints"}}


@pytest.mark.parametrize(
    ("sections", "options", "expected"),
    [
        ({"cluster": {"servers": 0, "workers": 1}}, (), {"nodes": "1", "cpus-per-task": "4"}),
        (
            {"cluster": {**ADDRESSES, "hosts": 3, "grace_period_seconds": 45.5}, **STORED},
            ("--cores", 5, "--data", "/shared/data"),
            # Slurm sends the signal up to a minute late, and roles have 30 seconds to end after the checkpoint.
            {"nodes": "3", "cpus-per-task": "5", "signal": "B:USR1@136"},
        ),
        ({"train": {"device": "gpu:3"}}, (), {"nodes": "1", "gpus-per-node": "4"}),
    ],
)
def test_directives_request_what_the_job_needs(
    tmp_path: Path, planted_data: Path, sections: dict[str, Any], options: tuple[object, ...], expected: dict[str, str]
) -> None:
    folder = tmp_path / "it's here; $HOME"
    folder.mkdir()
    files, _ = planned_files(folder, "slurm", "--run-dir", "runs", *options, data=planted_data, **sections)
    script = files / "planted.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text().splitlines()
    given = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    defaults = {"job-name": "planted", "ntasks-per-node": "1", "time": "1-00:00:00", "signal": "B:USR1@150"}
    flags = {"requeue": "", "open-mode": "append", "output": "planted-%j.log"}
    assert given == {"cpus-per-task": given["cpus-per-task"], "mem": given["mem"], **defaults, **flags, **expected}
    # Slurm reads directives up to the first command.
    assert [line[:1] for line in lines[: len(given) + 1]] == ["#"] * (len(given) + 1)
    assert "{{" not in script.read_text()
    set_in_script = '. <(grep -E \'^(job|run_dir)=\' "$0") && printf \'%s\\n\' "$job" "$run_dir"'
    ran = subprocess.run(["bash", "-c", set_in_script, str(script)], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [str(files / "job.yaml"), str(folder / "runs")]
    job = make_job((files / "job.yaml").read_text(), "job.yaml")
    assert job.data.path == ("/shared/data" if "--data" in options else str(planted_data))
    assert (job.cluster.coordinator_address, job.cluster.host, job.cluster.shared_run_dir) == (None, "127.0.0.1", True)


@pytest.mark.slow
@pytest.mark.cluster
def test_script_stops_at_the_time_limit_and_continues_when_requeued(tmp_path: Path, planted_data: Path) -> None:
    if reason := unavailable():
        pytest.skip(root(reason))
    cluster, checkpoint = {"servers": 1, "workers": 2, "hosts": 2}, {"interval_steps": 20}
    sections: dict[str, Any] = {"train": TRAIN, "cluster": cluster, "checkpoint": checkpoint}
    files, _ = planned_files(tmp_path, "slurm", data=planted_data, **sections)
    script, run_dir, release = files / "planted.sbatch", tmp_path / "runs" / "planted", tmp_path / "release"
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
