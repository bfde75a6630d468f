"""Counters of a process that holds tables: rows updated, seconds that updates took, bytes held."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from crossfade.base.arrays import FloatArray


@dataclass
class UpdateStats:
    """Counters by table since the process started, written by the updating thread and read by any other.

    ``held_bytes`` maps a table to the bytes of its weights and of each array of optimizer state.
    """

    updated_rows: dict[str, int] = field(default_factory=dict)
    update_seconds: dict[str, float] = field(default_factory=dict)
    held_bytes: dict[str, dict[str, int]] = field(default_factory=dict)

    def add_arrays(self, table: str, arrays: Mapping[str, FloatArray]) -> None:
        """Count ``arrays``, which hold rows of ``table``, as held from now on."""
        held = dict(self.held_bytes.get(table, {}))
        for name, array in arrays.items():
            held[name] = held.get(name, 0) + array.nbytes
        self.held_bytes[table] = held
        self.updated_rows.setdefault(table, 0)
        self.update_seconds.setdefault(table, 0.0)

    @contextmanager
    def timed_update(self, table: str, rows: int) -> Iterator[None]:
        """Count a block that updates ``rows`` rows of ``table``, and its duration."""
        start = time.perf_counter()
        yield
        self.update_seconds[table] += time.perf_counter() - start
        self.updated_rows[table] += rows
