"""Whether the disk for temporary files is large enough, said before hours of work and not after."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.prepare.input_files import RemoteFile, Source

_BYTES_PER_BYTE = {"parquet": 4.0, "csv": 2.0, "tsv": 2.0, "lightgcn": 4.0}
"""What the working database and its sorting take at most for each byte of raw events. Ids of random text, which nothing
compresses, were measured to take 1.2; small integers take more than their file."""


def estimate_temp_bytes(files: Sequence[Source]) -> int:
    """About how many bytes of temporary files preparing ``files`` takes."""
    fetched = sorted((file.bytes for file in files if isinstance(file, RemoteFile)), reverse=True)
    return sum(fetched[:2]) + int(sum(file.bytes * _BYTES_PER_BYTE[file.format] for file in files))


def warn_low_disk(work: Path, files: Sequence[Source]) -> None:
    """Say on stderr when ``work`` has less room than preparing ``files`` may take: it is an estimate, so no refusal."""
    free, needed = shutil.disk_usage(work).free, estimate_temp_bytes(files)
    if free < needed:
        print(
            f"crossfade: {work}: {free / 1e9:,.1f} GB are free, and this may take {needed / 1e9:,.1f} GB there; "
            "if that is short, name a larger disk with --work-dir DIR",
            file=sys.stderr,
        )
