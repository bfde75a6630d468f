"""``crossfade forget``: delete IDs from a prepared dataset or a service, and list where else they may remain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossfade.base.errors import OptionError, command
from crossfade.base.text import counted
from crossfade.cli.command import as_command
from crossfade.terminal import print_lines
from crossfade.trainer.data.split_names import ALL_SPLITS
from crossfade.trainer.prepare.options import ForgetOptions

if TYPE_CHECKING:
    from crossfade.deploy.refresh.forget import ServiceForgetReport
    from crossfade.trainer.prepare.forget import ForgetReport

_EXAMPLES = (
    (
        "crossfade forget data/plays --ids ids.txt",
        "Delete the interactions, IDs and names of the customers that a text file lists, one per line.",
    ),
    (
        "crossfade forget s3://music/plays --ids requests.parquet --column user_id --entity customer",
        "Read the IDs from a column of a Parquet, CSV or TSV file.",
    ),
    (
        "crossfade forget services/music --ids ids.txt",
        "Delete them from all datasets of a service; its next version has no vector of them.",
    ),
)
_NOTES = """\
The base datasets that DATA extends ('crossfade prepare --base') are searched for the IDs, too, so name the newest
dataset; one that cannot be reached ends the command before anything is deleted. Files are rewritten in place. Other
rows keep their numbers, so checkpoints stay valid; vacant rows are reset in the next run that warm-starts from an older
checkpoint. After an interruption, the same command finishes the deletion.

DATA may be the folder of a service ('crossfade refresh'): the IDs are deleted from the datasets of all its versions,
and the next 'crossfade refresh' publishes a version without their vectors, even if no event file is new, and deletes
all earlier versions.
"""


@as_command(
    "forget",
    "Delete IDs, their names and all their interactions from a prepared dataset or a service, in place.",
    _EXAMPLES,
    _NOTES,
)
def run(options: ForgetOptions) -> int:
    """Delete the IDs, and print what was deleted and what may still hold them.

    Raises:
        CrossfadeError: deleting failed; the dataset is unchanged, or the deletion is complete.
    """
    from pathlib import Path

    from crossfade.deploy.refresh.forget import forget_in_service
    from crossfade.deploy.refresh.versions import is_service
    from crossfade.display import progress_bars
    from crossfade.trainer.prepare.forget import forget

    parent, on_s3 = options.data.rstrip("/").rpartition("/")[0] or ".", options.data.startswith("s3://")
    if on_s3 and is_service(options.data):
        raise OptionError(
            "data",
            found=options.data,
            problem="is a service on S3",
            fix="name its folder on a host that has made a version of it, such as services/NAME",
        )
    if (on_s3 and parent.count("/") > 2) or "://" not in parent:
        _check_parent(options, parent)
    with progress_bars() as bars:
        if is_service(options.data):
            service = forget_in_service(Path(options.data), options, bars)
            reports = service.datasets
        else:
            service, reports = None, forget(options, bars)
    for report in reports:
        print_lines(_describe(report, options.ids))
    if service is not None:
        print_lines(_other_copies_of_service(options.data, service))
        return 0
    entity = reports[0].entity
    if any(report.pending or report.manifest.entities[entity].vacant_rows for report in reports):
        lines = _other_copies(reports, this_dataset_only=options.this_dataset_only)
        print_lines(["what may still hold them, and how to clear it:", *(f"  {line}" for line in lines)])
    return 0


def _check_parent(options: ForgetOptions, parent: str) -> None:
    """Check that the dataset is not one of a service, in whose folder it would be.

    Raises:
        OptionError: it is.
    """
    from crossfade.deploy.refresh.versions import is_service

    if is_service(parent):
        raise OptionError(
            "data",
            found=options.data,
            problem="is a dataset of a service, whose versions have vectors of its ids",
            fix=f"delete them from all of it: {command('forget', parent, ids=options.ids)}",
        )


def _describe(report: ForgetReport, file: str) -> list[str]:
    unknown = report.requested - report.found - report.pending
    dropped = ", ".join(f"{count:,} of {split}" for split, count in report.interactions.items())
    vacant = len(report.manifest.entities[report.entity].vacant_rows)
    lines = [
        f"{report.folder.uri}: forgot {counted(report.found, 'row')} of {report.entity} ({vacant:,} in all)",
        f"  ids: {report.requested:,} in {file}; {unknown:,} of them are not in the dataset",
        f"  interactions dropped: {dropped}; {counted(report.files_rewritten, 'file')} rewritten",
    ]
    if report.pending:
        lines.insert(2, f"  {report.pending:,} of them were waiting for admission (--admit)")
    if report.leftovers_deleted:
        lines.append(f"  finished an earlier {command('forget')} that was interrupted: deleted the files it had left")
    return lines


def _other_copies_of_service(folder: str, report: ServiceForgetReport) -> list[str]:
    if not report.datasets:
        return [f"{folder}: has no version yet, only event files: delete the ids there"]
    lines = [
        "  event files    delete them there before: those that no version has taken, and those of withdrawn versions",
        "  copies         exports, indexes, and backups: delete them, or make them anew",
        "  processes      dashboards keep a copy of an earlier version: restart them; servers delete theirs",
    ]
    if report.versions:
        names = ", ".join(map(str, report.versions))
        lines = [
            f"  versions       {names}: the next {command('refresh')} publishes one without them, and deletes these",
            *lines,
        ]
    return ["what may still hold them, and how to clear it:", *lines]


def _other_copies(reports: list[ForgetReport], *, this_dataset_only: bool) -> list[str]:
    sources = [report.manifest.source for report in reports]
    found = [source.get(split) for source in sources for split in ALL_SPLITS]
    raw = list(dict.fromkeys(str(text) for texts in found if isinstance(texts, list) for text in texts))
    where = f": {', '.join(raw[:3])}{' …' if len(raw) > 3 else ''}" if raw else ""
    lines = [
        f"raw events     delete them there, or the next preparation brings them back{where}",
        "checkpoints    train a new run with --set checkpoint.warm_start_from=OLD/checkpoints: it resets their rows;",
        "               then delete the older checkpoints",
        "embeddings     of earlier runs, exports and indexes: that run writes new embeddings; delete the old ones",
        "copies         datasets that extend this one, backups, older versions of objects in S3: forget there, or "
        "delete them",
    ]
    if "compacted_from" in sources[0]:
        lines.append(
            f"compacted      {sources[0]['compacted_from']} and its bases, from which this one was made: forget there "
            "too, or delete them"
        )
    if this_dataset_only and "base" in sources[0]:
        lines.append(f"base dataset   {sources[0]['base']}, which this one extends: forget there too")
    return lines
