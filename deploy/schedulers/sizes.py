"""The CPUs and memory that the hosts of a job request from a scheduler, from the job's capacity plan."""

from __future__ import annotations

import math
from dataclasses import dataclass

from crossfade.deploy.capacity.plan import CapacityPlan, role_hosts
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.config.sections import on_gpu

_MIB = 2**20
HEADROOM, RESERVE_BYTES = 1.1, 256 * _MIB
"""A host requests its peak times the one plus the other: the kernel counts cached files too, and ends what exceeds the
limit."""
IN_PROCESS_CPUS = 4
AGENT_CPUS = 0.5
"""For the agent or coordinator of a host, and for threads that read and send; each server and worker adds 1."""


@dataclass(frozen=True)
class HostSize:
    """What one host requests."""

    cpus: float
    memory_mib: int

    @property
    def threads(self) -> int:
        """Threads of a role that has the host for itself."""
        return max(1, math.floor(self.cpus))


def size_hosts(job: JobConfig, plan: CapacityPlan, cores: int | None = None) -> list[HostSize]:
    """Return the sizes of the hosts in ``plan``, which is of ``job``: the coordinator's first.

    Where ``cores`` are given, each host that trains gets so many CPUs.
    """
    memory = [math.ceil((host.peak_bytes * HEADROOM + RESERVE_BYTES) / (64 * _MIB)) * 64 for host in plan.hosts]
    if not job.cluster.is_distributed:
        return [HostSize(cores or IN_PROCESS_CPUS, memory[0])]
    sizes = []
    for roles, mib in zip(role_hosts(job), memory, strict=True):
        cpus = AGENT_CPUS + sum(role.kind != "scheduler" for role in roles)
        trains = any(role.kind == "worker" for role in roles)
        sizes.append(HostSize(cores if cores and trains else cpus, mib))
    return sizes


def requested_gpus(job: JobConfig) -> int:
    """Return how many GPUs a host that trains requests, so that those that ``train.device`` names are there.

    None where the device is ``auto``, since a cluster may have no GPUs.
    """
    devices = job.train.devices
    if not on_gpu(devices):
        return 0
    indexes = (int(name.partition(":")[2] or 0) for name in devices)
    return max(len(devices), *(index + 1 for index in indexes))
