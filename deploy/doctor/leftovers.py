"""Find what processes that died have left: unfinished files, folders, and uploads, and locks. Nothing is deleted.

A staged output and a lock count once the process that holds the lock has ended, other files and folders after a day.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from crossfade.base.errors import CrossfadeError
from crossfade.base.formatting import size
from crossfade.base.io.folder import Folder
from crossfade.base.io.regular_files import read_regular
from crossfade.base.io.writer_lock import LOCK_NAME, ended_owner
from crossfade.deploy.doctor.findings import Finding
from crossfade.kvstore.checkpoint.inventory import find_leftovers
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.runs.folder import RunFolder

_AGE_SECONDS = 24 * 3600
"""Age of what counts as left, as in ``crossfade checkpoints clean``."""
_STAGED = re.compile(r"\.(?P<name>.+)\.(partial-[0-9a-f]{8}(\.work)?|old)")
"""Folders and files that are being written, or replaced, beside their place."""
_CHECK = "leftovers"


def check_leftovers(job: JobConfig, run: RunFolder) -> Iterator[Finding]:
    """Report what is left of the job's commands, with the command that removes it."""
    found = [*_checkpoint_leftovers(job, run), *_staged_leftovers(job, run), *_lock_leftovers(job)]
    found += [f"{path}; rm -r {path}" for path in _old_work_folders()]
    for message in found:
        yield Finding(_CHECK, "warning", message)
    if not found:
        yield Finding(_CHECK, "ok", "none")


def _checkpoint_leftovers(job: JobConfig, run: RunFolder) -> Iterator[str]:
    checkpoints, before = run.checkpoints(job), time.time() - _AGE_SECONDS
    left = find_leftovers(checkpoints, before)
    if checkpoints.startswith("s3://") and find_spec("boto3") is not None:
        from crossfade.deploy.aws.clients import Aws
        from crossfade.deploy.aws.uploads import find_uploads

        try:
            left += find_uploads(Aws(), checkpoints, before)
        except CrossfadeError as error:  # training needs neither the right to list them nor a region
            yield f"unfinished uploads were not listed: {error}"
    if left:
        kinds = ", ".join(sorted({f"{leftover.kind}s" for leftover in left}))
        total = size(sum(leftover.bytes for leftover in left))
        yield f"{checkpoints}: {len(left)}, {total} ({kinds}); crossfade checkpoints clean {checkpoints}"
    with suppress(FileNotFoundError):
        files = [path for path in run.unfinished_files() if path.stat().st_mtime <= before]
        if files:
            yield f"{run.path}: {len(files)} temporary files; crossfade checkpoints clean {run.path}"


def _staged_leftovers(job: JobConfig, run: RunFolder) -> Iterator[str]:
    """Yield what is beside the dataset and in the run folder and no running process writes."""
    data = Folder(job.data.path).path
    folders = [(run.path, "*")] + ([(data.absolute().parent, data.name)] if data is not None else [])
    for folder, wanted in folders:
        for path in sorted(folder.glob(".*")):
            match = _STAGED.fullmatch(path.name)
            if match is None or wanted not in ("*", match["name"]):
                continue
            lock = folder / f".{match['name']}.lock"
            if not lock.exists() or ended_owner(read_regular(lock)):
                yield f"{path}: of a command that was killed; the next one that writes {match['name']} deletes it"


def _lock_leftovers(job: JobConfig) -> Iterator[str]:
    """Yield locks of the dataset whose owner has ended: the next command takes them over."""
    data = Folder(job.data.path)
    with suppress(FileNotFoundError):
        owner = ended_owner(data.read(LOCK_NAME))
        if owner is not None:
            yield f"{data.uri}/{LOCK_NAME}: the lock of {owner}, which has ended; the next command takes it over"
    if data.path is not None:
        lock = data.path.absolute().with_name(f".{data.path.name}.lock")
        with suppress(FileNotFoundError):
            owner = ended_owner(read_regular(lock))
            if owner is not None:
                yield f"{lock}: the lock of {owner}, which has ended; the next command takes it over"


def _old_work_folders() -> Iterator[Path]:
    """Yield the folders of temporary files of ``crossfade prepare`` that nothing has changed for a day."""
    for path in sorted(Path(tempfile.gettempdir()).glob("crossfade-prepare-*")):
        with suppress(FileNotFoundError):
            newest = max(found.stat().st_mtime for found in (path, *path.rglob("*")))
            if newest <= time.time() - _AGE_SECONDS:
                yield path
