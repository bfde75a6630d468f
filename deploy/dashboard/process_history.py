"""How the processes of a run have fared: what ``processes.jsonl`` says, in columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploy.dashboard.training_history import ColumnBuffer
from trainer.runs.events import LoadSample, TimedEvent, parse_record

RATE_SECONDS = 30.0
_FIGURES = ("time", "pid", "resident_bytes", "cpu_seconds", "updated", "update_seconds", "examples")


def figures(time: float, load: Mapping[str, Any]) -> tuple[float, ...]:
    """What a process told of its load at ``time``, in the order of the columns."""
    updates = load.get("updates", {}).values()
    return (
        time,
        load["pid"],
        load["resident_bytes"],
        load["cpu_seconds"],
        sum(update["updated"] for update in updates),
        sum(update["seconds"] for update in updates),
        load.get("examples", 0),
    )


class ProcessHistory:
    """Takes the events of ``processes.jsonl`` in their order."""

    def __init__(self) -> None:
        """Nothing taken yet."""
        self.samples: dict[str, ColumnBuffer] = {}
        """By process."""
        self.loads: dict[str, dict[str, Any]] = {}
        """What each process has told last."""
        self.events: list[TimedEvent] = []
        """Restarts and the like, and when a command began and how it ended."""
        self.damaged = 0

    def take(self, record: Mapping[str, Any]) -> None:
        """Take one line of the log."""
        try:
            timed = parse_record(record)
            if not isinstance(timed.event, LoadSample):
                self.events.append(timed)
                return
            for name, load in timed.event.processes.items():
                self.samples.setdefault(name, ColumnBuffer(*_FIGURES)).add(*figures(timed.time, load))
                self.loads[name] = load
        except (KeyError, TypeError, ValueError, AttributeError):
            self.damaged += 1

    def rates(self, name: str, now: float, load: Mapping[str, Any], *, over: float) -> dict[str, float]:
        """What a process does in a second, by its ``load`` of ``now`` and that of ``over`` seconds before.

        ``cpu`` in cores; ``updated`` in rows; ``update_share``, the part of the time that updating took; ``examples``.
        Where there is nothing to compare with, nothing.
        """
        samples = self.samples.get(name)
        if samples is None or not load:
            return {}
        time_N, pid_N = samples["time"], samples["pid"]
        usable = ((pid_N == load["pid"]) & (time_N >= now - over) & (time_N < now - 0.5)).nonzero()[0]
        if not len(usable):
            return {}
        first, last = int(usable[0]), dict(zip(_FIGURES, figures(now, load), strict=True))
        passed = now - time_N[first]
        moved = {figure: (last[figure] - samples[figure][first]) / passed for figure in _FIGURES[3:]}
        return {
            "cpu": moved["cpu_seconds"],
            "updated": moved["updated"],
            "update_share": moved["update_seconds"],
            "examples": moved["examples"],
        }
