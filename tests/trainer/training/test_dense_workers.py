"""Dense layers of several workers: gradients summed by Horovod, on real servers, with a worker that dies."""

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
from object_store import free_ports
from paced_training import Training, pace
from running_command import RunningCommand, crossfade, started, succeeded
from test_dense import CHECKPOINT, MODEL, TOLERANCE, TRAIN, assert_same_run, layers_at_the_end, layers_of, vectors

from kvstore.arrays import FloatArray
from kvstore.errors import ClusterError
from kvstore.local import LocalStore
from kvstore.optimizers import OptimizerSpec
from trainer.model.dense import DenseLayers
from trainer.training.restore import check_dense_in_sync

ON_SERVERS = ("--servers", 1, "--workers", 2)


class Adding:
    """The sum of what it is given and ``other_N``; it keeps what it was given."""

    def __init__(self, other_N: FloatArray | float = 0.0) -> None:
        self._other_N = other_N
        self.own_N: FloatArray = np.empty(0)

    def sum(self, values_N: FloatArray) -> FloatArray:
        self.own_N = values_N
        total_N: FloatArray = values_N + self._other_N
        return total_N


def test_workers_make_of_their_parts_of_a_batch_what_one_makes_of_all() -> None:
    draw = np.random.default_rng(4)
    rows_AD, gradient_AD = (draw.standard_normal((300, 5)).astype(np.float32) for _ in range(2))
    optimizer = OptimizerSpec("adagrad", learning_rate=0.1, weight_decay=0.01)

    def after_a_step(part: slice, reduction: Adding | None) -> DenseLayers:
        dense = DenseLayers([layers_of("tanh")], optimizer, seed=3)
        dense.all_reduce = reduction
        _, tape = dense.forward({"track": rows_AD[part]})
        _, gradients = dense.backward(tape, {"track": gradient_AD[part]})
        dense.update(gradients, 1.0)
        return dense

    alone = after_a_step(slice(None), None)
    parts = slice(0, 100), slice(100, None)
    own = [Adding(), Adding()]
    for part, reduction in zip(parts, own, strict=True):
        after_a_step(part, reduction)
    one, other = (after_a_step(part, Adding(theirs.own_N)) for part, theirs in zip(parts, reversed(own), strict=True))
    assert one.checksum() == other.checksum()
    for name, values in alone.parameters.items():
        np.testing.assert_allclose(one.parameters[name], values, rtol=1e-4, atol=1e-6, err_msg=name)


class OtherStore(LocalStore):
    """A store with another worker, which gives the numbers of ``other``."""

    workers = 2

    def __init__(self, other: float) -> None:
        super().__init__()
        self.other = other

    def all_reduce(self, values_N: FloatArray) -> FloatArray:
        total_N: FloatArray = values_N + self.other
        return total_N


def test_workers_that_begin_with_other_layers_fail() -> None:
    dense, other = (DenseLayers([layers_of()], OptimizerSpec(), seed) for seed in (1, 2))
    check_dense_in_sync(dense, OtherStore(dense.checksum()))
    with pytest.raises(ClusterError, match="the workers do not begin with the same dense layers"):
        check_dense_in_sync(dense, OtherStore(other.checksum()))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a job, both of whose sides have layers, and ``two``, a run that nothing disturbs."""
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
def test_two_workers_train_the_layers_as_one_does(place: Path) -> None:
    succeeded(crossfade("train", "job.yaml", "--run-dir", "one", cwd=place))
    one, two = ({**layers_at_the_end(place / run), **vectors(place / run / "embeddings")} for run in ("one", "two"))
    assert one.keys() == two.keys()
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, atol=10 * TOLERANCE, err_msg=name)
    assert json.loads((place / "two" / "report.json").read_text())["workers"] == 2


def of_no_name() -> tuple[str, ...]:
    """What a command runs within on a host whose name leads nowhere, where root can make one."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "--uts", "true"], check=False).returncode != 0:
        return ()
    return "unshare", "--uts", "sh", "-c", 'hostname nowhere.invalid && exec "$0" "$@"'


@contextmanager
def on_two_hosts(place: Path, run: str) -> Iterator[tuple[Training, RunningCommand]]:
    """A training on 127.0.0.1 and an agent, which has the second worker, on 127.0.0.2; no name leads there."""
    release, at = place / "release", f"127.0.0.1:{free_ports(1)[0]}"
    variables = pace(place, release, {"CROSSFADE_TOKEN": "a-token-that-all-hosts-have"})
    join = ("agent", "--join", at, "--advertise-address", "127.0.0.2", "--run-dir", run)
    hosts = ("--set", "cluster.hosts=2", "--set", f"cluster.coordinator_address={at}")
    train = ("train", "job.yaml", *ON_SERVERS, *hosts, "--run-dir", run)
    with (
        started(*train, cwd=place, variables=variables, within=of_no_name()) as command,
        started(*join, cwd=place, variables=variables, within=of_no_name()) as agent,
    ):
        yield Training(command, place / run, release), agent


@pytest.mark.cluster
def test_a_worker_that_is_killed_on_another_host_costs_a_restart_and_not_a_bit_and_all_listen_on_loopback(
    place: Path,
) -> None:
    with on_two_hosts(place, "killed") as (training, agent):
        for _ in range(2):
            training.wait_for("checkpoint_saved")
        for worker in (training.command.roles()["worker-0"], agent.roles()["worker-1"]):
            at = {entry.laddr.ip for entry in worker.net_connections() if entry.status == psutil.CONN_LISTEN}
            assert at
            assert all(address.startswith("127.") for address in at), at
        agent.roles()["worker-1"].kill()
        succeeded(training.finish())
        succeeded(agent.finish())
    [restart] = json.loads((place / "killed" / "report.json").read_text())["restart_causes"]
    assert restart["cause"] == "worker-1 was killed by SIGKILL"
    assert 0 < restart["step"] < 120
    assert_same_run(place / "killed", place / "two")
