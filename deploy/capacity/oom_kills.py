"""Count the processes that the kernel has killed for lack of memory.

    kills = OomKills.of_this_process()
    ...                                # a child process is killed by SIGKILL
    if kills.have_risen():             # for lack of memory

The kernel sends SIGKILL as anybody does, so the signal does not show why. But it counts these kills for each cgroup,
before it sends the signal: in ``memory.events`` (version 2) or ``memory.oom_control`` (version 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OF_THIS_PROCESS = Path("/proc/self/cgroup")
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
        try:
            membership = _OF_THIS_PROCESS.read_text(encoding="utf-8")
        except OSError:
            membership = ""
        return cls(find_source(membership, _CGROUPS))

    def have_risen(self) -> bool:
        """Return whether the kernel has killed a process since."""
        now = _read(self.source)
        return now is not None and self.count is not None and now > self.count


def is_source(path: Path) -> bool:
    """Return whether ``path`` may be the file of a count, so that reading it is harmless."""
    return path == _OF_THE_MACHINE or (path.is_relative_to(_CGROUPS) and ".." not in path.parts)


def find_source(membership: str, cgroups: Path) -> Path:
    """Return the file with the count of the cgroup in ``membership``, as in /proc/self/cgroup.

    ``cgroups`` is where the cgroups are mounted. In the root cgroup of version 2, the count is that of the machine.
    """
    return next((path for path in _candidates(membership, cgroups) if _read(path) is not None), _OF_THE_MACHINE)


def _candidates(membership: str, cgroups: Path) -> Iterator[Path]:
    """Yield where the count may be, in version 1 first: with both, that one controls memory."""
    lines = [line.split(":", 2) for line in membership.splitlines() if line.count(":") >= 2]
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):
            # In a container, the path may be that of the host, and the container's own cgroup is mounted.
            yield from (cgroups / "memory" / folder / "memory.oom_control" for folder in (path.strip("/"), ""))
    for _, controllers, path in lines:
        if not controllers:
            # An ancestor's count includes those of its descendants, whose memory may not be counted by itself.
            own = Path(path.strip("/"))
            yield from (cgroups / folder / "memory.events" for folder in (own, *own.parents))


def _read(path: Path) -> int | None:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
    except (OSError, ValueError):
        return None
