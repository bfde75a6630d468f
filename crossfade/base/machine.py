"""Memory of this machine, or of the container or batch job (cgroups of version 2) that this process runs in.

    kills = OomKills.of_this_process()
    ...                                # a child process is killed by SIGKILL
    if kills.have_risen():             # for lack of memory

The kernel sends SIGKILL as anybody does, so the signal does not show why. But it counts these kills for each cgroup,
before it sends the signal, in ``memory.events``.
"""

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


def thread_variables(processes: int, cores: int | None = None) -> dict[str, str]:
    """Return the variables that divide ``cores``, by default the usable ones, evenly among ``processes``."""
    return dict.fromkeys(THREAD_VARIABLES, str(max(1, (cores or usable_cores()) // processes)))


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
    for group in _groups(_membership(membership)):
        with suppress(OSError, ValueError):  # none is mounted there, or it has no limit
            yield _limit_and_use(cgroups / group)


def _membership(path: Path = _OF_THIS_PROCESS) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8")
    return ""


def _groups(membership: str) -> list[Path]:
    """Return the path of the cgroup in ``membership`` and of those around it, the innermost first."""
    own = (Path(line.removeprefix("0::/")) for line in membership.splitlines() if line.startswith("0::/"))
    return [group for path in own for group in dict.fromkeys((path, *path.parents))]


def _limit_and_use(group: Path) -> tuple[int, int]:
    statistics = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    freed = next((int(line.split()[1]) for line in statistics if line.startswith(_RECLAIMABLE)), 0)
    limit, used = ((group / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
    return int(limit), int(used) - freed


_OF_THE_MACHINE = Path("/proc/vmstat")


class OomKills:
    """The count in a file, as it was when this object was created."""

    def __init__(self, source: Path, count: int | None = None) -> None:
        """Read the count in ``source``, or continue with an earlier ``count``."""
        self.source = source
        self.count = _read(source) if count is None else count

    @classmethod
    def of_this_process(cls) -> OomKills:
        """Count those of this process's cgroup, or of the machine if there is none."""
        return cls(find_source(_membership(), _CGROUPS))

    def have_risen(self) -> bool:
        """Return whether the kernel has killed a process since."""
        now = _read(self.source)
        return now is not None and self.count is not None and now > self.count


def is_source(path: Path) -> bool:
    """Return whether ``path`` may be the file of a count, so that reading it is harmless."""
    return path == _OF_THE_MACHINE or (path.is_relative_to(_CGROUPS) and ".." not in path.parts)


def find_source(membership: str, cgroups: Path) -> Path:
    """Return the file with the count of the cgroup in ``membership``, as in /proc/self/cgroup.

    ``cgroups`` is where the cgroups are mounted. The root cgroup has the count of the machine.
    """
    # An ancestor's count includes its descendants, whose memory may not be counted by itself.
    counts = (cgroups / group / "memory.events" for group in _groups(membership))
    return next((path for path in counts if _read(path) is not None), _OF_THE_MACHINE)


def _read(path: Path) -> int | None:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
    except (OSError, ValueError):
        return None
