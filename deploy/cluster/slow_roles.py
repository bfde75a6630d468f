"""Find roles that take longer than the others of their kind for the same work, by the load that roles report.

    slow_roles = SlowRoles(window_seconds=60.0)
    slow_roles.record("worker-1", load, now)       # each report: counters of work, and of the seconds that it took
    slow_roles.compare(now)                        # ["worker-1"]: slow now, and not before
    slow_roles.ratios, slow_roles.slow()           # {"worker-0": 1.0, "worker-1": 4.2}, {"worker-1": since}

A worker's own work is what it does without servers and other workers; a server's is updating rows. A slow network is
not found: in synchronous steps, all workers wait equally long for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from crossfade.trainer.monitoring.thresholds import LOCAL_PHASES, MAX_ROLE_SLOWDOWN, MIN_SLOWDOWN_COST

WINDOW_SECONDS = 60.0
"""Time over which roles are compared."""
_COMPARE_SECONDS = 1.0

_Count = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class _Updates(BaseModel):
    updated: _Count
    seconds: _Count


class _ServerLoad(BaseModel):
    updates: dict[str, _Updates]


class _WorkerLoad(BaseModel):
    steps: _Count
    examples: _Count
    phase_seconds: dict[str, _Count]


@dataclass(frozen=True)
class _Sample:
    """Counters at a time: the seconds of a role's own work, and how much it was in each of its measures."""

    time: float
    seconds: float
    work: tuple[float, ...]


class SlowRoles:
    """Compares the roles of one generation."""

    def __init__(self, window_seconds: float = WINDOW_SECONDS) -> None:
        """Compare the roles over the last ``window_seconds``."""
        self.ratios: dict[str, float] = {}
        """How many times as long as the median of the others of its kind each role takes for the same work.

        It is the least of those by each measure of work, since a worker that has more examples than others, or none of
        the fixed costs of a step, is not slow. It is 1 if the difference costs a small part of the time.
        """
        self._window_seconds = window_seconds
        self._samples: dict[str, deque[_Sample]] = {}
        self._since: dict[str, float] = {}
        self._compared_at = float("-inf")

    def record(self, role: str, load: Mapping[str, Any], now: float) -> None:
        """Add the report ``load`` of ``role``."""
        sample = _measure(role, load, now)
        if sample is None:
            return
        samples = self._samples.setdefault(role, deque())
        samples.append(sample)
        while len(samples) > 2 and samples[1].time <= now - self._window_seconds:
            samples.popleft()

    def compare(self, now: float) -> list[str]:
        """Compare all roles, at most once a second; return those that are slow now and were not before."""
        if now - self._compared_at < _COMPARE_SECONDS:
            return []
        self._compared_at = now
        spent = {role: _spent(samples) for role, samples in self._samples.items()}
        compared = {role: each for role, each in spent.items() if each.time > 0.0 and all(each.work)}
        self.ratios = {}
        for kind in ("server", "worker"):
            self.ratios |= _ratios({role: each for role, each in compared.items() if role.startswith(kind)})
        slow = {
            role
            for role, ratio in self.ratios.items()
            if ratio > MAX_ROLE_SLOWDOWN and spent[role].time >= self._window_seconds
        }
        found = sorted(slow - self._since.keys())
        self._since = {role: self._since.get(role, now) for role in slow}
        return found

    def slow(self) -> dict[str, float]:
        """Return the slow roles, each with the time since when it is."""
        return self._since


def _ratios(spent: Mapping[str, _Sample]) -> dict[str, float]:
    """Return the ratio of each of these roles, which are of one kind; none if there is only one."""
    if len(spent) < 2:
        return {}
    ratios = dict.fromkeys(spent, float("inf"))
    for measure in range(len(next(iter(spent.values())).work)):
        costs = sorted((each.seconds / each.work[measure], role) for role, each in spent.items())
        sorted_costs = [cost for cost, _ in costs]
        for position, (cost, role) in enumerate(costs):
            expected, found = _median_without(position, sorted_costs), spent[role]
            excess = found.seconds - expected * found.work[measure]
            is_small = expected <= 0.0 or excess < MIN_SLOWDOWN_COST * found.time
            ratios[role] = min(ratios[role], 1.0 if is_small else cost / expected)
    return ratios


def _median_without(position: int, sorted_costs: list[float]) -> float:
    """Return the median of ``sorted_costs`` except that at ``position``."""
    middle = [index + (index >= position) for index in ((len(sorted_costs) - 2) // 2, (len(sorted_costs) - 1) // 2)]
    return (sorted_costs[middle[0]] + sorted_costs[middle[1]]) / 2


def _spent(samples: deque[_Sample]) -> _Sample:
    """Return the differences between the newest and the oldest of ``samples``."""
    first, last = samples[0], samples[-1]
    work = tuple(end - begin for begin, end in zip(first.work, last.work, strict=True))
    return _Sample(last.time - first.time, last.seconds - first.seconds, work)


def _measure(role: str, load: Mapping[str, Any], now: float) -> _Sample | None:
    """Return the counters in ``load``; None if it has none yet, as before all roles have joined."""
    try:
        if role.startswith("worker"):
            worker = _WorkerLoad.model_validate(load)
            seconds = sum(worker.phase_seconds.get(phase, 0.0) for phase in LOCAL_PHASES)
            return _Sample(now, seconds, (worker.steps, worker.examples))
        server = _ServerLoad.model_validate(load)
    except ValidationError:
        return None
    updates = server.updates.values()
    return _Sample(now, sum(each.seconds for each in updates), (sum(each.updated for each in updates),))
