"""Invalid input: exit code 2 and one line with what was found, where, and how to fix it; never a traceback."""

import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from numba import config
from running_command import crossfade, single_line, succeeded

from crossfade.base.errors import InputError
from crossfade.cli.main import main
from crossfade.kvstore import jit

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


def test_address_that_cannot_be_used_is_rejected_before_training(train_rejected: Rejected) -> None:
    message = train_rejected("--servers", 1, "--set", "cluster.host=192.0.2.1")  # reserved for documentation: RFC 5737
    assert message.startswith("cluster.host: cannot listen on '192.0.2.1': ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train job.yaml --run-dir run --set data.item=artist", "job 'planted': data.item is 'artist', but "),
        ("train job.yaml --run-dir run --set data.path=nowhere", "nowhere/manifest.json: no such file; "),
        ("train job.yaml --run-dir job.yaml/run", "job.yaml/run: cannot be a run folder: job.yaml is a file; name"),
        ("train job.yaml --run-dir data --overwrite", "data: exists and is not a run folder; name another with "),
        ("evaluate data", "data: not a run folder: it has no job.yaml"),
        ("similar data c001", "data: is a dataset; expected a run folder, a folder of checkpoints"),
    ],
)  # fmt: skip
def test_wrong_folder_is_named(rejected: Rejected, workspace: Path, words: str, message: str) -> None:
    assert rejected(*words.split()).startswith(message)
    assert (workspace / "data" / "manifest.json").exists()


def test_misspelled_job_or_run_gets_a_suggestion(rejected: Rejected, workspace: Path) -> None:
    assert rejected("train", "jb.yaml") == "jb.yaml: no such job file; did you mean 'job.yaml'?"
    (workspace / "runs" / "plays").mkdir(parents=True)
    (workspace / "job.yaml").rename(workspace / "runs" / "plays" / "job.yaml")
    for words in (("similar", "runs/pay", "Intro"), ("status", "runs/pays"), ("similar", "play", "1")):
        assert rejected(*words).endswith("; did you mean 'runs/plays'?")


DENSE = ("--servers", 1, "--workers", 2, "--set", "model.dense={item: [8]}")


@pytest.mark.parametrize(
    ("package", "options"),
    [
        ("horovod", DENSE),
        ("mlflow", ("--set", "tracking.mlflow=http://mlflow:5000")),
        ("mxnet", ("--servers", 1, "--set", "cluster.store=mxnet")),
        ("mxnet", ("--set", "train.engine=mxnet")),
    ],
)
def test_missing_package_is_reported(
    train_rejected: Rejected, monkeypatch: pytest.MonkeyPatch, package: str, options: tuple[object, ...]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert f"needs the package '{package}" in train_rejected(*options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        *("NUMBA_NUM_THREADS=0", "NUMBA_NUM_THREADS=5000", "NUMBA_DISABLE_JIT=1"),
        *("NUMBA_THREADING_LAYER=nonsense", "NUMBA_THREADING_LAYER=tbb"),
    ],
)
def test_setting_of_numba_that_kernels_cannot_run_with_is_rejected(tmp_path: Path, setting: str) -> None:
    variable, value = setting.split("=")
    result = crossfade("similar", "nowhere", 1, cwd=tmp_path, variables={variable: value})
    assert single_line(result.returncode, result.stdout, result.stderr).startswith(f"{variable} is ")


@pytest.mark.slow
def test_rejected_run_leaves_earlier_run_in_place(rejected: Rejected, workspace: Path) -> None:
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", "--set", "train.max_steps=1"))
    report = (workspace / "run" / "report.json").read_text()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        in_use = ("--set", f"metrics.port={taken.getsockname()[1]}")
        rejected("train", "job.yaml", "--run-dir", "run", "--overwrite", *in_use)
    assert (workspace / "run" / "report.json").read_text() == report


def test_folders_that_numba_cannot_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CACHE_LOCATOR_CLASSES", "ZipCacheLocator")  # finds none, whoever may write where
    with pytest.raises(InputError, match="NUMBA_CACHE_DIR"):
        jit._open_cache(test_folders_that_numba_cannot_write)
