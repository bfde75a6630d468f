"""Delete IDs from a dataset and from the base datasets that it extends, which hold what the IDs did before.

    reports = forget(ForgetOptions(data="data/day3", ids="ids.txt"), progress)      # day3, day1, day2

Every dataset is locked, and everything in it that may change is read, before the first is changed. The base datasets
come first: as long as a deletion is incomplete, the newest dataset has the IDs, and the same call continues.
"""

from __future__ import annotations

from contextlib import ExitStack

import pyarrow as pa

from crossfade.base.errors import option_named
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.lineage import open_bases
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.forget import ForgetReport, plan_deletion
from crossfade.trainer.prepare.id_list import read_ids
from crossfade.trainer.prepare.options import ForgetOptions


def forget(options: ForgetOptions, progress: ProgressReporter) -> list[ForgetReport]:
    """Delete IDs as ``options`` state; see ``forget_in_lineage``."""
    folder = Folder(options.data)
    entity = options.entity or read_manifest(folder).query
    ids = read_ids(options.ids, options.column, entity)
    return forget_in_lineage(folder, ids, entity, progress, this_dataset_only=options.this_dataset_only)


def forget_in_lineage(
    folder: Folder, ids: pa.StringArray, entity: str, progress: ProgressReporter, *, this_dataset_only: bool = False
) -> list[ForgetReport]:
    """Delete ``ids`` of ``entity`` from the dataset in ``folder`` and from its base datasets; return a report of each.

    The report of ``folder`` comes first. ``this_dataset_only`` leaves the base datasets as they are.

    Raises:
        InputError: a base dataset cannot be reached, or as ``forget``; nothing has been deleted.
        CrossfadeError: another process has replaced a dataset meanwhile.
        StorageUnavailableError: storage does not answer; each dataset is complete, before or after its deletion.
    """
    bases = (
        []
        if this_dataset_only
        else open_bases(folder, read_manifest(folder), f"forget without it: {option_named('this_dataset_only')}")
    )
    with ExitStack() as stack:
        planned = [
            stack.enter_context(plan_deletion(each, ids, entity, progress))
            for each in (*(base.folder for base in bases), folder)
        ]
        *of_bases, report = [deletion.apply() for deletion in planned]
    return [report, *of_bases]
