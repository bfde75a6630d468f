"""Plan the memory of a job before it starts: bytes of its tables, processes, and hosts, and whether they fit.

inputs = read_inputs(job)
plan = plan_capacity(inputs)
plan.required_bytes, plan.peak_bytes        # of the fullest host
fit = check_fit(inputs, plan, this_machine())
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from crossfade.base.errors import InputError, command
from crossfade.base.machine import Machine, this_machine
from crossfade.deploy.capacity.plan_inputs import PlanInputs, read_inputs
from crossfade.deploy.capacity.process_memory import (
    RANK_LIBRARIES_BYTES,
    SHARED_LIBRARIES_BYTES,
    MemoryItem,
    ProcessPlan,
    peak_bytes,
    plan_processes,
)
from crossfade.deploy.cluster.store_choice import choose_store
from crossfade.deploy.topology import AcceptedRoles, Role, assign_roles
from crossfade.kvstore.optimizer_spec import state_bytes_per_row
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.reporter import ProgressReporter

_logger = logging.getLogger(__name__)

Verdict = Literal["fits", "tight", "does not fit"]
_GIB = 2**30
_MAX_HOSTS = 1024
_MIN_DIM = 4


@dataclass(frozen=True)
class TablePlan:
    """One table and its bytes."""

    name: str
    rows: int
    dim: int
    weights_bytes: int
    state_bytes: int


@dataclass(frozen=True)
class HostPlan:
    """The processes of one host, and their peak together."""

    processes: tuple[str, ...]
    required_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class CapacityPlan:
    """What a job will hold."""

    tables: tuple[TablePlan, ...]
    processes: tuple[ProcessPlan, ...]
    hosts: tuple[HostPlan, ...]

    @property
    def required_bytes(self) -> int:
        """What the fullest host needs in any case."""
        return max(host.required_bytes for host in self.hosts)

    @property
    def peak_bytes(self) -> int:
        """What the fullest host needs at most."""
        return max(host.peak_bytes for host in self.hosts)


@dataclass(frozen=True)
class Fit:
    """Whether each host of a plan is large enough, and what would fix it. ``tight``: the peak may exceed its memory."""

    machine: Machine
    verdict: Verdict
    advice: tuple[str, ...]


def plan_capacity(inputs: PlanInputs) -> CapacityPlan:
    """Return what the job of ``inputs`` will hold."""
    job, processes = inputs.job, plan_processes(inputs)
    tables = [
        TablePlan(
            table.name,
            table.rows,
            table.dim,
            table.bytes,
            table.rows * state_bytes_per_row(job.optimizer.kind, table.dim),
        )
        for table in inputs.model.tables
    ]
    return CapacityPlan(tuple(tables), tuple(processes), tuple(_plan_hosts(job, processes)))


def plan_job(job: JobConfig, progress: ProgressReporter) -> tuple[JobConfig, CapacityPlan, Fit]:
    """Return ``job`` as this machine runs it, what it will hold, and whether it fits hosts like this machine.

    Nothing is started. Without MXNet here, the workers hold the tables, as in ``crossfade train``.

    Raises:
        InputError: the job or the dataset is invalid.
    """
    inputs = read_inputs(check_hosts(choose_store(job, _logger.info)), progress)
    plan = plan_capacity(inputs)
    return inputs.job, plan, check_fit(inputs, plan, this_machine())


def check_hosts(job: JobConfig) -> JobConfig:
    """Return ``job``, whose hosts have something to do.

    Raises:
        InputError: it has several hosts for one process.
    """
    if job.cluster.hosts > 1 and not job.cluster.is_distributed:
        raise InputError(
            f"{job.cluster.hosts} hosts need servers, or several workers, that hold the tables: set cluster.servers or "
            "cluster.workers"
        )
    return job


def role_hosts(job: JobConfig) -> list[list[Role]]:
    """Return the roles of each host, the coordinator's first; of one process that trains, none."""
    if not job.cluster.is_distributed:
        return []
    hosts: dict[str, AcceptedRoles] = dict.fromkeys(map(str, range(job.cluster.host_count)), "all")
    assigned = assign_roles(job.cluster, hosts)
    return [assigned.get(host, []) for host in hosts]


def _plan_hosts(job: JobConfig, processes: Sequence[ProcessPlan]) -> Iterator[HostPlan]:
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


def check_fit(inputs: PlanInputs, plan: CapacityPlan, machine: Machine) -> Fit:
    """Check whether ``plan``, made from ``inputs``, fits hosts that are all like ``machine``."""
    verdict = _verdict(plan, machine)
    return Fit(machine, verdict, () if verdict == "fits" else tuple(_advice(inputs, machine)))


def check_fits_this_machine(inputs: PlanInputs) -> str | None:
    """Check that the processes of a job fit the available memory if this machine runs all of them.

    With a host for each role only this one is checked, since the others have what they need. Returns a warning if the
    job may need more in the course of training.

    Raises:
        InputError: it does not fit; with the figures of ``crossfade plan``.
    """
    plan, machine = plan_capacity(inputs), this_machine()
    if inputs.job.cluster.one_role_per_host:
        plan = replace(plan, hosts=plan.hosts[:1])
    fit = check_fit(inputs, plan, machine)
    if fit.verdict == "fits":
        return None
    free = f"{format_gib(machine.available_bytes)} are free here"
    if fit.verdict == "tight":
        advice = " or ".join(fit.advice)
        return (
            f"this may take up to {format_gib(plan.peak_bytes)}, but {free}; {command('plan')} itemizes it ({advice})"
        )
    sizes = [(table, table.weights_bytes + table.state_bytes) for table in plan.tables]
    tables = ", ".join(f"{table.name} {table.rows:,} x {table.dim} = {format_gib(size)}" for table, size in sizes)
    raise InputError(
        f"the tables need {format_gib(sum(size for _, size in sizes))} with their {inputs.job.optimizer.kind} state "
        f"({tables}), all processes of a host {format_gib(plan.required_bytes)}, but {free}: "
        + (", or ".join(fit.advice) or "lower model.dim, train fewer rows, or use more hosts")
    )


def format_gib(count: float) -> str:
    """Format bytes in GiB."""
    return f"{count / _GIB:,.1f} GiB"


def _verdict(plan: CapacityPlan, machine: Machine) -> Verdict:
    if plan.required_bytes > machine.available_bytes:
        return "does not fit"
    return "tight" if plan.peak_bytes > machine.available_bytes else "fits"


def _advice(inputs: PlanInputs, machine: Machine) -> Iterator[str]:
    """Yield changes to the job, each of which on its own would make it fit."""
    job = inputs.job

    def fits(section: str, **changes: object) -> bool:
        changed = getattr(job, section).model_copy(update=changes)
        other = inputs.with_job(job.model_copy(update={section: changed}))
        return _verdict(plan_capacity(other), machine) == "fits"

    halves = (job.model.dim >> shift for shift in range(1, job.model.dim.bit_length()))
    if dim := next((dim for dim in halves if dim >= _MIN_DIM and fits("model", dim=dim)), None):
        yield f"lower model.dim to {dim}"
    if job.optimizer.kind in {"adagrad", "adam"} and fits("optimizer", kind="rowwise_adagrad"):
        yield "set optimizer.kind to rowwise_adagrad"
    # Each host gets at least one of the roles that hold the tables.
    kind = "server" if job.cluster.servers or job.cluster.store == "mxnet" else "worker"
    roles = getattr(job.cluster, f"{kind}s")
    counts = range(2, _MAX_HOSTS + 1)
    place = bisect_left(
        counts, True, key=lambda hosts: fits("cluster", **{"hosts": hosts, f"{kind}s": max(hosts, roles)})
    )
    if place < len(counts):
        hosts = counts[place]
        yield f"use {hosts} hosts like {machine.name} with a {kind} each (cluster.hosts, cluster.{kind}s)"
