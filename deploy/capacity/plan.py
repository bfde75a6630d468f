"""What a job needs of its machines: memory of each process, traffic of a step, and whether that fits.

    inputs = read_inputs(job)
    plan = make_plan(inputs)
    check_fit(inputs, plan, this_machine())

Each figure is counted from the job and its data, or is one of the constants below, which were measured. A process's
memory is its own; libraries that processes share are counted once a host. ``sure`` is what the job needs in any case;
``most`` has besides what depends on how training goes: what compiling leaves, what an evaluation gathers, and the rows
that training changes before a checkpoint of them is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from deploy.capacity.machine import Machine
from deploy.capacity.memory import (
    _MIB,
    MemoryItem,
    PlanInputs,
    ProcessPlan,
    _in_process,
    _peak,
    _process,
    _server,
    _training,
    table_bytes,
)
from deploy.capacity.traffic import StepTraffic, WorkerLoad, expect_traffic, shares
from deploy.topology import AcceptedRoles, Role, assign_roles
from kvstore.layout import TableLayout, make_layout
from kvstore.store import VALUE_BYTES
from trainer.config.schema import JobConfig
from trainer.data.reporter import NullReporter, ProgressReporter
from trainer.model.spec import ModelSpec
from trainer.runs.inputs import open_inputs
from trainer.runs.row_selection import select_rows

_GIB = 2**30


# Private memory (``uss``) of idle processes of a job of a few hundred rows, on Linux x86-64 with Python 3.11, whose
# kernels were compiled before.
SCHEDULER_BYTES = 87 * _MIB


WORKER_BYTES = 121 * _MIB


COMMAND_BYTES = 60 * _MIB
"""``crossfade train`` itself, where it starts and watches the roles."""


SHARED_LIBRARIES_BYTES = 195 * _MIB
"""Resident libraries that a host's processes share: the resident size of a worker (``rss``) less its private part."""


Verdict = Literal["fits", "tight", "does not fit"]


@dataclass(frozen=True)
class TablePlan:
    """One table: what it takes, and how it is laid out on the servers (no keys in process)."""

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
    """What one host runs, and the peak of all of it together."""

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
    """Whether each host of a plan is large enough, and what would mend it. ``tight``: it may turn out not to be."""

    machine: Machine
    verdict: Verdict
    advice: tuple[str, ...]


def read_inputs(job: JobConfig, progress: ProgressReporter | None = None) -> PlanInputs:
    """What a plan of ``job`` is made from, before the vocabularies are read. Interactions of a time are counted.

    Raises:
        InputError: the data cannot be used, or has nothing to train on.
        UnreachableError: storage does not answer any more.
    """
    folder, manifest, model = open_inputs(job)
    return PlanInputs(
        job, folder, manifest, model, select_rows(job, folder, manifest, progress or NullReporter()), counts=None
    )


def plan_capacity(inputs: PlanInputs) -> CapacityPlan:
    """What the job of ``inputs`` will hold and, where its vocabularies have been read, send."""
    job = inputs.job
    parts = shares(job, inputs.folder, inputs.manifest, inputs.selection.groups)
    layouts = make_layout(inputs.model.tables, max(1, job.cluster.servers), job.cluster.max_key_bytes)
    processes = _on_servers(inputs, parts, layouts) if job.cluster.servers else [_in_process(inputs, parts)]
    traffic = None
    if inputs.counts is not None:
        traffic = expect_traffic(job, inputs.manifest, inputs.model, parts, inputs.counts, inputs.selection.rows)
    return CapacityPlan(
        tables=tuple(_table(job, layout) for layout in layouts),
        processes=tuple(processes),
        hosts=tuple(_hosts(job, processes)),
        traffic=traffic,
    )


def _table(job: JobConfig, layout: TableLayout) -> TablePlan:
    table = layout.table
    key_rows, dim = layout.key_shape
    shape = (layout.keys, key_rows, key_rows * dim * VALUE_BYTES) if job.cluster.servers else (0, 0, 0)
    return TablePlan(table.name, table.rows, table.dim, table.bytes, table_bytes(job, table) - table.bytes, *shape)


def _on_servers(inputs: PlanInputs, parts: Sequence[WorkerLoad], layouts: Sequence[TableLayout]) -> list[ProcessPlan]:
    job = inputs.job
    server = _server(inputs, parts, layouts)
    return [
        ProcessPlan("train", (MemoryItem("process", COMMAND_BYTES),)),
        ProcessPlan("scheduler", _process("scheduler", SCHEDULER_BYTES)),
        *(ProcessPlan(f"server-{index}", server) for index in range(job.cluster.servers)),
        *(
            ProcessPlan(f"worker-{rank}", (*_process("worker", WORKER_BYTES), *_training(inputs, parts, rank)))
            for rank in range(job.cluster.workers)
        ),
    ]


def role_hosts(job: JobConfig) -> list[list[Role]]:
    """The roles of each host."""
    hosts: dict[str, AcceptedRoles] = dict.fromkeys(map(str, range(job.cluster.host_count)), "all")
    return list(assign_roles(job.cluster, hosts).values())


def _hosts(job: JobConfig, processes: Sequence[ProcessPlan]) -> Iterable[HostPlan]:
    if not job.cluster.servers:
        yield HostPlan(("process",), processes[0].required_bytes, processes[0].peak_bytes)
        return
    by_name = {process.name: process for process in processes}
    libraries = MemoryItem("shared libraries", SHARED_LIBRARIES_BYTES)
    for roles in role_hosts(job):
        # The command that starts the roles, or the agent of another host, which is as large.
        here = [by_name["train"], *(by_name[role.name] for role in roles)]
        parts = [libraries, *(part for process in here for part in process.parts)]
        yield HostPlan(
            tuple(process.name for process in here), _peak([part for part in parts if part.required]), _peak(parts)
        )


_MAX_HOSTS = 1024


def _on_hosts(job: JobConfig, hosts: int) -> JobConfig:
    cluster = job.cluster.model_copy(update={"hosts": hosts, "servers": max(hosts, job.cluster.servers)})
    return job.model_copy(update={"cluster": cluster})


def format_gib(count: float) -> str:
    """Bytes for a person, in GiB."""
    return f"{count / _GIB:,.1f} GiB"


def _plan_here(inputs: PlanInputs) -> CapacityPlan:
    """The plan, of whose hosts this one stands for all unless each role has one of its own, as large as it needs."""
    plan = plan_capacity(inputs)
    return replace(plan, hosts=plan.hosts[:1]) if inputs.job.cluster.one_role_per_host else plan


def _refusal(job: JobConfig, model: ModelSpec, plan: CapacityPlan, fit: Fit) -> str:
    tables = ", ".join(
        f"{table.name} {table.rows:,} x {table.dim} = {format_gib(table_bytes(job, table))}" for table in model.tables
    )
    needed = sum(table_bytes(job, table) for table in model.tables)
    advice = ", or ".join(fit.advice) or "lower model.dim, train fewer rows, or use more hosts"
    return (
        f"the tables need {format_gib(needed)} with their {job.optimizer.kind} state ({tables}), all processes of a host "
        f"{format_gib(plan.required_bytes)}, but {format_gib(fit.machine.available_bytes)} are free here: {advice}"
    )
