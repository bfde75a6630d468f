"""Dense layers of several workers: Horovod sums their gradients, on real servers, also after a worker is killed."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from built_horovod import require_built_horovod
from cluster_data import write_job, write_planted
from dense_runs import CHECKPOINT, LAYERS, MODEL, TOLERANCE, TRAIN, assert_same_run, final_layers
from object_store import free_ports
from paced_training import Training, pace
from run_results import all_vectors
from running_command import RunningCommand, crossfade, started, succeeded

from crossfade.base.arrays import FloatArray
from crossfade.base.errors import ClusterError
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.trainer.model.dense import DenseLayers
from crossfade.trainer.training.restore import check_dense_in_sync

ON_SERVERS = ("--servers", 1, "--workers", 2)


class FakeAllReduce:
    """Adds ``other_N`` to the local values, which it records."""

    def __init__(self, other_N: FloatArray | float = 0.0) -> None:
        self._other_N = other_N
        self.local_N: FloatArray = np.empty(0)

    def sum(self, values_N: FloatArray) -> FloatArray:
        self.local_N = values_N
        total_N: FloatArray = values_N + self._other_N
        return total_N


def test_dense_updates_on_batch_slices_equal_one_on_the_batch() -> None:
    draw = np.random.default_rng(4)
    rows_AD, gradient_AD = (draw.standard_normal((300, 5)).astype(np.float32) for _ in range(2))
    optimizer = OptimizerSpec("adagrad", learning_rate=0.1, weight_decay=0.01)

    def after_step_of(part: slice, reduction: FakeAllReduce | None) -> DenseLayers:
        dense = DenseLayers([LAYERS], optimizer, seed=3)
        dense.all_reduce = reduction
        _, tape = dense.forward({"track": rows_AD[part]})
        _, gradients = dense.backward(tape, {"track": gradient_AD[part]})
        dense.update(gradients, 1.0)
        return dense

    alone = after_step_of(slice(None), None)
    parts = slice(0, 100), slice(100, None)
    own = [FakeAllReduce(), FakeAllReduce()]
    for part, reduction in zip(parts, own, strict=True):
        after_step_of(part, reduction)
    one, other = (
        after_step_of(part, FakeAllReduce(theirs.local_N)) for part, theirs in zip(parts, reversed(own), strict=True)
    )
    assert one.checksum() == other.checksum()
    for name, values in alone.parameters.items():
        np.testing.assert_allclose(one.parameters[name], values, rtol=1e-4, atol=1e-6, err_msg=name)


class OtherStore(LocalStore):
    """A store with a second worker, whose values are ``other``."""

    workers = 2

    def __init__(self, other: float) -> None:
        super().__init__()
        self.other = other

    def all_reduce(self, values_N: FloatArray) -> FloatArray:
        total_N: FloatArray = values_N + self.other
        return total_N


def test_different_dense_layers_are_detected() -> None:
    dense, other = (DenseLayers([LAYERS], OptimizerSpec(), seed) for seed in (1, 2))
    check_dense_in_sync(dense, OtherStore(dense.checksum()))
    with pytest.raises(ClusterError, match="the workers do not begin with the same dense layers"):
        check_dense_in_sync(dense, OtherStore(other.checksum()))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write data and a job whose two towers have layers, and train the undisturbed run ``two``."""
    require_built_horovod()
    folder = tmp_path_factory.mktemp("dense-workers")
    data = write_planted(folder / "data")
    optimizer = {"kind": "adagrad", "learning_rate": 0.1, "warmup_steps": 3}
    metrics = {"port": None}
    write_job(
        folder / "job.yaml", data, model=MODEL, train=TRAIN, checkpoint=CHECKPOINT, optimizer=optimizer, metrics=metrics
    )
    succeeded(crossfade("train", "job.yaml", *ON_SERVERS, "--run-dir", "two", cwd=folder))
    return folder


@pytest.mark.cluster
def test_two_workers_train_the_same_dense_layers_as_one(workspace: Path) -> None:
    succeeded(crossfade("train", "job.yaml", "--run-dir", "one", cwd=workspace))
    one, two = (
        {**final_layers(workspace / run), **all_vectors(workspace / run / "embeddings")} for run in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, atol=10 * TOLERANCE, err_msg=name)
    assert json.loads((workspace / "two" / "report.json").read_text())["workers"] == 2


def without_host_name() -> tuple[str, ...]:
    """Return a command prefix that hides the name of this host, so that only addresses work, if root may do that."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "--uts", "true"], check=False).returncode != 0:
        return ()
    return "unshare", "--uts", "sh", "-c", 'hostname nowhere.invalid && exec "$0" "$@"'


@contextmanager
def on_two_hosts(workspace: Path, run: str) -> Iterator[tuple[Training, RunningCommand]]:
    """Start a training on 127.0.0.1 and an agent with the second worker on 127.0.0.2, without host names."""
    release, at = workspace / "release", f"127.0.0.1:{free_ports(1)[0]}"
    variables = pace(workspace, release, {"CROSSFADE_TOKEN": "a-token-that-all-hosts-have"})
    join = ("agent", "--join", at, "--advertise-address", "127.0.0.2", "--run-dir", run)
    hosts = ("--set", "cluster.hosts=2", "--set", f"cluster.coordinator_address={at}")
    train = ("train", "job.yaml", *ON_SERVERS, *hosts, "--run-dir", run)
    with (
        started(*train, cwd=workspace, variables=variables, within=without_host_name()) as command,
        started(*join, cwd=workspace, variables=variables, within=without_host_name()) as agent,
    ):
        yield Training(command, workspace / run, release), agent


@pytest.mark.cluster
def test_run_with_a_killed_remote_worker_restarts_once_with_the_same_bits(
    workspace: Path,
) -> None:
    with on_two_hosts(workspace, "killed") as (training, agent):
        for _ in range(2):
            training.wait_for("checkpoint_saved")
        for worker in (training.command.roles()["worker-0"], agent.roles()["worker-1"]):
            at = {entry.laddr.ip for entry in worker.net_connections() if entry.status == psutil.CONN_LISTEN}
            assert at
            assert all(address.startswith("127.") for address in at), at
        agent.roles()["worker-1"].kill()
        succeeded(training.finish())
        succeeded(agent.finish())
    [restart] = json.loads((workspace / "killed" / "report.json").read_text())["restart_causes"]
    assert restart["cause"] == "worker-1 was killed by SIGKILL"
    assert 0 < restart["step"] < 120
    assert_same_run(workspace / "killed", workspace / "two")
