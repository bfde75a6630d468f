"""The journal of a deletion, which lists the files that an interruption leaves over, and its errors.

write_journal(folder, ["train/part-00000.parquet", ...])    # old and new files, before the first is written
delete_leftovers(folder, manifest)                          # those that the manifest does not list, and the journal
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel

from crossfade.base.errors import CrossfadeError, InputError
from crossfade.base.io.disk_errors import write_failure
from crossfade.base.io.folder import Folder
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.base.json_text import validate_json
from crossfade.trainer.data.manifest import FILE_NAME, JOURNAL, DatasetManifest, FilePath


class _Journal(BaseModel):
    """The files of the dataset that may be left over: old and new ones."""

    files: list[FilePath]


def write_journal(folder: Folder, files: list[str]) -> None:
    """List ``files`` as possible leftovers."""
    folder.write(JOURNAL, _Journal(files=files).model_dump_json(indent=1).encode())


def delete_leftovers(folder: Folder, manifest: DatasetManifest) -> bool:
    """Delete the files that the journal lists and ``manifest`` does not; return whether there was a journal.

    Raises:
        InputError: the journal was not written by ``write_journal``.
    """
    try:
        listed = validate_json(_Journal, folder.read(JOURNAL)).files
    except FileNotFoundError:
        return False
    except ValueError as error:
        raise InputError(
            f"{folder.uri}/{JOURNAL}: was not written by 'crossfade forget': {error}; "
            f"delete it, and list what is left over with 'crossfade validate {folder.uri}'"
        ) from error
    used = {FILE_NAME, *(file.path for file in manifest.files())}
    for path in listed:
        if path not in used:
            with translate_storage_errors(f"{folder.uri}/{path}", action="deleted"):
                folder.remove(path)
    folder.remove(JOURNAL)
    return True


@contextmanager
def explaining_failures(folder: Folder) -> Iterator[None]:
    """Add to an error of the operating system which dataset it is about, which disk is full, and what to do."""
    try:
        yield
    except OSError as error:
        reason = str(error) if folder.path is None else write_failure(error, folder.path)
        raise CrossfadeError(
            f"{folder.uri}: could not be rewritten: {reason}; the dataset is complete, before or after the deletion: "
            "run the command again"
        ) from error
