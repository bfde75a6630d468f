"""The latest figures of each process of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from crossfade.deploy.dashboard.process_history import RATE_SECONDS
from crossfade.deploy.dashboard.run_reader import RunReader, StateFile
from crossfade.kvstore.store import VALUE_BYTES


@dataclass
class ProcessRow:
    """One process of a run. Figures that are unknown, or that its kind does not have, are None."""

    name: str
    state: str
    host: str | None = None
    metrics: str | None = None
    resident_bytes: int | None = None
    memory_limit_bytes: int | None = None
    memory_available_bytes: int | None = None
    cpu: float | None = None
    """Processor cores in use."""
    rows: int | None = None
    held_bytes: int | None = None
    updated: int | None = None
    updated_per_second: float | None = None
    update_share: float | None = None
    """Share of time that updates take."""
    examples_per_second: float | None = None


def process_rows(run: RunReader, *, live: bool) -> list[ProcessRow]:
    """Return the figures of each process in the state file. Hold the reader's ``lock``."""
    if run.state is None:
        return []
    return [_process_row(run, run.state, name, live=live) for name in run.state.processes]


def _process_row(run: RunReader, state: StateFile, name: str, *, live: bool) -> ProcessRow:
    process = state.processes[name]
    load = process.load
    # Of a run that has ended, means over its lifetime.
    rates = run.processes.rates(name, state.time, load, over=RATE_SECONDS if live else math.inf)
    row = ProcessRow(name, process.state, process.host, process.metrics, cpu=rates.get("cpu"))
    row.resident_bytes = load.get("resident_bytes")
    row.memory_limit_bytes, row.memory_available_bytes = (
        load.get("memory_limit_bytes"),
        load.get("memory_available_bytes"),
    )
    if held := load.get("held_bytes"):
        _add_tables(row, held, load, rates, run.setting("model", "dim"))
    if "examples" in load:
        row.examples_per_second = rates.get("examples")
    if not live:
        row.state = "done" if state.state == "done" else "ended"
    return row


def _add_tables(
    row: ProcessRow, held: dict[str, dict[str, int]], load: dict[str, Any], rates: dict[str, float], dim: Any
) -> None:
    """Add the figures of a process that holds table shards."""
    row.held_bytes = sum(sum(arrays.values()) for arrays in held.values())
    row.updated = sum(update["updated"] for update in load.get("updates", {}).values())
    row.updated_per_second, row.update_share = rates.get("updated"), rates.get("update_share")
    if isinstance(dim, int) and dim > 0:
        row.rows = sum(arrays.get("weights", 0) for arrays in held.values()) // (dim * VALUE_BYTES)
