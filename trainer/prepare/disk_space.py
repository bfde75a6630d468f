"""Warn about too little disk space for temporary files at the start, and name the disk that is full.

warn_low_disk(work, files)
with full_disk_errors(out):
    ...                         # an OSError of a full disk becomes one that names it
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from crossfade.base.errors import CrossfadeError, escape_unprintable, option_named
from crossfade.base.io.disk_errors import disk_of, is_full_disk
from crossfade.trainer.prepare.input_files import RemoteFile, Source

_COMPRESSED_EXTENSIONS, _EXPANSION = (".gz", ".zst"), 5.0
"""Compressed text files, and how many times as large their text may be."""
_TEMP_BYTES_PER_BYTE = {"parquet": 4.0, "csv": 2.0, "tsv": 2.0, "jsonl": 2.0, "lightgcn": 4.0}
"""Upper bounds of what the working database and its sorting take for each byte of raw events.

Incompressible IDs (random text) were measured to take 1.2; small integers take more than their compressed file.
"""


def estimate_temp_bytes(files: Sequence[Source]) -> int:
    """Estimate the bytes of temporary files that preparing ``files`` takes; two remote files are local at a time."""
    remote_bytes = sorted((file.bytes for file in files if isinstance(file, RemoteFile)), reverse=True)
    return sum(remote_bytes[:2]) + int(sum(map(_database_bytes, files)))


def _database_bytes(file: Source) -> float:
    is_compressed = str(file).lower().endswith(_COMPRESSED_EXTENSIONS)
    return file.bytes * _TEMP_BYTES_PER_BYTE[file.format] * (_EXPANSION if is_compressed else 1.0)


def warn_low_disk(work: Path, files: Sequence[Source]) -> None:
    """Print a warning on stderr if ``work`` has less free space than preparing ``files`` may take.

    This is not an error, since the need is only an estimate.
    """
    free, needed = shutil.disk_usage(work).free, estimate_temp_bytes(files)
    if free < needed:
        place = escape_unprintable(str(work))
        print(
            f"crossfade: {place}: {free / 1e9:,.1f} GB are free, and temporary files may take {needed / 1e9:,.1f} GB; "
            "if that is too little, have them on a larger disk (TMPDIR)",
            file=sys.stderr,
        )


PREPARING_ADVICE = (
    f"name another disk with {option_named('out')} and, for temporary files, with "
    f"{option_named('work_dir')} (or TMPDIR)"
)
TEMPORARY_ADVICE = "name another disk for temporary files with TMPDIR"


def full_disk_error(path: Path, advice: str = PREPARING_ADVICE) -> CrossfadeError:
    """Return the error that the disk of ``path`` is full; ``advice`` is how to use another one."""
    disk = disk_of(path)
    usage = shutil.disk_usage(disk)
    return CrossfadeError(
        f"the disk at {disk} is full: {usage.free / 1e6:,.1f} of {usage.total / 1e6:,.1f} MB are free; make room, or "
        f"{advice}; nothing was written"
    )


@contextmanager
def full_disk_errors(out: Path) -> Iterator[None]:
    """Raise an ``OSError`` of a full disk as one that names the disk: of its file, or else of ``out``.

    Raises:
        CrossfadeError: a disk is full.
    """
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        raise full_disk_error(Path(error.filename or out)) from error
