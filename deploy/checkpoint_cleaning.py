"""Find the checkpoints of a run folder or URI, and what processes that died have left there.

    with leftovers_of("runs/lastfm", written_before=time.time() - 3600) as found:
        for leftover in found:
            leftover.remove()

Unfinished uploads to S3 are not among it: a rule of the bucket's lifecycle, AbortIncompleteMultipartUpload, ends them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.kvstore.checkpoint.file_names import MANIFEST_NAME
from crossfade.kvstore.checkpoint.lifecycle import Leftover, find_leftovers
from crossfade.trainer.runs.run_folder import JOB_FILE, RunFolder


def locate_checkpoints(text: str) -> str:
    """Return the folder of the checkpoints that ``text``, a path or URI, names.

    Raises:
        InputError: it names none.
    """
    folder = Folder(text)
    expected = "expected a run folder, or a folder of checkpoints such as runs/NAME/checkpoints"
    with translate_storage_errors(text, action="read", unreachable=InputError):
        names = folder.names()
    if not names:
        raise InputError(f"{text}: no such folder, or an empty one; {expected}")
    if MANIFEST_NAME in names:
        raise InputError(f"{text}: is not a folder of checkpoints; {expected}")
    if JOB_FILE not in names:
        return folder.uri
    if folder.path is None:
        return folder.child("checkpoints").uri
    run = RunFolder(folder.path)
    return run.checkpoints(run.job())


@contextmanager
def leftovers_of(source: str, written_before: float) -> Iterator[list[Leftover]]:
    """Yield what can be deleted of a run or a folder of checkpoints; no run starts in a run folder meanwhile.

    Raises:
        InputError: there are no checkpoints, or a run is in progress.
    """
    checkpoints = locate_checkpoints(source)
    found: list[Leftover] = []
    with ExitStack() as locked:
        if "://" not in source and (Path(source) / JOB_FILE).exists():
            run = RunFolder(Path(source))
            locked.enter_context(run.lock.kept_free())
            found += [
                Leftover(str(path), "temporary file", path.stat().st_size, path.stat().st_mtime, path.unlink)
                for path in run.unfinished_files()
                if path.stat().st_mtime <= written_before
            ]
        found += find_leftovers(checkpoints, written_before)
        yield found
