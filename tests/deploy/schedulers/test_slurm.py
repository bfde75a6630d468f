"""The batch script for Slurm: its directives, and a run of it on two nodes without Slurm."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from scheduled_jobs import planned_files

from crossfade.trainer.config.loading import make_job

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
