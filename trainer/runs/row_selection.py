"""Which interactions a job trains on: all of train, or those of a time, which are counted once a run.

All workers must know how many there are before the first step. The command counts them and leaves the counts in the run
folder, where the workers of every generation find them; whoever finds none counts for itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from kvstore.errors import InputError
from kvstore.io.folder import Folder
from trainer.config.schema import JobConfig
from trainer.data.manifest import DatasetManifest, Split
from trainer.data.reader import InteractionReader, RowGroup, row_groups
from trainer.data.reporter import ProgressReporter
from trainer.data.time_range import count_within
from trainer.runs.folder import ROW_COUNTS_FILE


@dataclass(frozen=True)
class RowSelection:
    """The row groups that are trained on, and how many of their rows.

    ``kept``: rows of each row group of each file that are of the job's time; None if it names none.
    """

    groups: Sequence[RowGroup]
    row_counts: list[list[int]] | None = None

    @property
    def rows(self) -> int:
        """The interactions of an epoch."""
        return sum(group.rows for group in self.groups)

    def write(self, run_dir: Path, job: JobConfig, fingerprint: int) -> None:
        """Leave the counts, if there are any, in the folder of a run of ``job``, for ``select`` to find."""
        if self.row_counts is None:
            return
        partial = run_dir / f".{ROW_COUNTS_FILE}.partial"
        partial.write_text(
            json.dumps({**_counted(job, fingerprint), "row_counts": self.row_counts}) + "\n", encoding="utf-8"
        )
        partial.replace(run_dir / ROW_COUNTS_FILE)


def _counted(job: JobConfig, fingerprint: int) -> dict[str, int | str | None]:
    """What counts are of."""
    return {"since": job.data.since, "until": job.data.until, "data": fingerprint}


def select_rows(
    job: JobConfig,
    folder: Folder,
    manifest: DatasetManifest,
    progress: ProgressReporter,
    found: list[list[int]] | None = None,
) -> RowSelection:
    """The interactions of ``job`` in the data set in ``folder``; counted, unless the counts have been ``found``.

    Raises:
        InputError: there are none, or a file cannot be read.
        UnreachableError: storage does not answer.
    """
    train, span = manifest.splits["train"], job.data.time_range()
    if span is None:
        return RowSelection(row_groups(train))
    if found is None:
        with closing(InteractionReader(folder, manifest, job.data.reader_threads)) as reader:
            found = count_within(reader, manifest, train, span, progress)
    return RowSelection(row_groups(train, span, found), found)


def load_row_counts(run_dir: Path, job: JobConfig, fingerprint: int, train: Split) -> list[list[int]] | None:
    """The counts that were left in ``run_dir``, if they are of this job and these data."""
    try:
        record = json.loads((run_dir / ROW_COUNTS_FILE).read_text(encoding="utf-8"))
        row_counts: list[list[int]] = record.pop("row_counts")
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    shape = [len(file.row_groups) for file in train.files]
    return row_counts if record == _counted(job, fingerprint) and [len(rows) for rows in row_counts] == shape else None


def check_row_groups(job: JobConfig, folder: Folder, manifest: DatasetManifest) -> None:
    """Refuse row groups that are larger than the job accepts: a worker holds several of them.

    Raises:
        InputError: there is one.
    """
    limit = job.data.max_row_group_rows
    for split in manifest.splits.values():
        for file in split.files:
            for index, rows in enumerate(file.row_groups):
                if rows > limit:
                    raise InputError(
                        f"{folder.uri}/{file.path}, row group {index}: has {rows:,} rows, which a worker would have to "
                        f"hold at once, several times over, but data.max_row_group_rows is {limit:,}; write the file with "
                        "smaller row groups ('crossfade prepare' makes them of 131,072 rows at most), or raise "
                        f"data.max_row_group_rows to {rows} if there is memory ('crossfade plan' says how much it takes)"
                    )
