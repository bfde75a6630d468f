"""Write an output beside its place, and move it there when it is complete; one process at a time.

with staged_folder(Path("exports/plays")) as staging:
    ...                                             # write files into staging
    replace_folder(Path("exports/plays"), staging)
with staged_file(Path("recs.parquet")) as partial: ...

What a killed process has left beside an output is deleted by the next one that writes it.
"""

from __future__ import annotations

import glob
import logging
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from crossfade.base.io.durable_file import sync
from crossfade.base.io.writer_lock import path_lock

_logger = logging.getLogger(__name__)


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Create an empty folder beside ``target``, which only this process writes meanwhile.

    If it has not been moved by ``replace_folder`` in the end, it is deleted, and so are folders that were created for
    it.

    Raises:
        InputError: another process writes ``target``.
        OSError: the folder cannot be created.
    """
    target = target.absolute()
    with ExitStack() as stack:
        stack.callback(_remove_empty, [parent for parent in target.parents if not parent.exists()])
        target.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(output_lock(target))
        staging = _new_path(target)
        stack.callback(shutil.rmtree, staging, ignore_errors=True)
        staging.mkdir()
        yield staging


@contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yield the path of a file to write beside ``target``, which it replaces, durably, when the block succeeds.

    A device or pipe is not replaced but written.

    Raises:
        InputError: another process writes ``target``.
        OSError: the file cannot be written or moved.
    """
    if target.exists() and not target.is_file():
        yield target
        return
    target = target.resolve()
    with output_lock(target):
        partial = _new_path(target)
        try:
            yield partial
            sync(partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        sync(target.parent)


@contextmanager
def output_lock(target: Path) -> Iterator[None]:
    """Let only this process write ``target``, a file or folder, while the context lasts; delete leftovers.

    Raises:
        InputError: another process writes it, or its folder cannot be written.
    """
    with path_lock(target.with_name(f".{target.name}.lock"), str(target)):
        for path in sorted(target.parent.glob(f".{glob.escape(target.name)}.partial-*")):
            # The lock was free, so the process that wrote it has ended.
            _logger.warning(f"{path}: deleting what a command that was killed has left")
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        yield


def _new_path(target: Path) -> Path:
    """Return an unused path beside ``target``. A process ID would not be unique: containers may share a volume."""
    return target.with_name(f".{target.name}.partial-{uuid.uuid4().hex[:8]}")


def _remove_empty(folders: list[Path]) -> None:
    """Remove ``folders``, the innermost first, up to one that was never created or is in use."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
