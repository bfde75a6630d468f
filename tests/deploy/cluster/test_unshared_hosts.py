"""Hosts without a shared folder: the job comes from the coordinator, embeddings and checkpoints are on S3."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from object_store import ObjectStore, free_ports, running_object_store
from paced_training import Training, pace
from run_results import assert_same_bits, report_of
from running_command import RunningCommand, crossfade, records, started, succeeded

from crossfade.base.errors import InputError
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.runs.folder import RunFolder

TOKEN = "a-token-that-all-hosts-have"
ON_SERVERS = ("--servers", 2, "--workers", 2)
SECTIONS = {
    "optimizer": {"kind": "adagrad"},
    "train": {"epochs": 8, "eval_every_epochs": 4, "patience": None},
    "checkpoint": {"interval_seconds": 0.5, "keep_latest": 2},
}


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[ObjectStore]:
    (tmp_path / "store").mkdir()
    with running_object_store(tmp_path / "store") as server:
        yield server


@contextmanager
def two_hosts(
    workspace: Path, name: str, s3: ObjectStore, options: Sequence[object]
) -> Iterator[tuple[Training, RunningCommand]]:
    """Train on 127.0.0.1 in ``workspace/NAME-1``, with an agent on 127.0.0.2 in ``workspace/NAME-2``."""
    first, second, release = workspace / f"{name}-1", workspace / f"{name}-2", workspace / "release"
    variables = pace(workspace, release, {**s3.variables, "CROSSFADE_TOKEN": TOKEN})
    at = f"127.0.0.1:{free_ports(1)[0]}"
    settings = [f"cluster.coordinator_address={at}", "cluster.hosts=2", "cluster.shared_run_dir=false"]
    sets = [word for key in settings for word in ("--set", key)]
    with ExitStack() as stack:
        train = ("train", "s3.yaml", *ON_SERVERS, *sets, *options, "--run-dir", first)
        command = stack.enter_context(started(*train, cwd=workspace, variables=variables))
        join = ("agent", "--join", at, "--advertise-address", "127.0.0.2", "--run-dir", second)
        agent = stack.enter_context(started(*join, cwd=workspace, variables=variables))
        yield Training(command, first, release), agent


@pytest.mark.slow
@pytest.mark.cluster
def test_hosts_sharing_only_s3_match_one_host_and_resume_elsewhere(tmp_path: Path, s3: ObjectStore) -> None:
    data = write_planted(tmp_path / "data")
    write_job(tmp_path / "local.yaml", data, **SECTIONS)
    succeeded(crossfade("train", "local.yaml", "--run-dir", "local", *ON_SERVERS, cwd=tmp_path))
    write_job(tmp_path / "s3.yaml", s3.upload(data, "interactions"), **SECTIONS)
    checkpoint_path = ("--set", f"checkpoint.path={s3.uri('checkpoints')}")

    with two_hosts(tmp_path, "stopped", s3, checkpoint_path) as (training, agent):
        training.wait(lambda: any("valid" in record for record in training.events("epoch")), "an epoch")
        training.wait_for("checkpoint_saved")
        assert "worker-1" in agent.roles()
        training.command.process.send_signal(signal.SIGTERM)
        assert training.command.finish().returncode == 143
        assert agent.finish().returncode == 143
    assert not (tmp_path / "stopped-1" / "embeddings").exists()

    # Other machines, which have only the job file with its checkpoint path.
    with two_hosts(tmp_path, "new", s3, (*checkpoint_path, "--resume")) as (training, agent):
        result = succeeded(training.finish())
        succeeded(agent.finish())
    assert "resuming from step" in result.stderr
    assert_same_bits(tmp_path / "new-1", tmp_path / "local")
    report, local = report_of(tmp_path / "new-1"), report_of(tmp_path / "local")
    assert report["metrics"] == local["metrics"]
    assert (report["steps"], report["best_epoch"]) == (local["steps"], local["best_epoch"])
    assert [record["epoch"] for record in records(tmp_path / "new-1") if record["event"] == "epoch"][-1] == 8
    own = {path.name for path in (tmp_path / "new-2").iterdir()}
    assert own == {"job.yaml", "run.json", "logs", "metrics"}


def test_host_accepts_only_role_files_from_another(tmp_path: Path) -> None:
    job = check_job({"name": "x", "data": {"path": "s3://bucket/data"}}, "a test")
    with RunFolder(tmp_path / "one").open_run(job):
        files = RunFolder(tmp_path / "one").files_for_roles()
    assert set(files) == {"job.yaml", "run.json"}
    other = RunFolder(tmp_path / "two")
    other.write_role_files({**files, "../stray": "x", "events.jsonl": "x"})
    assert other.job() == job
    assert other.run_id() == RunFolder(tmp_path / "one").run_id()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        ["job.yaml", "run.json", "run.lock", "job.yaml", "run.json"]
    )


def test_hosts_without_shared_folder_must_share_s3() -> None:
    cluster = {"servers": 2, "workers": 2, "hosts": 2, "coordinator_address": "10.0.0.1:7070", "shared_run_dir": False}
    values = {"name": "x", "data": {"path": "s3://bucket/data"}, "cluster": cluster}
    with pytest.raises(InputError, match=r"set checkpoint\.path to a URI such as s3://"):
        check_job(values, "a test")
    assert check_job({**values, "checkpoint": {"path": "s3://bucket/here"}}, "a test").no_shared_run_dir


@pytest.mark.slow
def test_agent_ends_after_the_coordinator_timeout(tmp_path: Path) -> None:
    join = (
        "agent",
        "--join",
        f"127.0.0.1:{free_ports(1)[0]}",
        "--advertise-address",
        "127.0.0.2",
        "--run-dir",
        tmp_path / "run",
    )
    result = crossfade(*join, "--coordinator-timeout", "0.5", cwd=tmp_path, variables={"CROSSFADE_TOKEN": TOKEN})
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith("has not answered for 0.5 s (--coordinator-timeout)")
