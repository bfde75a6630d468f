"""The comparison of roles, by the load that they report."""

from typing import Any

import pytest
from metric_groups import TABLES, make_job, step

from crossfade.deploy.cluster.slow_roles import SlowRoles
from crossfade.kvstore.stats import UpdateStats
from crossfade.trainer.monitoring.registry import TableMetrics
from crossfade.trainer.training.state import TrainState
from crossfade.trainer.training.worker_metrics import TrainingMetrics

WINDOW = 60.0


def worker(now: float, *, step_seconds: float, steps_per_second: float = 1.0, examples: int = 100) -> dict[str, Any]:
    """Return the load of a worker after ``now`` seconds."""
    steps = now * steps_per_second
    phases = {"data": 0.1, "sample": 0.3, "gradients": 0.6}
    seconds = {phase: share * step_seconds * steps for phase, share in phases.items()}
    # The time that it waits for others does not count as its work.
    return {"steps": steps, "examples": examples * steps, "phase_seconds": {**seconds, "pull": now, "push": now}}


def server(now: float, *, row_seconds: float, rows_per_second: float = 1000.0) -> dict[str, Any]:
    rows = now * rows_per_second
    tables = {"customer": 0.25, "track": 0.75}
    return {"updates": {name: {"updated": s * rows, "seconds": s * rows * row_seconds} for name, s in tables.items()}}


def compared(loads: Any, seconds: float = WINDOW + 2) -> SlowRoles:
    """Return the comparison after reports every two seconds; ``loads`` gives those of a time, by role."""
    slow_roles = SlowRoles(WINDOW)
    now = 0.0
    while now <= seconds:
        for role, load in loads(now).items():
            slow_roles.record(role, load, now)
        slow_roles.compare(now)
        now += 2.0
    return slow_roles


def test_slow_worker_and_server_are_found_among_others() -> None:
    slow_roles = compared(
        lambda now: {
            "scheduler": {"pid": 1},
            "worker-0": worker(now, step_seconds=0.2),
            "worker-1": worker(now, step_seconds=0.8),
            "worker-2": worker(now, step_seconds=0.3),
            "server-0": server(now, row_seconds=6e-4),
            "server-1": server(now, row_seconds=2e-4),
        }
    )
    assert sorted(slow_roles.slow()) == ["server-0", "worker-1"]
    assert slow_roles.ratios == pytest.approx(
        {"worker-0": 1.0, "worker-1": 0.8 / 0.25, "worker-2": 1.0, "server-0": 3.0, "server-1": 1.0}
    )


def test_roles_are_compared_over_a_whole_window_only() -> None:
    def loads(now: float) -> dict[str, Any]:
        return {"worker-0": worker(now, step_seconds=0.2), "worker-1": worker(now, step_seconds=0.8)}

    early = compared(loads, WINDOW - 2)
    assert (early.slow(), early.ratios["worker-1"]) == ({}, pytest.approx(4.0))
    assert compared(loads, WINDOW).slow() == {"worker-1": WINDOW}
    assert compared(loads, 2 * WINDOW).slow() == {"worker-1": WINDOW}


def test_recovered_role_is_slow_no_more() -> None:
    def loads(now: float) -> dict[str, Any]:
        slow = worker(now, step_seconds=0.2)
        slow["phase_seconds"]["gradients"] += 0.6 * min(now, WINDOW)
        return {"worker-0": worker(now, step_seconds=0.2), "worker-1": slow}

    assert compared(loads, WINDOW).slow().keys() == {"worker-1"}
    assert compared(loads, 2 * WINDOW).slow() == {}


@pytest.mark.parametrize(
    "other",
    [
        # It has four times as many examples, which take four times as long.
        lambda now: worker(now, step_seconds=0.8, examples=400),
        # It has few examples, and the fixed costs of a step.
        lambda now: worker(now, step_seconds=0.2, examples=10),
        # It takes three times as long for work that hardly matters.
        lambda now: worker(now, step_seconds=0.2 + 0.05),
        lambda now: worker(now, step_seconds=0.0, steps_per_second=0.0),
        lambda now: {"steps": "many", "phase_seconds": None},
        lambda now: {},
    ],
)
def test_worker_with_more_work_or_unknown_load_is_not_slow(other: Any) -> None:
    assert compared(lambda now: {"worker-0": worker(now, step_seconds=0.2), "worker-1": other(now)}).slow() == {}


def test_small_differences_and_single_roles_are_not_compared() -> None:
    idle = compared(
        lambda now: {
            "server-0": server(now, row_seconds=1e-6),
            "server-1": server(now, row_seconds=9e-6),
            "worker-0": worker(now, step_seconds=0.9),
        }
    )
    assert (idle.slow(), idle.ratios) == ({}, {"server-0": 1.0, "server-1": 1.0})


def test_stalled_roles_are_not_compared() -> None:
    def loads(now: float) -> dict[str, Any]:
        slow = worker(min(now, WINDOW), step_seconds=0.8)
        return {"worker-0": worker(min(now, WINDOW), step_seconds=0.2), "worker-1": slow}

    assert compared(loads, 2 * WINDOW + 4).slow() == {}


def test_reports_of_real_workers_and_servers_are_compared() -> None:
    slow_roles = SlowRoles(WINDOW)
    for rank in range(2):
        worker_metrics, state = TrainingMetrics(make_job(), TABLES, rank=rank), TrainState()
        worker_metrics.attach(state)
        stats = UpdateStats({"track": 0}, {"track": 0.0})
        for now in (0.0, WINDOW):
            slow_roles.record(f"worker-{rank}", worker_metrics.snapshot(), now)
            slow_roles.record(f"server-{rank}", TableMetrics(stats).snapshot(), now)
            state.seconds_by_phase["gradients"] += 10.0 + 20.0 * rank
            worker_metrics.observe(step())
            stats.update_seconds["track"], stats.updated_rows["track"] = 50.0 - 30.0 * rank, 100
    slow_roles.compare(WINDOW)
    assert slow_roles.ratios == pytest.approx({"worker-0": 1.0, "worker-1": 3.0, "server-0": 2.5, "server-1": 1.0})
