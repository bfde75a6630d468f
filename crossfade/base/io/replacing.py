"""Replace folders in one step, durably.

replace_folder(Path("data/plays"), staging)         # the old folder is deleted afterwards

On Linux both folders are exchanged by one system call, so a kill leaves the old or the new one at the target. Other
systems, and file systems without that call, need two renames: a kill between them leaves the old folder beside the
target, as ``.NAME.old``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from crossfade.base.errors import Option, OptionError, Text
from crossfade.base.io.durable_file import sync

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
"""How systems, file systems, and filters of system calls reject an exchange; a rename reports any other cause."""


def replace_folder(target: Path, staging: Path) -> None:
    """Replace ``target``, which need not exist, by ``staging``, durably; delete the old folder.

    Raises:
        OSError: it could not be replaced, and is still there, or the old folder could not be deleted.
    """
    _sync_tree(staging)
    old = staging
    if not os.path.lexists(target):
        staging.rename(target)
    elif not _exchange(staging, target):
        old = _move_aside(target, staging)
    sync(target.parent)
    if os.path.lexists(old):
        shutil.rmtree(old)


def check_replaceable(
    path: Path, overwrite: bool, kind: str, find_foreign: Callable[[], str | None], *, option: str = "out"
) -> None:
    """Reject an existing ``path``, unless ``overwrite`` is given and it is a folder of the caller's own files.

    Args:
        path: what is to be written.
        overwrite: whether the user has asked to replace it.
        kind: what the caller writes, such as ``an index``.
        find_foreign: returns a file of the folder that the caller has not written; None if there is none.
        option: what names ``path``.

    Raises:
        OptionError: it may not be replaced.
    """
    if not os.path.lexists(path):
        return
    overwriting = Option("overwrite")
    problem: Text
    fix: Text
    if not overwrite:
        problem, fix = "already exists", (f"choose another, or replace {kind} with ", overwriting)
    elif path.is_symlink() or not path.is_dir():
        problem, fix = ("is not a folder, so ", overwriting, " does not replace it"), "choose another"
    elif (foreign := find_foreign()) is not None:
        problem = (f"holds '{foreign}', which is not part of {kind} and which ", overwriting, " would delete")
        fix = "move it, or choose another folder"
    else:
        return
    raise OptionError(option, found=path, problem=problem, fix=fix)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent, name))
        sync(Path(parent))


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; return False where that is not possible."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # another system, or an old C library
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))


def _move_aside(target: Path, staging: Path) -> Path:
    """Replace ``target`` by ``staging`` in two renames; return where the old folder is."""
    old = target.with_name(f".{target.name}.old")
    if os.path.lexists(old):
        shutil.rmtree(old)
    target.rename(old)
    try:
        staging.rename(target)
    except BaseException:
        old.rename(target)
        raise
    return old
