"""Memory of this machine, or of the container (cgroup v2) that this process runs in."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """A kind of host, and the memory of it that a job may use."""

    name: str
    available_bytes: int


def this_machine() -> Machine:
    """Return this machine, with the memory that is available now."""
    return Machine("this machine", available_bytes())


def available_bytes() -> int:
    """Return the memory that this process can still allocate: the machine's, or its container's if that is less."""
    available = int(psutil.virtual_memory().available)
    limit = _container_limit()
    if limit is None:
        return available
    used = int((_CGROUP / "memory.current").read_text(encoding="ascii")) - _reclaimable_bytes()
    return min(available, max(0, limit - used))


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def limit_bytes() -> int:
    """Return the memory of this machine, or its container's limit if that is less."""
    total = int(psutil.virtual_memory().total)
    return min(total, _container_limit() or total)


def _container_limit() -> int | None:
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return None if limit == "max" else int(limit)


def _reclaimable_bytes() -> int:
    """Return the part of a container's memory that caches files not read recently, which the kernel frees on demand."""
    lines = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
