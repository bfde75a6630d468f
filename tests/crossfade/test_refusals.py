"""Wrong input: exit code 2 and one line that says what was found, where, and how to mend it; never a traceback."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from built_horovod import require_built_horovod
from cluster_data import write_job, write_planted
from refusal_table import documented
from running_command import crossfade, messages, succeeded

from crossfade.main import main

Refused = Callable[..., str]

WITHOUT = """
import sys

sys.modules[sys.argv.pop(1)] = None
from crossfade.main import main

sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a folder with data and a job."""
    write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def only_line(exit_code: int, stdout: str, stderr: str) -> str:
    """The one line on stderr of a command that refused its input."""
    assert exit_code == 2, f"exit code {exit_code}\n{stdout}\n{stderr}"
    assert stdout == ""
    assert len(stderr.splitlines()) == 1
    [line] = messages(stderr)
    assert line.startswith("crossfade: error: ")
    return line.removeprefix("crossfade: error: ")


@pytest.fixture
def refused(place: Path, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Run a command, in this process, and get what it says as it refuses its input."""

    def run(*arguments: object) -> str:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            code = main(list(map(str, arguments)))
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return only_line(code, *capfd.readouterr())

    return run


@pytest.fixture
def train_refused(refused: Refused, place: Path) -> Refused:
    """The same for ``crossfade train`` on a job, by default the one that would do."""

    def run(*arguments: object, job: str = "job.yaml") -> str:
        message = refused("train", job, "--run-dir", "run", *arguments)
        assert not list((place / "run").glob("report.json"))
        return message

    return run


def refusal(result: "subprocess.CompletedProcess[str]") -> str:
    """What a command in a process of its own says as it refuses its input."""
    return only_line(result.returncode, result.stdout, result.stderr)


def change_manifest(place: Path, change: Any) -> None:
    path = place / "data" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_job_file_that_is_not_there(place: Path) -> None:
    message = refusal(crossfade("train", "nowhere.yaml", cwd=place))
    assert message == "nowhere.yaml: no such job file; see jobs/ for examples"


def test_a_job_file_that_is_not_yaml(train_refused: Refused, place: Path) -> None:
    (place / "job.yaml").write_text("name: planted\ndata: {shards: data\n")
    assert train_refused().startswith("job.yaml:3: not valid YAML: ")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.epcohs=3", "job.yaml: unknown key 'train.epcohs'; did you mean 'epochs'?"),
        ("trian.epochs=3", "job.yaml: unknown key 'trian'; did you mean 'train'?"),
        ("train.batch_size=0", "job.yaml: train.batch_size: input should be greater than or equal to 1, but found 0"),
        ("data.item=artist", "job 'planted': data.item is 'artist', but the item column of {data} is 'track'"),
    ],
)
def test_a_key_or_value_that_does_not_fit(train_refused: Refused, place: Path, setting: str, message: str) -> None:
    assert train_refused("--set", setting) == message.format(data=place / "data")


def test_workers_without_a_server(train_refused: Refused) -> None:
    assert "2 workers need at least one server: set cluster.servers or --servers" in train_refused("--workers", 2)


def test_data_that_is_not_there(train_refused: Refused) -> None:
    message = train_refused("--set", "data.path=nowhere")
    documented("a folder or prefix without data", message)
    assert message.startswith("nowhere/manifest.json: no such file; ")
    assert "crossfade prepare" in message


def test_a_manifest_that_is_cut_off(train_refused: Refused, place: Path) -> None:
    path = place / "data" / "manifest.json"
    path.write_text(path.read_text()[:200])
    message = documented("a manifest that was cut off", train_refused())
    assert message.startswith(f"{path}: not a manifest of prepared data: ")


def test_a_manifest_without_one_of_its_entities(train_refused: Refused, place: Path) -> None:
    change_manifest(place, lambda manifest: manifest["entities"].pop("track"))
    path = place / "data" / "manifest.json"
    message = documented("a manifest without one of its entities", train_refused())
    assert message.startswith(f"{path}: not a manifest of prepared data: entities: 'track' is missing")


@pytest.mark.parametrize("empty", [{"files": []}, None], ids=["without rows", "missing"])
def test_data_with_nothing_to_train_on(train_refused: Refused, place: Path, empty: dict[str, Any] | None) -> None:
    change_manifest(place, lambda manifest: manifest["splits"].update(train=empty))
    if empty is None:
        change_manifest(place, lambda manifest: manifest["splits"].pop("train"))
    assert train_refused().startswith(f"{place / 'data'}: its train split is empty: there is nothing to train on")


def test_a_shard_that_is_missing(place: Path) -> None:
    shard = place / "data" / "train" / "part-00002.parquet"
    shard.unlink()
    message = refusal(crossfade("train", "job.yaml", "--run-dir", "run", cwd=place))
    assert message == f"{shard}: no such file, but the manifest lists it; prepare the data again"


@pytest.mark.parametrize("shape", [(), ("--servers", 4)], ids=["in process", "on servers"])
def test_tables_that_do_not_fit_into_memory(train_refused: Refused, place: Path, shape: tuple[object, ...]) -> None:
    change_manifest(place, lambda manifest: manifest["entities"]["track"].update(rows=10**11))
    message = train_refused(*shape)
    # 8 columns and as many of adagrad's state, 4 bytes each
    assert "the tables need 5,960.5 GiB with their adagrad state" in message
    assert "track 100,000,000,000 x 8 = 5,960.5 GiB" in message
    assert "GiB are free here: " in message


def test_a_port_in_use(train_refused: Refused) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = train_refused("--servers", 1, "--set", f"cluster.scheduler_port={port}")
    assert message == f"cluster.scheduler_port: {port} on 127.0.0.1 is in use; name another, or 0 for a free one"


def test_a_host_that_is_not_this_machine(train_refused: Refused) -> None:
    message = train_refused("--servers", 1, "--set", "cluster.host=192.0.2.1")  # of no machine: RFC 5737
    assert message.startswith("cluster.host: cannot listen on '192.0.2.1': ")


def refused_without(package: str, place: Path, *options: str) -> str:
    """What ``crossfade train`` says where ``package`` is not installed."""
    command = [sys.executable, "-c", WITHOUT, package, "train", "job.yaml", "--run-dir", "run", *options]
    return refusal(subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=60, check=False))


DENSE = ("--servers", "1", "--workers", "2", "--set", "model.dense={item: [8]}")


def test_horovod_where_it_is_not_installed(place: Path) -> None:
    message = refused_without("horovod", place, *DENSE)
    documented("dense layers of several workers where Horovod is not installed", message)
    assert not (place / "run").exists()


@pytest.mark.parametrize("setting", [("--servers", "1"), ("--set", "train.engine=mxnet")], ids=["servers", "engine"])
def test_mxnet_where_it_is_not_installed(place: Path, setting: tuple[str, str]) -> None:
    message = refused_without("mxnet", place, *setting)
    assert "needs the package 'mxnet', which is not installed here: pip install 'crossfade[mxnet]'" in message


@pytest.mark.parametrize("role", ["scheduler", "server", "worker"])
def test_a_role_that_is_not_told_where_the_others_are(place: Path, role: str) -> None:
    variables = {"DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": "9000", "DMLC_NUM_SERVER": "1"}
    message = refusal(crossfade(role, "--run-dir", "run", cwd=place, variables=variables))
    assert message == f"the environment lacks DMLC_NODE_HOST, DMLC_NUM_WORKER; see 'crossfade {role} --help'"


def test_a_worker_that_is_not_told_where_workers_meet(place: Path) -> None:
    require_built_horovod()
    (place / "run").mkdir()
    model = {"dim": 8, "dense": {"item": [8]}}
    write_job(place / "run" / "job.yaml", place / "data", model=model, cluster={"servers": 1, "workers": 2})
    names = ("PS_ROOT_URI", "PS_ROOT_PORT", "NODE_HOST", "NUM_SERVER", "NUM_WORKER")
    variables = {f"DMLC_{name}": "127.0.0.1" for name in names} | {"HOROVOD_GLOO_IFACE": "lo"}
    message = refusal(crossfade("worker", "--run-dir", "run", cwd=place, variables=variables))
    documented("a worker of several that is not told where they meet for Horovod", message)


def test_a_run_folder_that_cannot_be_written(refused: Refused, place: Path) -> None:
    (place / "file").write_text("not a folder")
    message = refused("train", "job.yaml", "--run-dir", "file/run")
    assert message == "file/run: cannot be a run folder: file is a file"


def test_a_folder_that_holds_no_run(refused: Refused) -> None:
    for command in (("evaluate", "data"), ("similar", "data", "c001")):
        assert refused(*command).startswith("data: not a run folder: it has no job.yaml")


def test_a_refused_run_leaves_an_earlier_one_where_it_was(refused: Refused, place: Path) -> None:
    succeeded(crossfade("train", "job.yaml", "--run-dir", "run", "--set", "train.max_steps=1", cwd=place))
    report = (place / "run" / "report.json").read_text()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        in_use = ("--servers", 1, "--set", f"cluster.scheduler_port={taken.getsockname()[1]}")
        refused("train", "job.yaml", "--run-dir", "run", "--overwrite", *in_use)
    assert (place / "run" / "report.json").exists()
    assert (place / "run" / "report.json").read_text() == report
