"""Invalid input: exit code 2 and one line with what was found, where, and how to fix it; never a traceback."""

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from error_table import documented
from numba import config
from running_command import single_line, succeeded

from crossfade.base.errors import InputError
from crossfade.cli.main import main
from crossfade.deploy.cluster.role_variables import die_with_agent
from crossfade.kvstore import jit
from crossfade.trainer.model.engines.engine import local_rank

Rejected = Callable[..., str]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepare a dataset and a job, and make their folder the working directory."""
    write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rejected(workspace: Path, capfd: pytest.CaptureFixture[str]) -> Rejected:
    """Run a command in this process, and return the message with which it rejects its input."""

    def run(*arguments: object) -> str:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            code = main(list(map(str, arguments)))
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return single_line(code, *capfd.readouterr())

    return run


@pytest.fixture
def train_rejected(rejected: Rejected, workspace: Path) -> Rejected:
    """Run ``crossfade train`` on a job, by default the valid one, and return its error message."""

    def run(*arguments: object, job: str = "job.yaml") -> str:
        message = rejected("train", job, "--run-dir", "run", *arguments)
        assert not list((workspace / "run").glob("report.json"))
        return message

    return run


def rejection(result: "subprocess.CompletedProcess[str]") -> str:
    """Return the message with which a command, in a process of its own, rejected its input."""
    return single_line(result.returncode, result.stdout, result.stderr)


def damage(workspace: Path, text: str) -> Path:
    path = workspace / "data" / "manifest.json"
    path.write_text(text)
    return path


def test_damaged_manifest_is_rejected(train_rejected: Rejected, workspace: Path) -> None:
    whole = (workspace / "data" / "manifest.json").read_text()
    path = damage(workspace, whole[:200])
    assert documented("a truncated manifest", train_rejected()).startswith(f"{path}: not a manifest of prepared data: ")
    damage(workspace, whole.replace('"track": {', '"music": {'))
    documented("a manifest with a missing entity", train_rejected())


def test_address_that_cannot_be_used_is_rejected_before_training(train_rejected: Rejected) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        documented("a port of the run's dashboard in use", train_rejected("--dashboard", port))
    message = train_rejected("--servers", 1, "--set", "cluster.host=192.0.2.1")  # reserved for documentation: RFC 5737
    assert message.startswith("cluster.host: cannot listen on '192.0.2.1': ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train job.yaml --run-dir run --set data.item=artist", "job 'planted': data.item is 'artist', but "),
        ("train job.yaml --run-dir run --set data.path=nowhere", "nowhere/manifest.json: no such file; "),
        ("train job.yaml --run-dir job.yaml/run", "job.yaml/run: cannot be a run folder: job.yaml is a file; name"),
        ("evaluate data", "data: not a run folder: it has no job.yaml"),
        ("similar data c001", "data: is a dataset; expected a run folder, a folder of checkpoints"),
        ("recommend data --customer c001", "data: is a dataset; expected a run folder, a folder of checkpoints"),
    ],
)  # fmt: skip
def test_wrong_folder_is_named(rejected: Rejected, words: str, message: str) -> None:
    assert rejected(*words.split()).startswith(message)


@pytest.mark.parametrize("shape", [(), ("--servers", 4)], ids=["in process", "on servers"])
def test_tables_larger_than_memory_are_rejected(train_rejected: Rejected, shape: tuple[object, ...]) -> None:
    message = train_rejected(*shape, "--set", "model.dim=1000000000")
    # 300 and 200 rows, whose columns and as many of adagrad's state have 4 bytes each
    assert "the tables need 3,725.3 GiB with their adagrad state" in message
    assert "track 200 x 1000000000 = 1,490.1 GiB" in message
    assert "GiB are free here: " in message


DENSE = ("--servers", 1, "--workers", 2, "--set", "model.dense={item: [8]}")


@pytest.mark.parametrize(
    ("package", "options", "cause"),
    [
        ("horovod", DENSE, "dense layers of several workers without Horovod"),
        ("mlflow", ("--set", "tracking.mlflow=http://mlflow:5000"), "tracking.mlflow without its package"),
        ("tensorboard", ("--set", "tracking.tensorboard=true"), "tracking.tensorboard without its package"),
        ("mxnet", ("--servers", 1, "--set", "cluster.store=mxnet"), ""),
        ("mxnet", ("--set", "train.engine=mxnet"), ""),
    ],
)
def test_missing_package_is_reported(
    train_rejected: Rejected, monkeypatch: pytest.MonkeyPatch, package: str, options: tuple[object, ...], cause: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = train_rejected(*options)
    if cause:
        documented(cause, message)
    assert f"needs the package '{package}" in message


READERS: dict[str, Callable[[], object]] = {
    "CROSSFADE_AGENT_PID": die_with_agent,
    "CROSSFADE_LOCAL_RANK": lambda: local_rank(0),
}


@pytest.mark.parametrize("name", READERS)
def test_invalid_number_in_the_environment_is_rejected(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "-1")
    with pytest.raises(InputError) as caught:
        READERS[name]()
    documented("an environment variable that is not a valid number", str(caught.value))


@pytest.mark.slow
def test_rejected_run_leaves_earlier_run_in_place(rejected: Rejected, workspace: Path) -> None:
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", "--set", "train.max_steps=1"))
    report = (workspace / "run" / "report.json").read_text()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        in_use = ("--set", f"metrics.port={taken.getsockname()[1]}")
        rejected("train", "job.yaml", "--run-dir", "run", "--overwrite", *in_use)
    assert (workspace / "run" / "report.json").exists()
    assert (workspace / "run" / "report.json").read_text() == report


def test_folders_that_numba_cannot_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CACHE_LOCATOR_CLASSES", "ZipCacheLocator")  # finds none, whoever may write where
    with pytest.raises(InputError) as caught:
        jit._open_cache(test_folders_that_numba_cannot_write)
    documented("no folder for compiled kernels", str(caught.value))
