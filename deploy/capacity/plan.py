"""Plan the capacity of a job: memory of each process and host, and the traffic of a step.

inputs = read_inputs(job).with_counts()
plan = plan_capacity(inputs)
plan.required_bytes, plan.peak_bytes        # of the fullest host
fit = check_fit(inputs, plan, this_machine())
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from crossfade.deploy.capacity.inputs import PlanInputs
from crossfade.deploy.capacity.memory import (
    SHARED_LIBRARIES_BYTES,
    ProcessPlan,
    peak_bytes,
    plan_processes,
    table_bytes,
)
from crossfade.deploy.capacity.step_time import WorkerStep, worker_steps
from crossfade.deploy.capacity.traffic import StepTraffic, expect_traffic, worker_loads
from crossfade.deploy.capacity.worker_memory import MemoryItem
from crossfade.deploy.topology import AcceptedRoles, Role, assign_roles
from crossfade.kvstore.mxnet.protocol import TableLayout, make_layout
from crossfade.kvstore.store import VALUE_BYTES
from crossfade.trainer.config.schema import JobConfig


@dataclass(frozen=True)
class TablePlan:
    """One table: its bytes, and its layout on the servers (no keys in process)."""

    name: str
    rows: int
    dim: int
    weights_bytes: int
    state_bytes: int
    keys: int
    key_rows: int
    key_bytes: int


@dataclass(frozen=True)
class HostPlan:
    """The processes of one host, and their peak together."""

    processes: tuple[str, ...]
    required_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class CapacityPlan:
    """What a job will hold and send. ``traffic`` is None where the vocabularies have not been read."""

    tables: tuple[TablePlan, ...]
    processes: tuple[ProcessPlan, ...]
    hosts: tuple[HostPlan, ...]
    traffic: StepTraffic | None
    steps: tuple[WorkerStep, ...] = ()
    """What each worker computes in a step; empty where the traffic is unknown."""

    @property
    def required_bytes(self) -> int:
        """What the fullest host needs in any case."""
        return max(host.required_bytes for host in self.hosts)

    @property
    def peak_bytes(self) -> int:
        """What the fullest host needs at most."""
        return max(host.peak_bytes for host in self.hosts)


def plan_capacity(inputs: PlanInputs) -> CapacityPlan:
    """Return what the job of ``inputs`` will hold and, where its vocabularies have been read, send."""
    job = inputs.job
    loads = worker_loads(job, inputs.folder, inputs.manifest, inputs.selection.groups)
    layouts = make_layout(inputs.model.tables, max(1, job.cluster.servers), job.cluster.max_key_bytes)
    processes = plan_processes(inputs, loads, layouts)
    traffic = None
    if inputs.counts is not None:
        traffic = expect_traffic(job, inputs.manifest, inputs.model, loads, inputs.counts, inputs.selection.rows)
    return CapacityPlan(
        tables=tuple(_plan_table(job, layout) for layout in layouts),
        processes=tuple(processes),
        hosts=tuple(_plan_hosts(job, processes)),
        traffic=traffic,
        steps=() if traffic is None else tuple(worker_steps(job, loads, traffic, inputs.model)),
    )


def role_hosts(job: JobConfig) -> list[list[Role]]:
    """Return the roles of each host."""
    hosts: dict[str, AcceptedRoles] = dict.fromkeys(map(str, range(job.cluster.host_count)), "all")
    return list(assign_roles(job.cluster, hosts).values())


def _plan_table(job: JobConfig, layout: TableLayout) -> TablePlan:
    table = layout.table
    key_rows, dim = layout.key_shape
    shape = (layout.num_shards, key_rows, key_rows * dim * VALUE_BYTES) if job.cluster.servers else (0, 0, 0)
    return TablePlan(table.name, table.rows, table.dim, table.bytes, table_bytes(job, table) - table.bytes, *shape)


def _plan_hosts(job: JobConfig, processes: Sequence[ProcessPlan]) -> Iterable[HostPlan]:
    if not job.cluster.servers:
        yield HostPlan(("process",), processes[0].required_bytes, processes[0].peak_bytes)
        return
    by_name = {process.name: process for process in processes}
    libraries = MemoryItem("shared libraries", SHARED_LIBRARIES_BYTES)
    for roles in role_hosts(job):
        # The command that starts the roles, or the agent of another host, which is as large.
        here = [by_name["train"], *(by_name[role.name] for role in roles)]
        items = [libraries, *(item for process in here for item in process.parts)]
        required = peak_bytes([item for item in items if item.required])
        yield HostPlan(tuple(process.name for process in here), required, peak_bytes(items))
