"""The latest figures of each process of a run, and their table, defined once for the page and for 'crossfade status'.

cells = [column.text(process) for process in process_rows(run, live=True) for column in COLUMNS]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from crossfade.base.formatting import count, share, size
from crossfade.deploy.dashboard.history import RATE_SECONDS
from crossfade.deploy.dashboard.run_reader import RunReader, StateFile
from crossfade.kvstore.store import VALUE_BYTES

STATE_TITLE = "State"
"""The column that the page shows as a badge."""
TEXT_COLUMNS = 3
"""The first columns hold words and are aligned to the left; the others hold numbers."""


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
    load, held = process.load, process.load.get("held_bytes") or {}
    # Of a run that has ended, means over its lifetime.
    rates = run.processes.rates(name, state.time, load, over=RATE_SECONDS if live else math.inf)
    row = ProcessRow(
        name,
        process.state if live else "done" if state.state == "done" else "ended",
        process.host,
        process.metrics,
        load.get("resident_bytes"),
        load.get("memory_limit_bytes"),
        load.get("memory_available_bytes"),
        rates.get("cpu"),
        examples_per_second=rates.get("examples") if "examples" in load else None,
    )
    if held:  # it holds table shards
        row.held_bytes = sum(sum(arrays.values()) for arrays in held.values())
        row.updated = sum(update["updated"] for update in load.get("updates", {}).values())
        row.updated_per_second, row.update_share = rates.get("updated"), rates.get("update_share")
        dim = run.setting("model", "dim")
        if isinstance(dim, int) and dim > 0:
            row.rows = sum(arrays.get("weights", 0) for arrays in held.values()) // (dim * VALUE_BYTES)
    return row


@dataclass(frozen=True)
class Column:
    """One column: its title, and how it formats the value of a process."""

    title: str
    text: Callable[[ProcessRow], str]
    in_terminal: bool = True
    """Whether 'crossfade status' shows it too; a terminal has no room for all columns."""


COLUMNS = (
    Column("Process", lambda process: process.name),
    Column(STATE_TITLE, lambda process: process.state.replace("_", " ")),
    Column("Host", lambda process: process.host or ""),
    Column("Rows", lambda process: count(process.rows)),
    Column("Table size", lambda process: size(process.held_bytes), in_terminal=False),
    Column("Rows/s", lambda process: count(process.updated_per_second)),
    Column("Update time", lambda process: share(process.update_share)),
    Column("Memory", lambda process: size(process.resident_bytes)),
    Column("Free memory", lambda process: size(process.memory_available_bytes), in_terminal=False),
    Column("CPU", lambda process: share(process.cpu)),
    Column("Examples/s", lambda process: count(process.examples_per_second)),
)
TERMINAL_COLUMNS = tuple(column for column in COLUMNS if column.in_terminal)
