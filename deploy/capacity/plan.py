"""Plan the capacity of a job: memory of each process and host, the traffic of a step, and whether hosts are enough.

inputs = read_inputs(job).with_counts()
plan = plan_capacity(inputs)
plan.required_bytes, plan.peak_bytes        # of the fullest host
fit = check_fit(inputs, plan, this_machine())
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from crossfade.base.errors import InputError
from crossfade.base.machine import Machine, this_machine
from crossfade.deploy.capacity.plan_inputs import PlanInputs
from crossfade.deploy.capacity.process_memory import (
    RANK_LIBRARIES_BYTES,
    SHARED_LIBRARIES_BYTES,
    MemoryItem,
    ProcessPlan,
    peak_bytes,
    plan_processes,
    table_bytes,
)
from crossfade.deploy.capacity.step_time import WorkerStep, worker_steps
from crossfade.deploy.capacity.traffic import StepTraffic, expect_traffic, worker_loads
from crossfade.deploy.topology import AcceptedRoles, Role, assign_roles
from crossfade.kvstore.mxnet.server_protocol import TableLayout, make_layout
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
    """Return the roles of each host, the coordinator's first; of one process that trains, none."""
    if not job.cluster.is_distributed:
        return []
    hosts: dict[str, AcceptedRoles] = dict.fromkeys(map(str, range(job.cluster.host_count)), "all")
    assigned = assign_roles(job.cluster, hosts)
    return [assigned.get(host, []) for host in hosts]


def _plan_table(job: JobConfig, layout: TableLayout) -> TablePlan:
    table = layout.table
    key_rows, dim = layout.key_shape
    shape = (layout.num_shards, key_rows, key_rows * dim * VALUE_BYTES) if job.cluster.servers else (0, 0, 0)
    return TablePlan(table.name, table.rows, table.dim, table.bytes, table_bytes(job, table) - table.bytes, *shape)


def _plan_hosts(job: JobConfig, processes: Sequence[ProcessPlan]) -> Iterable[HostPlan]:
    if not job.cluster.is_distributed:
        yield HostPlan(("process",), processes[0].required_bytes, processes[0].peak_bytes)
        return
    by_name = {process.name: process for process in processes}
    is_held = job.cluster.workers_hold_tables
    libraries = MemoryItem("shared libraries", RANK_LIBRARIES_BYTES if is_held else SHARED_LIBRARIES_BYTES)
    for roles in role_hosts(job):
        # The command that starts the roles, or the agent of another host, which is as large.
        here = [by_name["train"], *(by_name[role.name] for role in roles)]
        items = [libraries, *(item for process in here for item in process.parts)]
        required = peak_bytes([item for item in items if item.required])
        yield HostPlan(tuple(process.name for process in here), required, peak_bytes(items))


Verdict = Literal["fits", "tight", "does not fit"]
_GIB = 2**30
_MAX_HOSTS = 1024
_MIN_DIM = 4


@dataclass(frozen=True)
class Fit:
    """Whether each host of a plan is large enough, and what would fix it. ``tight``: the peak may exceed its memory."""

    machine: Machine
    verdict: Verdict
    advice: tuple[str, ...]


def check_fit(inputs: PlanInputs, plan: CapacityPlan, machine: Machine) -> Fit:
    """Check whether ``plan``, made from ``inputs``, fits hosts that are all like ``machine``."""
    verdict = _verdict(plan, machine)
    return Fit(machine, verdict, () if verdict == "fits" else tuple(_advice(inputs, machine)))


def check_fits_this_machine(inputs: PlanInputs) -> str | None:
    """Check that the processes of a job fit the available memory if this machine runs all of them.

    Returns a warning if the job may need more in the course of training.

    Raises:
        InputError: it does not fit; with the figures of ``crossfade plan``.
    """
    machine = this_machine()
    plan = plan_local_host(inputs)
    fit = check_fit(inputs, plan, machine)
    if fit.verdict == "does not fit":
        raise InputError(_rejection(inputs, plan, fit))
    inputs = inputs.with_counts()
    plan = plan_local_host(inputs)
    fit = check_fit(inputs, plan, machine)
    if fit.verdict == "fits":
        return None
    return (
        f"this may take up to {format_gib(plan.peak_bytes)}, but {format_gib(machine.available_bytes)} are free here; "
        f"'crossfade plan' itemizes it ({' or '.join(fit.advice)})"
    )


def format_gib(count: float) -> str:
    """Format bytes in GiB."""
    return f"{count / _GIB:,.1f} GiB"


def _verdict(plan: CapacityPlan, machine: Machine) -> Verdict:
    if plan.required_bytes > machine.available_bytes:
        return "does not fit"
    return "tight" if plan.peak_bytes > machine.available_bytes else "fits"


def _advice(inputs: PlanInputs, machine: Machine) -> Iterable[str]:
    """Yield changes to the job, each of which on its own would make it fit."""
    job = inputs.job

    def fits(other: JobConfig) -> bool:
        return _verdict(plan_capacity(inputs.with_job(other)), machine) == "fits"

    for dim in (job.model.dim >> shift for shift in range(1, 16)):
        if dim < _MIN_DIM:
            break
        if fits(job.model_copy(update={"model": job.model.model_copy(update={"dim": dim})})):
            yield f"lower model.dim to {dim}"
            break
    if job.optimizer.kind in {"adagrad", "adam"}:
        optimizer = job.optimizer.model_copy(update={"kind": "rowwise_adagrad"})
        if fits(job.model_copy(update={"optimizer": optimizer})):
            yield "set optimizer.kind to rowwise_adagrad"
    hosts = 2
    while hosts <= _MAX_HOSTS and not fits(_on_hosts(job, hosts)):
        hosts *= 2
    if hosts <= _MAX_HOSTS:
        low = hosts // 2
        while hosts - low > 1:
            middle = (low + hosts) // 2
            low, hosts = (low, middle) if fits(_on_hosts(job, middle)) else (middle, hosts)
        kind = _holder(job)
        yield f"use {hosts} hosts like {machine.name} with a {kind} each (cluster.hosts, cluster.{kind}s)"


def _holder(job: JobConfig) -> Literal["server", "worker"]:
    """Return which roles hold the tables on several hosts."""
    is_on_servers = job.cluster.servers or job.cluster.store == "mxnet"
    return "server" if is_on_servers else "worker"


def _on_hosts(job: JobConfig, hosts: int) -> JobConfig:
    """Return ``job`` on ``hosts`` hosts, with at least one role on each that holds tables."""
    key = f"{_holder(job)}s"
    cluster = job.cluster.model_copy(update={"hosts": hosts, key: max(hosts, getattr(job.cluster, key))})
    return job.model_copy(update={"cluster": cluster})


def plan_local_host(inputs: PlanInputs) -> CapacityPlan:
    """Plan the job; with a host for each role only this one is checked, since the others have what they need."""
    plan = plan_capacity(inputs)
    return replace(plan, hosts=plan.hosts[:1]) if inputs.job.cluster.one_role_per_host else plan


def _rejection(inputs: PlanInputs, plan: CapacityPlan, fit: Fit) -> str:
    job, model = inputs.job, inputs.model
    tables = ", ".join(
        f"{table.name} {table.rows:,} x {table.dim} = {format_gib(table_bytes(job, table))}" for table in model.tables
    )
    needed = sum(table_bytes(job, table) for table in model.tables)
    advice = ", or ".join(fit.advice) or "lower model.dim, train fewer rows, or use more hosts"
    return (
        f"the tables need {format_gib(needed)} with their {job.optimizer.kind} state ({tables}), all processes of a "
        f"host {format_gib(plan.required_bytes)}, but {format_gib(fit.machine.available_bytes)} are free here: {advice}"
    )
