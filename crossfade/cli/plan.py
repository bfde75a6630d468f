"""``crossfade plan``: print the memory that a job needs, and whether it fits this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

from crossfade.base.options import option
from crossfade.base.text import counted
from crossfade.cli.command import as_command
from crossfade.deploy.schedulers.options import PlanOptions
from crossfade.terminal import align, print_json, print_lines

if TYPE_CHECKING:
    from crossfade.deploy.capacity.plan import CapacityPlan, Fit, HostPlan
    from crossfade.deploy.capacity.process_memory import ProcessPlan
    from crossfade.trainer.config.schema import JobConfig

_DESCRIPTION = """\
Print the memory of a job's tables, processes, and hosts, whether it fits this machine, and what would make it fit.

Nothing is started, and only the manifest of the dataset is read. 'crossfade train' rejects a job that cannot fit, with
the same figures. With --to, the files that run the job on Slurm or Kubernetes are written, with requests for that much
memory, instead of the plan.
"""
_EXAMPLES = (
    ("crossfade plan jobs/lastfm.yaml --servers 2 --workers 2", "Plan for this machine, with servers."),
    ("crossfade plan jobs/billions.yaml --hosts 2 --servers 2", "Plan for two hosts like this machine."),
    (
        "crossfade plan jobs/lastfm.yaml --hosts 2 --servers 2 --workers 2 --to slurm --out slurm",
        "Write a batch script; --to kubernetes writes manifests.",
    ),
)
_NOTES = """\
Tables and their optimizer state are exact; other memory is computed from the job and what idle processes were measured
to use. "At most" includes what depends on the course of training. The memory of a GPU is not planned.

Exit codes: 0 the job fits, or may fit; 1 it does not fit; 2 invalid input.
"""


class PlanCommand(PlanOptions):
    """What to plan, and how to print it."""

    json_: bool = option(False, "print the plan as JSON", group="output")


@as_command("plan", _DESCRIPTION, _EXAMPLES, _NOTES)
def run(options: PlanCommand) -> int:
    """Print the plan of a job, or write the files of a scheduler.

    Raises:
        InputError: the job, an option or the dataset is invalid.
    """
    from crossfade.deploy.capacity.plan import check_hosts, plan_job
    from crossfade.display import progress_bars

    if options.to is not None:
        from crossfade.deploy.schedulers.scheduler_files import write_files

        with progress_bars() as bars:
            # The job as it is: other machines run it, with packages of their own.
            lines = list(write_files(options, check_hosts(options.load_job()), bars))
        print_lines(lines)
        return 0
    with progress_bars() as bars:
        job, plan, fit = plan_job(options.load_job(), bars)
    if options.json_:
        processes = [
            {**asdict(process), "required_bytes": process.required_bytes, "peak_bytes": process.peak_bytes}
            for process in plan.processes
        ]
        print_json({"job": job.name, **asdict(plan), "processes": processes, "fit": asdict(fit)})
    else:
        print_lines(_report(job, plan, fit))
    return int(fit.verdict == "does not fit")


def _report(job: JobConfig, plan: CapacityPlan, fit: Fit) -> Iterator[str]:
    cluster = job.cluster
    hosts = "one host" if cluster.host_count == 1 else f"{cluster.host_count} hosts"
    servers, workers = counted(cluster.servers, "server"), counted(cluster.workers, "worker")
    roles = f"{workers}, which hold the tables" if cluster.workers_hold_tables else f"{servers}, {workers}"
    yield f"{job.name}: {f'{roles}, {hosts}' if cluster.is_distributed else 'in process'}"
    yield ""
    rows: list[Sequence[str]] = [("TABLE", "rows", "columns", "weights", job.optimizer.kind)]
    for table in plan.tables:
        sizes = size(table.weights_bytes), size(table.state_bytes)
        rows.append((table.name, f"{table.rows:,}", f"{table.dim}", *sizes))
    yield from align(rows)
    yield ""
    rows = list(_memory(plan))
    width, figures = (max(len(row[column]) for row in rows) for column in (0, 1))
    yield from (f"{name:<{width}}  {figure:>{figures}}  {remark}".rstrip() for name, figure, remark in rows)
    yield ""
    host = "the fullest host" if len(plan.hosts) > 1 else "it"
    needs = f"{size(plan.required_bytes)}{_at_most(plan, ', ')}"
    verdict = fit.verdict.upper() if fit.verdict != "tight" else "MAY NOT FIT"
    yield f"{verdict}: {host} needs {needs}; {size(fit.machine.available_bytes)} are free on this machine"
    for advice in fit.advice:
        yield f"  it would fit if you {advice}"
    if fit.verdict != "fits" and not fit.advice:
        yield "  no fewer columns, smaller state or number of hosts alone would make it fit"


_PHASES = {"start": "at the start", "steps": "in steps", "evaluation": "in evaluations", "checkpoint": "in checkpoints"}


def _memory(plan: CapacityPlan) -> Iterator[tuple[str, str, str]]:
    """Yield rows of a name, a figure, and a remark: processes that are alike, their parts, and hosts."""
    yield "MEMORY", "", ""
    for _, alike in groupby(plan.processes, key=lambda process: process.parts):
        process, *others = alike
        name = f"{process.name} to {others[-1].name.rpartition('-')[2]}, each" if others else process.name
        yield name, size(process.required_bytes), _at_most(process)
        for part in process.parts if len(process.parts) > 1 else ():
            when = _PHASES.get(part.phase, "")
            yield f"  {part.what}", size(part.bytes), when if part.required else f"{when} at most".strip()
    for number, host in enumerate(plan.hosts):
        if len(host.processes) > 1:
            called = "all of it together" if len(plan.hosts) == 1 else f"host {number}: {', '.join(host.processes)}"
            yield called, size(host.required_bytes), f"with shared libraries{_at_most(host, ', ')}"


def _at_most(planned: CapacityPlan | HostPlan | ProcessPlan, before: str = "") -> str:
    return f"{before}at most {size(planned.peak_bytes)}" if planned.peak_bytes > planned.required_bytes else ""


def size(count: float) -> str:
    """Format a number of bytes: 1,536 is 1.5 KiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} bytes" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"
