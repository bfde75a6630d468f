"""Memory of this machine, or of the container or batch job (cgroups of version 2) that this process runs in."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

THREAD_VARIABLES = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
"""The variables with the threads of a process: of a role, or of a server of recommendations."""
_CGROUPS = Path("/sys/fs/cgroup")
_OF_THIS_PROCESS = Path("/proc/self/cgroup")
_RECLAIMABLE = "inactive_file "
"""How the line of ``memory.stat`` begins that has the part of the use of a cgroup which caches files not read recently.
The kernel frees that part on demand."""


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


def thread_variables(processes: int, cores: int) -> dict[str, str]:
    """Return the variables that divide ``cores`` evenly among ``processes``."""
    return dict.fromkeys(THREAD_VARIABLES, str(max(1, cores // processes)))


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
    text = ""
    with suppress(OSError):
        text = membership.read_text(encoding="utf-8")
    own = (Path(line.removeprefix("0::/")) for line in text.splitlines() if line.startswith("0::/"))
    for group in (group for path in own for group in dict.fromkeys((path, *path.parents))):
        with suppress(OSError, ValueError):  # none is mounted there, or it has no limit
            yield _limit_and_use(cgroups / group)


def _limit_and_use(group: Path) -> tuple[int, int]:
    statistics = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    freed = next((int(line.split()[1]) for line in statistics if line.startswith(_RECLAIMABLE)), 0)
    limit, used = ((group / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
    return int(limit), int(used) - freed
