"""A small disk that a test can fill."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class MountError(Exception):
    """No disk can be mounted here."""


@contextmanager
def mounted_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a disk of ``size_bytes`` at the new folder ``folder`` while the context lasts."""
    if os.geteuid() != 0:
        raise MountError("mounting a disk is for root")
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise MountError(f"no disk can be mounted here: {result.stderr}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, leave: int = 16384) -> None:
    """Fill the disk up to ``leave`` bytes, less than a checkpoint needs."""
    stat = os.statvfs(disk)
    free = stat.f_bavail * stat.f_frsize - leave
    if free > 0:
        try:
            with (disk / "filler").open("ab") as file:
                file.write(bytes(free))
        except OSError as error:
            if error.errno != errno.ENOSPC:  # another process has written meanwhile
                raise


def make_room(disk: Path) -> None:
    """Delete what ``fill`` wrote."""
    (disk / "filler").unlink(missing_ok=True)
