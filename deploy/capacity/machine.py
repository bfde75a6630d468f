"""TODO-DOC split from deploy/capacity/plan.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """A kind of host, and the memory that a job may take of it."""

    name: str
    available_bytes: int


def available_bytes() -> int:
    """Memory that this process may still take: the machine's, or its container's limit if that is less."""
    available = int(psutil.virtual_memory().available)
    limit = _container_limit()
    if limit is None:
        return available
    used = int((_CGROUP / "memory.current").read_text(encoding="ascii")) - _reclaimable_bytes()
    return min(available, max(0, limit - used))


def limit_bytes() -> int:
    """Memory of this machine, or its container's limit if that is less."""
    total = int(psutil.virtual_memory().total)
    return min(total, _container_limit() or total)


def _container_limit() -> int | None:
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return None if limit == "max" else int(limit)


def _reclaimable_bytes() -> int:
    """What of a container's memory caches files that nobody has read lately: the kernel takes it back when it must."""
    lines = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)


def this_machine() -> Machine:
    """This one, with the memory that is free now."""
    return Machine("this machine", available_bytes())
