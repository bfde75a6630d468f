"""Whether a data set that was asked for has been made already."""

from __future__ import annotations

from kvstore.errors import InputError
from kvstore.io.folder import Folder
from kvstore.io.storage_errors import translate_storage_errors
from trainer.data.manifest import FILE_NAME, DatasetManifest, read_manifest


def read_complete(out: Folder) -> DatasetManifest | None:
    """The manifest of the data set in ``out`` if all its files are there at their sizes, else None.

    Raises:
        InputError: it cannot be looked into, or what is there is no manifest of this version.
    """
    with translate_storage_errors(f"--out {out.uri}", unreachable=InputError):
        sizes = out.sizes()
        if FILE_NAME not in sizes:
            return None
        manifest = read_manifest(out)
    return manifest if all(sizes.get(file.path) == file.bytes for file in manifest.files()) else None
