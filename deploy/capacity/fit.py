"""TODO-DOC split from deploy/capacity/plan.py."""

from __future__ import annotations

from collections.abc import Iterable

from deploy.capacity.machine import Machine, this_machine
from deploy.capacity.memory import PlanInputs
from deploy.capacity.plan import (
    _MAX_HOSTS,
    CapacityPlan,
    Fit,
    Verdict,
    _on_hosts,
    _plan_here,
    _refusal,
    format_gib,
    plan_capacity,
)
from kvstore.errors import InputError
from trainer.config.schema import JobConfig


def check_fit(inputs: PlanInputs, plan: CapacityPlan, machine: Machine) -> Fit:
    """Whether ``plan``, made from ``inputs``, fits hosts that are all like ``machine``."""
    verdict = _verdict(plan, machine)
    return Fit(machine, verdict, () if verdict == "fits" else tuple(_advice(inputs, machine)))


def _verdict(plan: CapacityPlan, machine: Machine) -> Verdict:
    if plan.required_bytes > machine.available_bytes:
        return "does not fit"
    return "tight" if plan.peak_bytes > machine.available_bytes else "fits"


def _advice(inputs: PlanInputs, machine: Machine) -> Iterable[str]:
    """Changes to the job each of which alone would make it fit."""
    job = inputs.job

    def fits(other: JobConfig) -> bool:
        return _verdict(plan_capacity(inputs.of(other)), machine) == "fits"

    dims = [dim for dim in (job.model.dim >> shift for shift in range(1, 16)) if dim >= 4]
    for dim in dims:
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
        yield f"share it out over {hosts} hosts like {machine.name}, a server each (cluster.hosts, cluster.servers)"


def check_fits_this_machine(inputs: PlanInputs) -> str | None:
    """Refuse the job of ``inputs`` if its processes, all held on this machine, need more memory than it has free.

    Returns a warning where the job may turn out to need more.

    Raises:
        InputError: it does not fit; with the figures of ``crossfade plan``.
    """
    job, machine = inputs.job, this_machine()
    fit = check_fit(inputs, plan := _plan_here(inputs), machine)
    if fit.verdict == "does not fit":
        raise InputError(_refusal(job, inputs.model, plan, fit))
    inputs = inputs.with_counts()
    fit = check_fit(inputs, plan := _plan_here(inputs), machine)
    if fit.verdict == "fits":
        return None
    return (
        f"this may take up to {format_gib(plan.peak_bytes)}, but {format_gib(machine.available_bytes)} are free here; "
        f"'crossfade plan' says for what ({' or '.join(fit.advice)})"
    )
