"""The history of a run's processes, built from the events of ``processes.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crossfade.deploy.dashboard.column_buffer import ColumnBuffer
from crossfade.deploy.dashboard.process_load import check_load
from crossfade.trainer.runs.events import LoadSample, TimedEvent, parse_record

RATE_SECONDS = 30.0
"""Rates of live runs are means over this time."""
_MIN_RATE_SECONDS = 0.5
_COLUMNS = ("time", "pid", "resident_bytes", "cpu_seconds", "updated", "update_seconds", "examples")
_COUNTERS = _COLUMNS[3:]


def load_columns(time: float, load: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the load that a process reported at the Unix time ``time``, in the order of the columns."""
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
    """Collects the events of ``processes.jsonl`` in their order."""

    def __init__(self) -> None:
        """Begin without events."""
        self.samples: dict[str, ColumnBuffer] = {}
        """The loads over time, by process."""
        self.loads: dict[str, dict[str, Any]] = {}
        """The latest load of each process."""
        self.events: list[TimedEvent] = []
        """All other events: restarts, and when commands started and ended."""
        self.invalid_records = 0
        """Records that are not valid events; they are skipped."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one line of the log; count it if it is not a valid event."""
        try:
            timed = parse_record(record)
            if not isinstance(timed.event, LoadSample):
                self.events.append(timed)
                return
            for load in timed.event.processes.values():
                check_load(load)
            for name, load in timed.event.processes.items():
                self.samples.setdefault(name, ColumnBuffer(*_COLUMNS)).add(*load_columns(timed.time, load))
                self.loads[name] = load
        except (KeyError, ValueError):
            self.invalid_records += 1

    def rates(self, name: str, now: float, load: Mapping[str, Any], *, over: float) -> dict[str, float]:
        """Return rates of a process, from its ``load`` at ``now`` and its sample ``over`` seconds before.

        Returns:
            ``cpu`` in cores, ``updated`` in rows per second, ``update_share`` as the share of time that updates took,
            ``examples`` per second. Empty if there is no earlier sample of the same process.
        """
        samples = self.samples.get(name)
        if samples is None or not load:
            return {}
        time_N, pid_N = samples["time"], samples["pid"]
        is_usable_N = (pid_N == load["pid"]) & (time_N >= now - over) & (time_N < now - _MIN_RATE_SECONDS)
        usable_lines = is_usable_N.nonzero()[0]
        if not len(usable_lines):
            return {}
        first, last = int(usable_lines[0]), dict(zip(_COLUMNS, load_columns(now, load), strict=True))
        seconds = now - time_N[first]
        rates = {counter: (last[counter] - samples[counter][first]) / seconds for counter in _COUNTERS}
        return {
            "cpu": rates["cpu_seconds"],
            "updated": rates["updated"],
            "update_share": rates["update_seconds"],
            "examples": rates["examples"],
        }
