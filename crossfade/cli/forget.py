"""``crossfade forget``: delete IDs from a prepared dataset or a service, and list where else they may remain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossfade.base.command_line import command_line
from crossfade.base.errors import OptionError
from crossfade.base.text import counted
from crossfade.cli.command import as_command
from crossfade.terminal import print_line, print_lines
from crossfade.trainer.prepare.options import ForgetOptions

if TYPE_CHECKING:
    from crossfade.trainer.prepare.forget import ForgetReport

_EXAMPLES = (
    ("crossfade forget data/plays --ids ids.txt", "Delete the customers that a text file lists, one per line."),
    (
        "crossfade forget s3://music/plays --ids requests.parquet --column user_id --entity customer",
        "Read the IDs from a column of a Parquet, CSV or TSV file.",
    ),
    ("crossfade forget services/music --ids ids.txt", "Delete them from all datasets of a service."),
)
_NOTES = """\
DATA has the events of the datasets that it extends ('crossfade prepare --base'), which are deleted too; those datasets
themselves, and others that extend them, are rewritten by a command of their own. Other rows keep their numbers, so
checkpoints stay valid; vacant rows are reset in the next run that warm-starts from an older checkpoint. An interruption
leaves the old or the new dataset; the same command finishes the deletion.

Of a service ('crossfade refresh'), the next 'crossfade refresh' publishes a version without their vectors, even if no
event file is new, and deletes all earlier versions.
"""


_COPIES = """\
what may still hold them, and how to clear it:
  raw events     delete them there, or the next preparation brings them back
  checkpoints    train a new run with --set checkpoint.warm_start_from=OLD/checkpoints: it resets their rows;
                 then delete the older checkpoints
  embeddings     of earlier runs, exports and indexes: that run writes new embeddings; delete the old ones
  copies         datasets that this one extends, and others that extend them; backups, older versions of objects in
                 S3: forget there, or delete them
"""
_COPIES_OF_SERVICE = """\
what may still hold them, and how to clear it:
  event files    delete them there before: of files that no version has taken, and of withdrawn versions
  copies         exports, indexes, and backups: delete them, or make them anew
  processes      dashboards keep a copy of an earlier version: restart them; servers delete theirs
"""


@as_command(
    "forget",
    "Delete IDs, their names and all their interactions from a prepared dataset or a service.",
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
    from crossfade.deploy.refresh.service_file import service_folder
    from crossfade.deploy.refresh.versions import ServiceVersions, is_service
    from crossfade.display import progress_bars
    from crossfade.trainer.prepare.forget import forget

    options = options.model_copy(update={"data": service_folder(options.data)})
    _check_place(options)
    with progress_bars() as bars:
        service = ServiceVersions(Path(options.data)) if is_service(options.data) else None
        reports = [forget(options, bars)] if service is None else forget_in_service(service.folder, options, bars)
    for report in reports:
        print_lines(_describe(report, options.ids))
    noted = None if service is None else service.forgotten
    if noted is not None:
        print_line(f"  versions       up to {noted.through}: the next one is made without them, and deletes these")
    print_lines((_COPIES if service is None else _COPIES_OF_SERVICE).splitlines())
    if noted is not None:
        print_line(f"next: {command_line('refresh', Path(options.data).absolute())}")
    return 0


def _check_place(options: ForgetOptions) -> None:
    """Check that ``data`` is neither a service on S3 nor one dataset of a service, in whose folder it would be.

    Raises:
        OptionError: it is.
    """
    from crossfade.deploy.refresh.versions import is_service

    parent, on_s3 = options.data.rstrip("/").rpartition("/")[0] or ".", options.data.startswith("s3://")
    if on_s3 and is_service(options.data):
        raise OptionError(
            "data",
            found=options.data,
            problem="is a service on S3",
            fix="name its folder on a host that has made a version of it, such as services/NAME",
        )
    is_bucket = on_s3 and parent.count("/") <= 2
    if not is_bucket and is_service(parent):
        raise OptionError(
            "data",
            found=options.data,
            problem="is a dataset of a service, whose versions have vectors of its ids",
            fix=f"delete them from all of it: {command_line('forget', parent, ids=options.ids)}",
        )


def _describe(report: ForgetReport, file: str) -> list[str]:
    unknown = report.requested - report.found - report.pending
    dropped = ", ".join(f"{count:,} of {split}" for split, count in report.interactions.items())
    vacant = len(report.manifest.entities[report.entity].vacant_rows)
    lines = [
        f"{report.folder.uri}: forgot {counted(report.found, 'row')} of {report.entity} ({vacant:,} in all)",
        f"  ids: {report.requested:,} in {file}; {unknown:,} of them are not in the dataset",
        f"  interactions dropped: {dropped}",
    ]
    if report.pending:
        lines.insert(2, f"  {report.pending:,} of them were waiting for admission (--admit)")
    return lines
