"""Run commands in a cgroup with a memory limit, where this process may make one.

with memory_cgroup() as cgroup:
    subprocess.run([*cgroup.within, "python3", "-c", "..."])
    cgroup.limit_to(cgroup.used_bytes() + 2**26)        # now, or before
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from needs import root
from waiting import wait_until

_CGROUPS = Path("/sys/fs/cgroup")


class MemoryCgroup:
    """A cgroup, of either version, in the one of this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        is_first = (path / "memory.limit_in_bytes").exists()
        self._limit, self._used = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if is_first else ("memory.max", "memory.current")
        )
        self.within = ["sh", "-c", f'echo $$ > "{path}/cgroup.procs" && exec "$@"', "sh"]
        """The command that runs its arguments in the cgroup."""

    def limit_to(self, limit_bytes: int) -> None:
        """Have the kernel kill a process of the cgroup when they use more than this together."""
        (self._path / self._limit).write_text(str(limit_bytes))

    def used_bytes(self) -> int:
        """Return the memory in use, with cached files."""
        return int((self._path / self._used).read_text())


def _parent() -> Path:
    """Return the cgroup of this process that controls memory."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):
            return _CGROUPS / "memory" / path.strip("/")
    return next(_CGROUPS / path.strip("/") for _, controllers, path in lines if not controllers)


@contextmanager
def memory_cgroup() -> Iterator[MemoryCgroup]:
    """Make a cgroup without a limit, and remove it once its processes have ended; skip the test if none can be made."""
    path = _parent() / f"crossfade-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(root(f"a cgroup cannot be made: {error}"))
    try:
        if not {"memory.limit_in_bytes", "memory.max"} & {file.name for file in path.iterdir()}:
            pytest.skip(root(f"memory is not controlled in {path.parent}"))
        yield MemoryCgroup(path)
    finally:
        wait_until(lambda: not (path / "cgroup.procs").read_text(), "the end of the processes in the cgroup")
        path.rmdir()
