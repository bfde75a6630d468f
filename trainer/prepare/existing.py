"""Find a dataset that was prepared already, for ``--skip-existing``."""

from __future__ import annotations

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.trainer.data.manifest import FILE_NAME, DatasetManifest, read_manifest, restore_dataset


def read_complete(out: Folder) -> DatasetManifest | None:
    """Return the manifest of the dataset in ``out``, or None if it has none or lacks a file of the right size.

    Raises:
        InputError: the folder cannot be read, or its manifest is not one of this format version.
    """
    with translate_storage_errors(f"--out {out.uri}", unreachable=InputError):
        restore_dataset(out)
        sizes = out.sizes()
        if FILE_NAME not in sizes:
            return None
        manifest = read_manifest(out)
    return manifest if all(sizes.get(file.path) == file.bytes for file in manifest.files()) else None
