"""The predicted time of a step: which process, host, or network it is limited by."""

import pytest

from crossfade.deploy.aws.instance_types import find_instance
from crossfade.deploy.capacity.step_time import (
    IN_PROCESS,
    POOL_FLOPS,
    SERVER,
    SHARDED,
    SHARED_CORES,
    WORKER,
    WorkerStep,
    step_seconds,
    worker_steps,
)
from crossfade.deploy.capacity.traffic import StepTraffic, TableTraffic, WorkerLoad
from crossfade.deploy.topology import Role
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.model.spec import ModelSpec, Score

DIM = 64
STEP = WorkerStep(rows=20_000, uses=16_384)


def hosts(*roles: str) -> list[list[Role]]:
    return [[Role.from_name(name) for name in names.split()] for names in roles]


def test_a_step_with_a_host_for_each_role_takes_worker_server_and_wire() -> None:
    own = hosts("scheduler", "server-0", "server-1", "worker-0", "worker-1")
    worker, server = STEP.core_seconds(WORKER, DIM), SERVER.seconds(STEP.rows, DIM, merges=1)
    assert step_seconds([STEP, STEP], DIM, own, cores=8, wire_seconds=0.01) == pytest.approx(worker + server + 0.01)
    slow = WorkerStep(rows=40_000, uses=16_384)
    expected = slow.core_seconds(WORKER, DIM) + SERVER.seconds(30_000, DIM, merges=1)
    assert step_seconds([STEP, slow], DIM, own, cores=8, wire_seconds=0.0) == pytest.approx(expected)


def test_each_key_costs_every_worker_and_its_server_for_every_worker() -> None:
    own = hosts("server-0", "server-1", "server-2", "worker-0", "worker-1")
    many, none = (step_seconds([STEP, STEP], DIM, own, cores=8, keys=keys) for keys in (12, 0))
    assert many - none == pytest.approx(12 * WORKER.key + 4 * 2 * SERVER.key)


def test_roles_that_share_few_cores_take_their_sum() -> None:
    shared = hosts("scheduler server-0 server-1 worker-0 worker-1")
    total = 2 * STEP.core_seconds(WORKER, DIM) + 2 * SERVER.seconds(STEP.rows, DIM, merges=1)
    assert step_seconds([STEP, STEP], DIM, shared, cores=1) == pytest.approx(total / SHARED_CORES)
    assert step_seconds([STEP, STEP], DIM, shared, cores=64) == pytest.approx(total / 2)


def test_workers_that_hold_the_tables_take_the_slowest_and_the_wire() -> None:
    slow, three = WorkerStep(rows=40_000, uses=16_384), hosts("worker-0", "worker-1", "worker-2")
    messages = 2 * SHARDED.key + 40_000 * DIM * SHARDED.merge * 2 / 3
    seconds = step_seconds([STEP, slow, STEP], DIM, three, cores=8)
    assert seconds == pytest.approx(slow.core_seconds(SHARDED, DIM) + messages)
    wired = step_seconds([STEP, slow, STEP], DIM, three, cores=8, wire_seconds=0.01)
    assert wired - seconds == pytest.approx(0.01)
    shared = step_seconds([STEP] * 3, DIM, hosts("worker-0 worker-1 worker-2"), cores=1)
    assert shared == pytest.approx(3 * step_seconds([STEP] * 3, DIM, three, cores=8) / SHARED_CORES)


def test_cores_share_a_step_in_process() -> None:
    assert step_seconds([STEP], DIM, [], cores=4) == pytest.approx(STEP.core_seconds(IN_PROCESS, DIM) / 4)


def test_more_servers_and_more_workers_shorten_a_step_on_hosts_of_their_own() -> None:
    def seconds(workers: int, servers: int) -> float:
        names = [f"worker-{n}" for n in range(workers)] + [f"server-{n}" for n in range(servers)]
        step = WorkerStep(STEP.rows / workers, STEP.uses / workers)
        return step_seconds([step] * workers, DIM, hosts(*names), cores=8)

    assert seconds(1, 1) > seconds(1, 2) > seconds(2, 2) > seconds(8, 8)


KINDS = {
    "per_example": ({"count": 4}, 5 * 1000.0, 0.0),
    "shared": ({"count": 256}, 0.0, 256 * 1000.0),
    "in_batch": ({}, 0.0, 125 * 1000.0),
    "mixed": ({"count": 256}, 0.0, (256 + 125) * 1000.0),
    "all": ({}, 0.0, 3000 * 450.0),  # scores of 450 distinct queries
}


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_a_step_follow_from_the_negatives(kind: str) -> None:
    options, uses, pool_scores = KINDS[kind]
    job = JobConfig.model_validate({"name": "job", "data": {"path": "x"}, "negatives": {"kind": kind, **options}})
    drawn = {"per_example": 4000.0, "all": 3000.0, "in_batch": 0.0}.get(kind, 256.0)
    load = WorkerLoad(1000.0, drawn, partition_examples=125.0)
    tables = TableTraffic("customer", (450.0,), False), TableTraffic("track", (250.0,), False)
    model = ModelSpec(TableSpec("customer", 500, DIM, 0.1), TableSpec("track", 3000, DIM, 0.1), Score.of("dot", 1.0))
    assert worker_steps(job, [load], StepTraffic(1000.0, tables, DIM, 0.0, 0.0, 0), model) == [
        WorkerStep(700.0, uses, pool_scores)
    ]


def test_shared_negatives_cost_three_matrix_products() -> None:
    one = WorkerStep(0.0, 0.0, 1e9).core_seconds(WORKER, DIM) - WORKER.step
    assert one == pytest.approx(6 * 1e9 * DIM / POOL_FLOPS)


@pytest.mark.parametrize(
    ("name", "vcpus"), [("r5.large", 2), ("p2.xlarge", 4), ("p2.16xlarge", 64), ("g5.12xlarge", 48)]
)
def test_virtual_cpus_follow_from_the_size(name: str, vcpus: int) -> None:
    assert find_instance(name).vcpus == vcpus
