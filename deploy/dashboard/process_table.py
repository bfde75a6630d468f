"""The table of a run's processes, defined once for the page and for 'crossfade status'.

titles = [column.title for column in COLUMNS]
cells = [column.text(process) for column in COLUMNS]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from crossfade.base.formatting import count, share, size
from crossfade.deploy.dashboard.process_rows import ProcessRow

STATE_TITLE = "State"
"""The column that the page shows as a badge."""


@dataclass(frozen=True)
class Column:
    """One column: its title, and how it formats the value of a process."""

    title: str
    text: Callable[[ProcessRow], str]
    in_terminal: bool = True
    """Whether 'crossfade status' shows it too; a terminal has no room for all columns."""


TEXT_COLUMNS = 3
"""The first columns hold words and are aligned to the left; the others hold numbers."""
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
