"""``crossfade train`` as SageMaker starts it, with a temporary folder in place of /opt/ml."""

import re
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from object_store import ObjectStore, free_ports
from paced_training import Training, pace
from running_command import started, succeeded
from sagemaker_folders import JOB, SECTIONS, assert_same_model, parameters_of, prepare

from crossfade.deploy.aws.sagemaker.container import MAX_FAILURE_CHARACTERS


def train(base: Path) -> CompletedProcess[str]:
    return crossfade_here("train", "--sagemaker", base, cwd=base.parent)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_planted(tmp_path / "data")


# ---- one host


@pytest.mark.slow
def test_interrupted_job_resumes_from_the_checkpoint_folder_on_another_machine(tmp_path: Path, data: Path) -> None:
    parameters = parameters_of({**JOB, "data.path": str(data)})
    write_job(tmp_path / "job.yaml", data, **SECTIONS)
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "uninterrupted", cwd=tmp_path))

    first, release = prepare(tmp_path / "first", parameters), tmp_path / "release"
    with started("train", "--sagemaker", first, cwd=tmp_path, variables=pace(tmp_path, release)) as command:
        training = Training(command, first / "checkpoints" / "algo-1", release)
        training.wait(lambda: any("valid" in record for record in training.events("epoch")), "an epoch")
        training.wait_for("checkpoint_saved")
        command.process.send_signal(signal.SIGTERM)
        assert command.finish().returncode == 143
    assert list((first / "model").iterdir()) == []
    assert not (first / "output" / "failure").exists()

    second = prepare(tmp_path / "second", parameters)
    shutil.copytree(first / "checkpoints", second / "checkpoints", dirs_exist_ok=True)
    for late in ("run.lock", "job.yaml"):  # SageMaker did not copy them to S3 in time
        (second / "checkpoints" / "algo-1" / late).unlink()
    shutil.rmtree(first)
    result = succeeded(train(second))
    assert "resuming from step" in result.stderr
    assert re.search(r"step=\d+ progress=1\.0000 loss=\d\S+ .*ndcg@10=0\.\d+", result.stderr), "for CloudWatch"
    assert_same_model(second / "model", tmp_path / "uninterrupted")
    assert sorted(path.name for path in (second / "model").iterdir()) == [
        *("embeddings", "events.jsonl", "job.yaml", "report.json"),
    ]


@pytest.mark.slow
def test_error_is_written_to_the_failure_file(tmp_path: Path, data: Path) -> None:
    parameters = parameters_of({**JOB, "data.path": str(data)})
    for name, changed, expected in (
        ("key", {"train.epoch": "3"}, "unknown key 'train.epoch'; did you mean 'epochs'?"),
        ("data", {"data.path": f"/nowhere/{'x' * 2000}"}, "/nowhere/xxx"),
    ):
        base = prepare(tmp_path / name, {**parameters, **changed})
        result = train(base)
        assert result.returncode == 2
        failure = (base / "output" / "failure").read_text()
        assert expected in failure
        assert len(failure) <= MAX_FAILURE_CHARACTERS
        assert failure in result.stderr
    base = prepare(tmp_path / "hosts", parameters)
    (base / "input" / "config" / "resourceconfig.json").write_text('{"current_host": "algo-3", "hosts": ["algo-1"]}')
    assert train(base).returncode == 2
    assert "expected current_host among hosts, but found 'algo-3'" in (base / "output" / "failure").read_text()


@pytest.mark.slow
@pytest.mark.cluster
def test_two_hosts_that_share_only_s3_train_as_one_does(tmp_path: Path, data: Path, s3: ObjectStore) -> None:
    write_job(tmp_path / "job.yaml", data, **SECTIONS)
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "here", cwd=tmp_path))
    with ExitStack() as stack:
        places = {"data.path": s3.upload(data, "two-hosts/data"), "checkpoint.path": s3.uri("two-hosts/checkpoints")}
        parameters = parameters_of({**JOB, "cluster.workers": 1, **places})  # as in process, bit for bit
        names = ("127.0.0.1", "127.0.0.2")
        first, second = (prepare(tmp_path / name, parameters, names, name) for name in names)
        [port] = free_ports(1)
        variables = {"CROSSFADE_TOKEN": "the-token-of-all-hosts", "CROSSFADE_PORT": str(port)}
        # The second host starts first: it waits for the other.
        agent, coordinator = (
            stack.enter_context(started("train", "--sagemaker", base, cwd=tmp_path, variables=variables))
            for base in (second, first)
        )
        succeeded(coordinator.finish())
        succeeded(agent.finish())
    assert_same_model(first / "model", tmp_path / "here")
    assert list((second / "model").iterdir()) == []
    logs = second / "output" / "data" / "127.0.0.2" / "logs"
    assert sorted(path.name for path in logs.iterdir()) == ["server-1.log"]
    assert not list(tmp_path.rglob("failure"))
