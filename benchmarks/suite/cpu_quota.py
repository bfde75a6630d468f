"""Limit processes to a share of a core by CPU cgroups, version 1 or 2.

with cpu_groups(4, share=0.25) as groups:
    for group, process in zip(groups, processes):
        group.add(process.pid)
    groups[0].throttled_share(groups[0].periods())

The kernel lets a group run until its quota of a period is used, then stops it until the next one. Periods are short, so
that no worker waits long for another's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from suite.processes import MeasurementError

PERIOD_MICROSECONDS = 10_000
PREFIX = "crossfade-bench-"
END_SECONDS = 10.0
MOUNTS = Path("/proc/mounts")


class CpuGroup:
    """One cgroup."""

    def __init__(self, folder: Path, share: float) -> None:
        """Create it in the file system of cgroups."""
        self.folder = folder
        folder.mkdir()
        quota = round(PERIOD_MICROSECONDS * share)
        # The largest weights: it gets its share although the machine does other work.
        if (folder / "cpu.max").exists():
            values = {"cpu.max": f"{quota} {PERIOD_MICROSECONDS}", "cpu.weight": "10000"}
        else:
            values = {"cpu.cfs_period_us": str(PERIOD_MICROSECONDS), "cpu.cfs_quota_us": str(quota)}
            values["cpu.shares"] = "262144"
        for name, value in values.items():
            (folder / name).write_text(value, encoding="utf-8")

    def add(self, pid: int) -> None:
        """Move a process, with its threads, into it."""
        (self.folder / "cgroup.procs").write_text(str(pid), encoding="utf-8")

    def periods(self) -> tuple[int, int]:
        """Return in how many periods it ran so far, and in how many of them its quota was used up."""
        lines = (self.folder / "cpu.stat").read_text(encoding="utf-8").splitlines()
        counts = dict(line.split() for line in lines)
        return int(counts["nr_periods"]), int(counts["nr_throttled"])

    def throttled_share(self, begin: tuple[int, int]) -> float:
        """Return the share of periods since ``begin`` in which its quota was used up."""
        periods, throttled = self.periods()
        return (throttled - begin[1]) / max(1, periods - begin[0])

    def remove(self) -> None:
        """Remove it once its processes have ended."""
        end = time.monotonic() + END_SECONDS
        while self.folder.exists():
            try:
                self.folder.rmdir()
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)


@contextmanager
def cpu_groups(count: int, share: float) -> Iterator[list[CpuGroup]]:
    """Create ``count`` cgroups of ``share`` of a core each; remove them at the end of the block, when all processes in
    them must have ended.

    Raises:
        MeasurementError: they cannot be created here.
    """
    root = _root()
    _remove_leftovers(root)
    groups: list[CpuGroup] = []
    try:
        try:
            for number in range(count):
                groups.append(CpuGroup(root / f"{PREFIX}{os.getpid()}-{number}", share))
        except OSError as error:
            raise MeasurementError(f"CPU cgroups cannot be created: {error}") from None
        yield groups
    finally:
        for group in groups:
            group.remove()


def _root() -> Path:
    """Return where the CPU controller is mounted."""
    for line in MOUNTS.read_text(encoding="utf-8").splitlines() if MOUNTS.exists() else []:
        _, folder, kind, options = line.split()[:4]
        if kind == "cgroup" and "cpu" in options.split(","):
            return Path(folder)
        controllers = Path(folder) / "cgroup.controllers"
        if kind == "cgroup2" and "cpu" in controllers.read_text(encoding="utf-8").split():
            with suppress(OSError):  # else, creating a group fails
                (Path(folder) / "cgroup.subtree_control").write_text("+cpu", encoding="utf-8")
            return Path(folder)
    raise MeasurementError("no CPU cgroups are mounted")


def _remove_leftovers(root: Path) -> None:
    """Remove empty groups of runs that were killed."""
    for folder in root.glob(f"{PREFIX}*"):
        with suppress(OSError):
            folder.rmdir()
