"""Make files and folders durable, and replace small files so that a reader finds the old or the new content."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from pathlib import Path

_PARTIAL_SUFFIX = ".partial"
_HIDDEN = re.compile(r"\.(.+?)(\.[0-9a-f]+)?\.(partial(-\w+)?(\.work)?|lock|old|worker-\d+)")
"""What writers hide beside an output: new and old content, and a lock."""


def replace_file(path: Path, data: bytes) -> None:
    """Write or replace the file ``path``, whose folder exists: atomically, and durably once this returns.

    Raises:
        OSError: it cannot be written; the error has its name.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_PARTIAL_SUFFIX}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
    sync(path.parent)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Make a file that is never written in place available under another name: copied only where links cannot be."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links, or a file of another user
        shutil.copyfile(source, target)
        sync(Path(target))


def is_partial(name: str) -> bool:
    """Return whether a file of this name is being written, or was when its process died."""
    return name.startswith(".") and name.endswith(_PARTIAL_SUFFIX)


def written_name(name: str) -> str:
    """Return the name of the output beside which its writer hides a file or folder ``name``; otherwise ``name``."""
    hidden = _HIDDEN.fullmatch(name)
    return name if hidden is None else hidden[1]


def create_folder(folder: Path) -> None:
    """Create ``folder`` and its parents; sync each parent, so that the new entry survives a crash."""
    if folder.is_dir():
        return
    create_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Have the content of the file ``path``, or the names in the folder ``path``, survive a crash."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
