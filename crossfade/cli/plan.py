"""``crossfade plan``: predict the memory and traffic of a job's processes, and whether they fit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from crossfade.base.options import option
from crossfade.base.text import counted
from crossfade.cli.command import as_command
from crossfade.deploy.schedulers.options import PlanOptions
from crossfade.terminal import align, print_lines

if TYPE_CHECKING:
    from crossfade.deploy.aws.instance_types import InstanceType
    from crossfade.deploy.capacity.plan import CapacityPlan, Fit
    from crossfade.deploy.capacity.plan_inputs import PlanInputs
    from crossfade.deploy.capacity.prediction import Network, Prediction, StepTime
    from crossfade.deploy.capacity.process_memory import ProcessPlan
    from crossfade.deploy.capacity.traffic import StepTraffic

_DESCRIPTION = """\
Predict memory and network traffic of a job, whether it fits this machine or an EC2 type, and what all stages take.

The stages are prepare, train, evaluate, index, and recommend, each with its time, memory, and price.

Nothing is started; the vocabularies of the dataset are read once. 'crossfade train' rejects a job that cannot fit, with
the same figures. For a dataset that does not exist yet, give its size. With --to, the files that run the job on Slurm
or Kubernetes are written, with requests for that much memory, instead of the plan.
"""
_EXAMPLES = (
    ("crossfade plan jobs/lastfm.yaml --servers 2 --workers 2", "Plan for this machine, with servers."),
    (
        "crossfade plan jobs/lastfm.yaml --set cluster.store=sharded --workers 4",
        "Plan for workers that hold tables.",
    ),
    ("crossfade plan jobs/billions.yaml --instance-type r6i.xlarge --hosts 2", "Plan for two EC2 instances."),
    ("crossfade plan jobs/billions.yaml --hosts 2 --bandwidth 10Gbit", "Predict the time of a step on a network."),
    ("crossfade plan jobs/plays.yaml --queries 5e7 --items 1e7 --interactions 1e10", "Plan for a dataset to come."),
    ("crossfade plan jobs/lastfm.yaml --set model.dim=256 --json", "Print the plan as JSON."),
    (
        "crossfade plan jobs/lastfm.yaml --hosts 2 --servers 2 --workers 2 --to slurm --out slurm",
        "Write a batch script.",
    ),
    (
        "crossfade plan jobs/lastfm.yaml --servers 2 --workers 4 --to kubernetes --data s3://music/lastfm --out k8s",
        "Write manifests for seven pods.",
    ),
)
_NOTES = """\
Tables, optimizer state and the keys of servers are exact. Other memory of a process is computed from the job, plus
what idle processes were measured to use. "At most" includes what depends on the course of training: the held-out items
that an evaluation gathers, and the rows that training changes while a checkpoint of them is being written.

Rows per step are an expectation, from the counts of rows in train and the sampling of negatives, for shuffled data. If
the vocabulary has no counts, or the dataset does not exist yet, they are an upper bound, and marked so. Seconds on the
wire are those of the busiest network card: requests, answers and pushes follow one another, and none overlaps with
computing. All hosts count as equal. The time of a step adds what the slowest worker and the busiest server compute, or
the slowest worker alone where the workers hold the tables, from costs that were measured on one machine
(docs/capacity.md); it is a guide, within about a third. It is not predicted for engines mxnet and torch, nor is the
memory of a GPU.

The stages are those of the whole work, from raw events to lists for all, each predicted likewise: by core seconds that
were measured on one machine, and by what each holds. Recommendations and evaluations are divided among the hosts in
shards; exact recommendations grow with customers times items, and an index takes their place where that is too much.
An hour of an instance costs what AWS asks in us-east-1; storage, transfer, and disks are left out.

--to: docs/schedulers.md. A host requests what it needs at most, a tenth more, and 256 MiB.

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
    from crossfade.deploy.capacity.prediction import check_hosts, predict
    from crossfade.display import progress_bars

    if options.to is not None:
        from crossfade.deploy.schedulers.scheduler_files import write_files

        with progress_bars() as bars:
            # The job as it is: other machines run it, with packages of their own.
            lines = list(write_files(options, check_hosts(options.load_job()), bars))
        print_lines(lines)
        return 0
    with progress_bars() as bars:
        prediction = predict(options, bars)
    if options.json_:
        print(json.dumps(prediction.to_json(), indent=1))
    else:
        print_lines(_report(prediction))
    return int(prediction.fit.verdict == "does not fit")


def _report(prediction: Prediction) -> Iterator[str]:
    inputs, plan, instance, time = prediction.inputs, prediction.plan, prediction.instance, prediction.time
    cluster = inputs.job.cluster
    hosts = "one host" if cluster.host_count == 1 else f"{cluster.host_count} hosts"
    servers, workers = counted(cluster.servers, "server"), counted(cluster.workers, "worker")
    roles = f"{workers}, which hold the tables" if cluster.workers_hold_tables else f"{servers}, {workers}"
    yield f"{inputs.job.name}: {f'{roles}, {hosts}' if cluster.is_distributed else 'in process'}"
    yield ""
    yield from _tables(inputs, plan)
    yield ""
    yield from _memory(plan)
    yield ""
    if plan.traffic is not None:
        yield from _step(inputs, plan, plan.traffic)
        if prediction.network is not None:
            yield from _wire(prediction.network, instance)
        if time is not None:
            yield (
                f"time: about {time.step_seconds * 1e3:,.3g} ms a step and {_duration(time.epoch_seconds)} an epoch, "
                f"{time.examples_per_second:,.0f} examples/s, with {time.cores} cores a host; " + _evaluation(time)
            )
        yield ""
    if prediction.stages:
        yield from _stages(prediction)
        yield ""
    yield from _verdict(plan, prediction.fit, instance)


def _stages(prediction: Prediction) -> Iterator[str]:
    hosts, price = prediction.hosts, prediction.hosts.price
    head = ("STAGE", "", "hosts", "time", "memory of each", *([] if price is None else ["US dollars"]))
    rows: list[Sequence[str]] = [head]
    for stage in prediction.stages:
        dollars = [] if price is None else [f"{hosts.dollars(stage.seconds, stage.hosts):,.2f}"]
        rows.append((stage.name, stage.what, f"{stage.hosts}", _rough(stage.seconds), size(stage.bytes), *dollars))
    if price is not None:
        total = sum(hosts.dollars(stage.seconds, stage.hosts) for stage in prediction.stages)
        seconds = sum(stage.seconds for stage in prediction.stages)
        rows.append(("all", f"at {price:,.3f} US dollars an hour of a host", "", _rough(seconds), "", f"{total:,.2f}"))
    yield from align(rows, left=2)


def _rough(seconds: float) -> str:
    """Format the duration of a stage, of which the start of a process is no part."""
    return _duration(seconds) if seconds >= 1 else "< 1 s"


def _evaluation(time: StepTime) -> str:
    if not time.evaluated_queries:
        return "no evaluation is counted"
    queries = counted(time.evaluated_queries, "query", "queries")
    return f"an evaluation, of {queries} at most, {_duration(time.evaluation_seconds)}"


def _tables(inputs: PlanInputs, plan: CapacityPlan) -> Iterator[str]:
    head = ("TABLE", "rows", "columns", "weights", inputs.job.optimizer.kind, "keys", "rows a key", "bytes a key")
    rows: list[Sequence[str]] = [head]
    for table in plan.tables:
        keys = (f"{table.keys:,}", f"{table.key_rows:,}", size(table.key_bytes)) if table.keys else ("-", "-", "-")
        sizes = size(table.weights_bytes), size(table.state_bytes)
        rows.append((table.name, f"{table.rows:,}", f"{table.dim}", *sizes, *keys))
    yield from align(rows)


def _memory(plan: CapacityPlan) -> Iterator[str]:
    rows = [("MEMORY", "", "")]
    for _, alike in groupby(plan.processes, key=lambda process: process.parts):
        processes = list(alike)
        process = processes[0]
        rows.append(
            (_name(processes), size(process.required_bytes), _at_most(process.required_bytes, process.peak_bytes))
        )
        if len(process.parts) > 1:
            for part in process.parts:
                when = {"start": "at the start", "steps": "in steps"}.get(part.phase, "")
                when = when or {"evaluation": "in evaluations", "checkpoint": "in checkpoints"}.get(part.phase, "")
                rows.append((f"  {part.what}", size(part.bytes), when if part.required else f"{when} at most".strip()))
    for number, host in enumerate(plan.hosts):
        if len(host.processes) > 1:
            called = "all of it together" if len(plan.hosts) == 1 else f"host {number}: {', '.join(host.processes)}"
            libraries = f"with shared libraries{_at_most(host.required_bytes, host.peak_bytes, ', ')}"
            rows.append((called, size(host.required_bytes), libraries))
    yield from _three_columns(rows)


def _name(processes: Sequence[ProcessPlan]) -> str:
    if len(processes) == 1:
        return processes[0].name
    return f"{processes[0].name} to {processes[-1].name.rpartition('-')[2]}, each"


def _at_most(required: int, peak: int, before: str = "") -> str:
    return f"{before}at most {size(peak)}" if peak > required else ""


def _step(inputs: PlanInputs, plan: CapacityPlan, traffic: StepTraffic) -> Iterator[str]:
    kind = "at most: how often each row occurs is unknown" if traffic.bound else "expected, all workers together"
    rows = [(f"A STEP ({kind})", "", "")]
    rows.append(("examples", f"{traffic.examples:,.0f}", ""))
    for table in traffic.tables:
        rows.append((f"rows of {table.table}", f"{sum(table.rows):,.0f}", "at most" if table.bound else ""))
    busiest = max(traffic.rows) / sum(traffic.rows)
    for moved, count in (("pulled", traffic.bytes_pulled), ("pushed", traffic.bytes_pushed)):
        rows.append((f"bytes {moved}", size(count), f"{size(count * busiest)} the busiest" if busiest < 1 else ""))
    times = f"{traffic.dense_equivalent_bytes_pushed / max(1.0, traffic.bytes_pushed):,.0f} x as many"
    rows.append(("bytes pushed, if dense", size(traffic.dense_equivalent_bytes_pushed), times))
    if traffic.bytes_all_reduced:
        rows.append(("bytes summed", size(traffic.bytes_all_reduced), "gradients of dense layers, by each worker"))
    if servers := inputs.job.cluster.servers:
        # Modulo sharding: each server has as many popular rows as the others.
        values, requests = traffic.wire(sum(traffic.rows) / servers)
        received = values * traffic.pushed_share + requests
        rows.append(("each server receives", size(received), "pushes and requests, on the wire"))
        rows.append(("each server sends", size(values), "answers, on the wire"))
        keys = sum(table.keys for table in plan.tables if table.name not in inputs.model.frozen)
        rows.append(("keys pushed by each worker", f"{keys:,}", ""))
    yield from _three_columns(rows)


def _wire(network: Network, instance: InstanceType | None) -> Iterator[str]:
    busiest = f"{size(network.busiest_bytes)} through the busiest network card"
    if network.own_hosts:
        yield "on the wire: nothing, since all roles are on one host and use its loopback"
        busiest = f"with a host for each role: {busiest}"
    if network.bits_per_second is None or network.seconds is None:
        missing = f"; no figure is published for {instance.name}" if instance else ""
        yield f"on the wire: {busiest}; name a --bandwidth for the seconds{missing}"
        return
    rate = f"{network.bits_per_second / 1e9:,.3g} Gbit/s"
    peak = instance.peak_gbit if instance else None
    if instance and instance.bits_per_second == network.bits_per_second and peak:
        rate += " lasting" if instance.baseline_gbit else " at best"
        if instance.baseline_gbit and peak > instance.baseline_gbit:
            rate += f", {peak:g} for a while"
    yield f"on the wire: {busiest}, {network.seconds * 1e3:,.3g} ms a step at {rate}"


def _verdict(plan: CapacityPlan, fit: Fit, instance: InstanceType | None) -> Iterator[str]:
    host = "the fullest host" if len(plan.hosts) > 1 else "it"
    memory = (
        f"{size(fit.machine.available_bytes)} of {instance.memory_gib:g} GiB are left by Linux on {instance.name}"
        if instance
        else f"{size(fit.machine.available_bytes)} are free on this machine"
    )
    needs = f"{host} needs {size(plan.required_bytes)}{_at_most(plan.required_bytes, plan.peak_bytes, ', ')}; {memory}"
    yield f"{fit.verdict.upper() if fit.verdict != 'tight' else 'MAY NOT FIT'}: {needs}"
    for advice in fit.advice:
        yield f"  it would fit if you {advice}"
    if fit.verdict != "fits" and not fit.advice:
        yield "  no fewer columns, smaller state or number of hosts alone would make it fit"


def _duration(seconds: float) -> str:
    """Format a duration: 9.5 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{seconds:,.2g} s"
    return f"{seconds / 60:,.0f} min" if seconds < 6000 else f"{seconds / 3600:,.3g} h"


def size(count: float) -> str:
    """Format a number of bytes: 1,536 is 1.5 KiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} bytes" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def _three_columns(rows: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """Yield lines of a name, a figure, and a remark."""
    width, figures = (max(len(row[column]) for row in rows) for column in (0, 1))
    yield from (f"{name:<{width}}  {figure:>{figures}}  {remark}".rstrip() for name, figure, remark in rows)
