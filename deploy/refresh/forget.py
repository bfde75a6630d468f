"""Delete IDs from all datasets of a service, and let its next version be one without their vectors.

    report = forget_in_service(Path("services/music"), options, progress)

Checkpoints and embeddings are not rewritten: ``ServiceVersions.mark_forgotten`` makes the next ``crossfade refresh``
publish a version without the vectors, and then delete the versions that have them. A version that was interrupted is
discarded, so its events count as not taken. The mark is written before the first dataset is changed; after a crash, the
same command deletes the rest.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from crossfade.base.command_line import command_line
from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.deploy.refresh.remote import locked_versions
from crossfade.deploy.refresh.versions import ServiceVersions
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.forget import ForgetReport, StagedDeletion, staged_deletion
from crossfade.trainer.prepare.id_list import read_ids
from crossfade.trainer.prepare.options import ForgetOptions


def forget_in_service(folder: Path, options: ForgetOptions, progress: ProgressReporter) -> list[ForgetReport]:
    """Delete the IDs of ``options`` from all datasets of the service in ``folder``; return what that did, newest first.

    Raises:
        InputError: another process changes the service, or a dataset cannot be read; nothing was deleted.
        CrossfadeError: deleting failed; each dataset is complete, before or after its deletion.
    """
    with locked_versions(folder, progress) as versions:
        if versions.current is None:
            versions.discard(versions.next_number)  # it may have events of the IDs
            versions.clean(0)
            return []
        entity = options.entity or read_manifest(Folder(str(versions.data_path(versions.current.number)))).query
        ids = read_ids(options.ids, options.column, entity)
        versions.discard(versions.next_number)
        versions.clean(len(versions.kept))
        with ExitStack() as stack:
            planned = [
                stack.enter_context(staged_deletion(each, ids, entity, progress))
                for number in versions.kept
                for each in versions.datasets(number)
            ]
            _check_rest(versions, planned)
            is_marked = versions.forgotten is not None or any(deletion.report.found for deletion in planned)
            if is_marked:
                versions.mark_forgotten(complete=False)
            reports = [deletion.publish() for deletion in planned]
            if is_marked:
                versions.mark_forgotten(complete=True)
        return reports[::-1]


def _check_rest(versions: ServiceVersions, planned: list[StagedDeletion]) -> None:
    """Check that the version that is served keeps events to train on: the next version continues on its dataset.

    Raises:
        InputError: it has events of these IDs only.
    """
    assert versions.current is not None
    data = versions.data_path(versions.current.number).resolve()
    for deletion in planned:
        is_served = deletion.report.folder.path is not None and deletion.report.folder.path.resolve() == data
        if is_served and 0 < deletion.manifest.splits["train"].rows == deletion.report.interactions["train"]:
            raise InputError(
                f"{versions.folder}: version {versions.current.number} took events of these IDs only, so the next one "
                f"could not be trained without them; first let it take further events "
                f"({command_line('refresh', versions.folder.absolute())}), or return to the version before "
                f"({command_line('rollback', versions.folder.absolute())})"
            )
