"""The list of the files of written embeddings, by which damaged, missing, and replaced ones are detected.

    write_listing(Folder(run / "embeddings"))           # when all files are written
    files = read_listing(Folder(run / "embeddings"))

Sizes and checksums of footers are listed; the pages of the files have checksums of their own, so that only what is read
is verified, by whoever reads it.
"""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict

from crossfade.base.errors import InputError, command
from crossfade.base.io.folder import Folder
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.base.json_text import validate_json
from crossfade.trainer.data.manifest import DataFile
from crossfade.trainer.data.parquet import ListedIn, file_entry

LISTING_FILE, POPULARITY_FILE = "embeddings.json", "popularity.parquet"
AGAIN = "train or export them again"
LISTED = ListedIn(LISTING_FILE, AGAIN)
_EXPECTED = f"expected a folder that {command('train')} or {command('export')} wrote"


class _Listing(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["crossfade-embeddings"]
    version: Literal[1]
    files: list[DataFile]


def write_listing(folder: Folder) -> None:
    """List the files of embeddings in ``folder``, which are complete.

    Raises:
        OSError: it cannot be written.
    """
    files = [file_entry(folder, path) for path in sorted(folder.sizes()) if path.endswith(".parquet")]
    listing = _Listing(format="crossfade-embeddings", version=1, files=files)
    folder.write(LISTING_FILE, (json.dumps(listing.model_dump(), indent=1) + "\n").encode())


def read_listing(folder: Folder) -> dict[str, list[DataFile]]:
    """Return the files of the embeddings in ``folder`` by entity, in the order of their rows.

    The file of a popularity term stands by itself, under its name.

    Raises:
        InputError: there are no embeddings, or they are of an earlier revision.
        StorageUnavailableError: storage does not answer.
    """
    uri = f"{folder.uri}/{LISTING_FILE}"
    with translate_storage_errors(uri, action="read"):
        entries = folder.entries()
        if LISTING_FILE not in entries:
            if None not in entries.values():
                raise InputError(f"{folder.uri}: holds no embeddings; {_EXPECTED}")
            raise InputError(
                f"{folder.uri}: has no {LISTING_FILE}, which has the checksums: it is incomplete, or of an earlier "
                f"revision; {AGAIN}"
            )
        content = folder.read(LISTING_FILE)
    return _parse(uri, content)


def is_listing(data: bytes) -> bool:
    """Return whether ``data`` is a list of embeddings."""
    try:
        validate_json(_Listing, data)
    except ValueError:
        return False
    return True


def _parse(uri: str, data: bytes) -> dict[str, list[DataFile]]:
    try:
        listing = validate_json(_Listing, data)
    except ValueError as error:
        raise InputError(f"{uri}: is not a list of embeddings: {error}; {AGAIN}") from error
    files: dict[str, list[DataFile]] = {}
    for file in sorted(listing.files, key=lambda file: file.path):
        files.setdefault(file.path.partition("/")[0], []).append(file)
    if not files:
        raise InputError(f"{uri}: lists no embeddings; {AGAIN}")
    return files
