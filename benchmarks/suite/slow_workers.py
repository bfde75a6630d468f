"""Train with workers that have a share of a core each, as if on slow machines, while servers are not limited.

    result = train_on_shares(job, run_dir, servers=2, workers=4, share=0.25, seconds=20)
    result["triples_per_second"], result["worker_cpu_share"]

Then the workers are the bottleneck, and a machine with few cores shows what more workers bring. Without servers, the
workers hold the tables, and one is a process that trains by itself.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from crossfade.deploy.cluster.role_variables import ROLE_VARIABLE
from suite.cpu_quota import CpuGroup, cpu_groups
from suite.processes import Background, MeasurementError, background, wait_while
from suite.training import TIMEOUT_SECONDS, WARM_SECONDS, read_steps, train_command

MIN_STEPS = 3


def train_on_shares(
    job: dict[str, Any], run_dir: Path, *, servers: int, workers: int, share: float, seconds: float
) -> dict[str, Any]:
    """Start the job, limit its workers after the first step, and return its rate over about ``seconds`` from then.

    The job must be longer than that: it is ended. Each worker's share of a core while it is measured, and the share of
    periods in which it used up its quota, say whether the quotas were the limit.

    Raises:
        MeasurementError: CPU cgroups are not available, or the run failed.
    """
    command = train_command(job, run_dir, servers, workers)
    with cpu_groups(workers, share) as groups, background(command, run_dir.with_suffix(".log")) as running:
        wait_while(lambda: not read_steps(run_dir), TIMEOUT_SECONDS, running)
        in_process = not servers and workers == 1
        processes = [psutil.Process(running.process.pid)] if in_process else worker_processes(running.process.pid)
        if len(processes) != workers:
            raise MeasurementError(f"{len(processes)} of {workers} workers are running")
        try:
            for group, process in zip(groups, processes, strict=True):
                group.add(process.pid)
            return _measure(run_dir, processes, groups, seconds, running)
        except (OSError, psutil.Error) as error:
            raise MeasurementError(f"a worker ended or cannot be limited: {error}") from None


def _measure(
    run_dir: Path, workers: list[psutil.Process], groups: list[CpuGroup], seconds: float, running: Background
) -> dict[str, Any]:
    """Measure between two step events: the first after the warm-up, and one that is late enough."""
    limited = time.time()

    def steps() -> list[dict[str, Any]]:
        return [event for event in read_steps(run_dir) if event["time"] >= limited + WARM_SECONDS]

    wait_while(lambda: not steps(), TIMEOUT_SECONDS, running)
    periods, used, begin = [group.periods() for group in groups], _cpu_seconds(workers), time.monotonic()
    first = steps()[0]

    def lasts() -> bool:
        if running.ended():
            raise MeasurementError("the run ended before it was measured")
        last = steps()[-1]
        return bool(last["time"] < first["time"] + seconds or last["step"] < first["step"] + MIN_STEPS)

    wait_while(lasts, TIMEOUT_SECONDS, running)
    elapsed, last = time.monotonic() - begin, steps()[-1]
    taken, step_seconds = last["step"] - first["step"], last["time"] - first["time"]
    phases = {name: (last["seconds"][name] - first["seconds"][name]) / taken for name in last["seconds"]}
    throttled = [group.throttled_share(at) for group, at in zip(groups, periods, strict=True)]
    return {
        "triples_per_second": (last["examples"] - first["examples"]) / step_seconds,
        "step_ms": 1e3 * step_seconds / taken,
        "phases_ms": {name: 1e3 * value for name, value in phases.items()},
        "worker_cpu_share": (_cpu_seconds(workers) - used) / elapsed / len(workers),
        "throttled_share": sum(throttled) / len(throttled),
    }


def worker_processes(pid: int) -> list[psutil.Process]:
    """Return the workers among the processes that ``pid`` started."""
    workers = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):
            if process.environ().get(ROLE_VARIABLE, "").startswith("worker"):
                workers.append(process)
    return workers


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return float(sum(each.user + each.system for each in times))
