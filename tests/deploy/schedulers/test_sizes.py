"""What hosts request: CPUs and memory from the plan."""

from pathlib import Path

import pytest
from scheduled_jobs import planned, scheduled_job

from crossfade.deploy.schedulers.kubernetes import on_kubernetes
from crossfade.deploy.schedulers.sizes import HostSize, size_hosts

MIB = 2**20


def test_memory_is_the_peak_of_each_host_with_headroom(tmp_path: Path, planted_data: Path) -> None:
    job = on_kubernetes(scheduled_job(tmp_path, planted_data, model={"dim": 256}, cluster={"max_key_bytes": 4096}))
    plan = planned(job)
    sizes = size_hosts(job, plan)
    assert [host.processes for host in plan.hosts][:2] == [("train", "scheduler"), ("train", "server-0")]
    assert len(sizes) == len(plan.hosts) == 6
    for size, host in zip(sizes, plan.hosts, strict=True):
        least = host.peak_bytes * 1.1 + 256 * MIB
        assert least <= size.memory_mib * MIB < least + 64 * MIB


def test_workers_that_hold_the_tables_have_a_host_each_beside_the_coordinator(
    tmp_path: Path, planted_data: Path
) -> None:
    job = on_kubernetes(scheduled_job(tmp_path, planted_data, cluster={"store": "sharded", "servers": 0}))
    plan = planned(job)
    assert [host.processes for host in plan.hosts] == [("train",), *(("train", f"worker-{n}") for n in range(3))]
    coordinator, *workers = size_hosts(job, plan)
    assert (coordinator.cpus, len(workers)) == (0.5, 3)
    assert all(worker.cpus == 1.5 and worker.memory_mib > coordinator.memory_mib for worker in workers)


def test_cpus_follow_from_the_roles_of_a_host(tmp_path: Path, planted_data: Path) -> None:
    one_host = scheduled_job(tmp_path, planted_data, cluster={"servers": 2, "workers": 2})
    [host] = size_hosts(one_host, planned(one_host))
    assert host.cpus == 4.5, "two servers and two workers share it"


@pytest.mark.parametrize(("cores", "expected"), [(8, [0.5, 8, 8]), (None, [0.5, 1.5, 1.5])])
def test_cores_are_those_of_hosts_that_train(
    tmp_path: Path, planted_data: Path, cores: int | None, expected: list[float]
) -> None:
    job = on_kubernetes(scheduled_job(tmp_path, planted_data, cluster={"servers": 1, "workers": 1}))
    coordinator, server, worker = size_hosts(job, planned(job), cores)
    assert [coordinator.cpus, worker.cpus] == [expected[0], expected[2]]
    assert server.cpus == 1.5


def test_run_in_process_has_one_host(tmp_path: Path, planted_data: Path) -> None:
    job = scheduled_job(tmp_path, planted_data, cluster={"servers": 0, "workers": 1})
    plan = planned(job)
    [size] = size_hosts(job, plan)
    assert size == HostSize(4, size.memory_mib)
    assert size.memory_mib * MIB > plan.peak_bytes
    assert size_hosts(job, plan, 16)[0].cpus == 16
