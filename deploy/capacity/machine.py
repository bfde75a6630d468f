"""Memory of this machine, or of the container or batch job (cgroups of version 1 or 2) that this process runs in."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_OF_THIS_PROCESS = Path("/proc/self/cgroup")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file ")
"""Files of a cgroup with its limit and its use, and how the line of ``memory.stat`` begins that has the part of its use
which caches files not read recently. The kernel frees that part on demand."""


@dataclass(frozen=True)
class Machine:
    """A kind of host, and the memory of it that a job may use."""

    name: str
    available_bytes: int


def this_machine() -> Machine:
    """Return this machine, with the memory that is available now."""
    return Machine("this machine", available_bytes())


def available_bytes() -> int:
    """Return the memory that this process can still allocate: the machine's, or that of a cgroup if that is less."""
    available = int(psutil.virtual_memory().available)
    return max(0, min([available, *(limit - used for limit, used in cgroup_memory())]))


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def limit_bytes() -> int:
    """Return the memory of this machine, or the limit of a cgroup if that is less."""
    total = int(psutil.virtual_memory().total)
    return min([total, *(limit for limit, _ in cgroup_memory())])


def cgroup_memory(membership: Path = _OF_THIS_PROCESS, cgroups: Path = _CGROUPS) -> Iterator[tuple[int, int]]:
    """Yield the limit and the used bytes of each cgroup in ``membership`` and of those around it, where it has a limit.

    ``cgroups`` is where they are mounted. A container may see its own mounted there, and the host's path to it in
    ``membership``; a batch job may see those of the host.
    """
    lines: list[str] = []
    with suppress(OSError):
        lines = membership.read_text(encoding="utf-8").splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, files = (cgroups / "memory", _VERSION_1) if controllers else (cgroups, _VERSION_2)
        own = Path(path.strip("/"))
        for group in dict.fromkeys((own, *own.parents)):
            with suppress(OSError, ValueError):  # none is mounted there, or it has no limit
                yield _limit_and_use(top / group, *files)


def _limit_and_use(group: Path, limit: str, used: str, reclaimable: str) -> tuple[int, int]:
    statistics = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    freed = next((int(line.split()[1]) for line in statistics if line.startswith(reclaimable)), 0)
    return int((group / limit).read_text(encoding="ascii")), int((group / used).read_text(encoding="ascii")) - freed
