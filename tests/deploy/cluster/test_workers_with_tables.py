"""Jobs whose workers hold the tables: faults, checkpoints that move between stores, several hosts, and no MXNet."""

import re
import signal
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from dense_runs import MODEL
from fault_runs import TOKEN, assert_last_is_complete, assert_undisturbed, train, wait_for_saves
from needs import root
from net_hosts import network, unavailable
from paced_training import Training, pace
from port_strangers import listening
from run_results import ENTITIES, assert_same_bits, checkpoint_arrays, report_of, vectors
from running_command import crossfade, messages, started, succeeded

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

TWO = ("--servers", 0, "--workers", 2, "--set", "cluster.store=sharded")
WORKERS = ["worker-0", "worker-1"]
_WITHOUT_MXNET = """
import importlib.util
import sys

class Hiding:
    def find_spec(self, name, path=None, target=None):
        if name in ("mxnet", "horovod"):
            raise ModuleNotFoundError(name)

def find(name, package=None, real=importlib.util.find_spec):
    return None if name in ("mxnet", "horovod") else real(name, package)

importlib.util.find_spec = find
sys.meta_path.insert(0, Hiding())
"""


@pytest.fixture(scope="module")
def undisturbed_pair(workspace: Path) -> Path:
    """Train on two workers that nothing disturbs."""
    result = succeeded(crossfade("train", "job.yaml", "--run-dir", "pair", *TWO, cwd=workspace))
    assert f"starting 2 workers, which hold the tables (logs: {Path('pair/logs')})" in result.stderr
    return workspace / "pair"


def wait_for_checkpoint_of(training: Training, generation: int) -> dict[str, psutil.Process]:
    """Return the roles once all of a generation run and it has written a checkpoint."""
    wait_for_saves(training, generation)
    roles = training.command.roles()
    assert sorted(roles) == WORKERS
    return roles


def assert_keeps_secrets(role: psutil.Process, rank: int) -> None:
    """Assert that a worker's environment has its rank, but not where the workers meet; and that MXNet is not loaded."""
    variables = role.environ()
    assert (variables["CROSSFADE_RANK"], variables["CROSSFADE_RANKS"]) == (str(rank), "2")
    assert not any(name.startswith(("DMLC_", "HOROVOD_")) for name in variables)
    assert not re.search(r"\d:\d+/[0-9a-f]{32}", " ".join([*role.cmdline(), *variables.values()]))
    loaded = {Path(area.path).name for area in role.memory_maps()}
    assert not any(name.startswith(("libmxnet", "libtorch")) for name in loaded)


def test_workers_that_are_killed_frozen_and_stopped_end_like_undisturbed_ones(
    workspace: Path, undisturbed_pair: Path
) -> None:
    run_dir, settings = workspace / "faults-of-ranks", ("--set", "cluster.stall_timeout_seconds=15")
    inherited = {"CROSSFADE_RANK": "7", "CROSSFADE_ADDRESS": "10.0.0.9", "DMLC_ROLE": "server"}
    with train(run_dir, *TWO, *settings, variables=inherited) as training:
        roles = wait_for_checkpoint_of(training, 1)
        for rank, name in enumerate(WORKERS):
            assert_keeps_secrets(roles[name], rank)
        roles["worker-1"].kill()
        roles = wait_for_checkpoint_of(training, 2)
        roles["worker-0"].suspend()
        wait_for_checkpoint_of(training, 3)
        training.command.process.send_signal(signal.SIGTERM)
        stopped = training.command.finish()
        assert training.command.mark.processes() == []
    assert stopped.returncode == 143, stopped.stderr
    assert "resume with --resume" in messages(stopped.stderr)[-1]
    assert "report.json" not in {path.name for path in run_dir.iterdir()}
    succeeded(crossfade("train", "job.yaml", "--run-dir", run_dir, *TWO, "--resume", cwd=workspace))
    killed, *frozen = [restart["cause"] for restart in report_of(run_dir)["restart_causes"]]
    assert killed == "worker-1 was killed by SIGKILL"
    # On an overloaded machine, a start may take longer than that too.
    assert set(frozen) == {"no sign of progress for 15 s"}
    assert_undisturbed(run_dir, undisturbed_pair)
    assert_last_is_complete(run_dir / "checkpoints")


def test_run_that_moves_between_stores_and_numbers_of_workers_has_the_bits_of_one_process(tmp_path: Path) -> None:
    # As many partitions as row groups, so that each worker has a node of their tree.
    data, steps = write_planted(tmp_path / "data", train_files=[[900] * 4]), 20
    write_job(tmp_path / "job.yaml", data, optimizer={"kind": "adagrad"}, train={"epochs": 10, "patience": None})
    succeeded(
        crossfade_here("train", "job.yaml", "--run-dir", "one", "--set", f"train.max_steps={4 * steps}", cwd=tmp_path)
    )
    holders = [(0, 2, "ShardedStore"), (1, 1, "MXNetStore"), (0, 4, "ShardedStore")]
    for part, (servers, workers, store) in enumerate([*holders, (0, 1, "LocalStore")], 1):
        sizes = ("--servers", servers, "--workers", workers, "--set", f"train.max_steps={part * steps}")
        command = crossfade_here if store == "LocalStore" else crossfade
        succeeded(command("train", "job.yaml", "--run-dir", "moved", *sizes, "--resume", cwd=tmp_path))
        report = report_of(tmp_path / "moved")
        assert (report["steps"], report["store"]) == (part * steps, store)
        assert (report["servers"], report["workers"]) == (servers, workers)
    for entity in ENTITIES:
        moved, stayed = (checkpoint_arrays(tmp_path / name, entity) for name in ("moved", "one"))
        for name, values in stayed.items():
            np.testing.assert_array_equal(moved[name], values, err_msg=f"{entity} {name}")


def test_servers_without_mxnet_become_workers_with_tables_that_train_dense_layers_too(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"), model=MODEL)
    succeeded(crossfade_here("train", job, "--run-dir", "one", cwd=tmp_path))
    without = pace(tmp_path, tmp_path / "released", hook=_WITHOUT_MXNET)
    (tmp_path / "released").touch()
    on_servers = ("--servers", 3, "--workers", 2)
    result = succeeded(crossfade("train", job, "--run-dir", "two", *on_servers, cwd=tmp_path, variables=without))
    assert ("crossfade: MXNet is not installed, so the 2 workers hold the tables, instead of 3 servers") in messages(
        result.stderr
    )
    report = report_of(tmp_path / "two")
    assert (report["servers"], report["workers"], report["store"]) == (0, 2, "ShardedStore")
    assert "mxnet" not in report["versions"]
    for entity in ENTITIES:
        np.testing.assert_allclose(vectors(tmp_path / "two", entity), vectors(tmp_path / "one", entity), atol=1e-3)


def test_workers_on_two_hosts_are_reached_by_nobody_else(workspace: Path, undisturbed_pair: Path) -> None:
    if reason := unavailable():
        pytest.skip(root(reason))
    run_dir, token = workspace / "ranks-on-hosts", {"CROSSFADE_TOKEN": TOKEN}
    variables = pace(workspace, workspace / "ranks-on-hosts.release", token)
    hook = _WITHOUT_MXNET  # of the agent, too
    with network(2) as (first, second), ExitStack() as stack:
        listen = f"{first.address}:7070"
        settings = {"host": first.address, "coordinator_address": listen, "hosts": 2}
        options = [part for name, value in settings.items() for part in ("--set", f"cluster.{name}={value}")]
        job = stack.enter_context(train(run_dir, *TWO, *options, variables=variables, within=first.within, hook=hook))
        join = ("agent", "--join", listen, "--run-dir", run_dir)
        agent = stack.enter_context(started(*join, cwd=workspace, variables=variables, within=second.within))
        job.wait_for("step")
        roles = {**job.command.roles(), **agent.roles()}
        assert [sorted(host.roles()) for host in (job.command, agent)] == [["worker-0"], ["worker-1"]]
        ports = [listening(role.pid) for role in roles.values()]
        assert [len(found) for found in ports] == [1, 1]  # that for metrics: the workers are connected
        for role in roles.values():
            assert_keeps_secrets(role, WORKERS.index(role.environ()["CROSSFADE_ROLE"]))
        succeeded(job.finish())
        assert "the job is done" in succeeded(agent.finish()).stderr
    assert_same_bits(run_dir, undisturbed_pair)
