"""Whether a job fits a machine."""

from __future__ import annotations

from pathlib import Path

import psutil

from kvstore.errors import InputError
from kvstore.optimizers import state_bytes_per_row
from kvstore.store import TableSpec
from trainer.job import Job

_CGROUP = Path("/sys/fs/cgroup")
_GIB = 2**30


def table_bytes(job: Job, table: TableSpec) -> int:
    """Bytes of the weights of ``table`` and of its optimizer state."""
    return table.bytes + table.rows * state_bytes_per_row(job.optimizer.kind, table.dim)


def available_bytes() -> int:
    """Memory that this process may still take: the machine's, or its container's limit if that is less."""
    available = int(psutil.virtual_memory().available)
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
    except OSError:
        return available
    return available if limit == "max" else min(available, max(0, int(limit) - used))


def check_fits_this_machine(job: Job, tables: list[TableSpec]) -> None:
    """Refuse a job whose tables, all held on this machine, need more memory than it has free.

    Raises:
        InputError: with what each table needs.
    """
    needed = sum(table_bytes(job, table) for table in tables)
    available = available_bytes()
    if needed > available:
        parts = ", ".join(
            f"{table.name} {table.rows:,} x {table.dim} = {table_bytes(job, table) / _GIB:,.1f} GiB" for table in tables
        )
        raise InputError(
            f"the tables need {needed / _GIB:,.1f} GiB with their {job.optimizer.kind} state ({parts}), but "
            f"{available / _GIB:,.1f} GiB are free here: lower model.dim, or set optimizer.kind to rowwise_adagrad"
        )
