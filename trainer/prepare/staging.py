"""Write a dataset completely or not at all, to a folder or to a prefix on S3.

with staged_output("s3://music/lastfm", overwrite=True) as staged:
    ...                                 # write files into staged.folder, temporary ones into staged.work
    staged.publish(manifest)

On a file system the files are written to a folder next to the output and moved there in one step. On S3, where nothing
can be moved, they get unique names; the manifest, written last, makes them the dataset, and then the files of the
dataset before it are deleted. If the block ends without ``publish``, nothing remains.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from crossfade.kvstore.errors import CrossfadeError, InputError, StorageUnavailableError
from crossfade.kvstore.io.folder import Folder
from crossfade.kvstore.io.storage_errors import translate_storage_errors
from crossfade.trainer.data.manifest import (
    BASELINES_FILE,
    FEATURES,
    FILE_NAME,
    JOURNAL,
    PENDING,
    SPLITS,
    VOCABULARY,
    DatasetManifest,
    read_manifest,
)

_WORK_SUFFIX = ".work"
_OUR_ENTRIES = {FILE_NAME, BASELINES_FILE, JOURNAL, VOCABULARY, FEATURES, PENDING, *SPLITS}
_OUR_OBJECTS = re.compile(
    rf"(?:(?:{VOCABULARY}|{PENDING})/[^/]+|{FEATURES}/[^/]+/[^/]+|{'|'.join(SPLITS)})/part-[0-9a-z-]+\.parquet"
)
_PROBE = ".writable"


class Staged:
    """A dataset that is being written.

    Args:
        out: Where it is published.
        overwrite: Whether it may replace a dataset there.
        folder: Where its files are written.
        work: A local folder for temporary files.
        tag: A suffix of the file names that makes them unique; empty on file systems.
    """

    def __init__(self, out: Folder, overwrite: bool, folder: Folder, work: Path, tag: str) -> None:
        self.out = out
        self.folder = folder
        self.work = work
        self._overwrite = overwrite
        self._tag = tag

    def file_name(self, stem: str) -> str:
        """Return the name of the Parquet file ``stem``."""
        return f"{stem}{self._tag}.parquet"

    def publish(self, manifest: DatasetManifest | None) -> None:
        """Publish the files that were written, replacing a dataset that may be overwritten.

        ``manifest`` is None for files that need none, such as raw events.

        Raises:
            InputError: something else has been written there since the check.
            CrossfadeError: the dataset is complete, but files of the one before it could not be deleted.
        """
        if manifest is not None and not self.out.on_s3:
            manifest.write(self.folder)
        check_free(self.out, self._overwrite, self._tag)
        if not self.out.on_s3:
            _swap(_path(self.folder), _path(self.out))
        elif manifest is not None:
            manifest.write(self.folder)
            self._delete_others()

    def _delete_others(self) -> None:
        try:
            for name in self.folder.sizes():
                if name != FILE_NAME and self._tag not in name:
                    self.folder.remove(name)
        except OSError as error:
            raise CrossfadeError(
                f"{self.out.uri}: the new dataset is complete, but files of the old one could not be deleted: {error}; "
                f"nothing reads them: delete the files without '{self._tag}' in their names"
            ) from error


def check_free(out: Folder, overwrite: bool, tag: str = "") -> None:
    """Reject an ``out`` that exists, unless ``overwrite`` is given and it holds a prepared dataset and nothing else.

    On S3, ``tag`` marks the objects of this preparation.

    Raises:
        InputError: it exists and may not be replaced, or it cannot be read.
    """
    with translate_storage_errors(f"--out {out.uri}", unreachable=StorageUnavailableError if tag else InputError):
        if out.on_s3:
            _check_prefix(out, overwrite, tag)
        else:
            _check_folder(_path(out), overwrite)


def _check_folder(out: Path, overwrite: bool) -> None:
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise InputError(f"{out}: exists already; choose another --out, or replace prepared data with --overwrite")
    if out.is_symlink() or not out.is_dir():
        raise InputError(
            f"{out}: is not a folder of prepared data, so --overwrite does not replace it; choose another --out"
        )
    try:
        read_manifest(Folder(out))
    except InputError as error:
        raise InputError(
            f"{out}: holds no prepared data, so --overwrite does not replace it; choose another --out ({error})"
        ) from None
    _check_foreign(str(out), {entry.name for entry in out.iterdir()} - _OUR_ENTRIES)


def _check_prefix(out: Folder, overwrite: bool, tag: str) -> None:
    found = {name for name in out.sizes() if not tag or tag not in name}
    if not found:
        return
    if not overwrite:
        state = "exists already" if FILE_NAME in found else "holds files that another preparation left or is writing"
        raise InputError(f"{out.uri}: {state}; choose another --out, or replace it with --overwrite")
    if FILE_NAME in found:
        read_manifest(out)
    _check_foreign(
        out.uri, {name for name in found if name not in (FILE_NAME, JOURNAL) and not _OUR_OBJECTS.fullmatch(name)}
    )


def _check_foreign(out: str, foreign: set[str]) -> None:
    if foreign:
        raise InputError(
            f"{out}: holds '{min(foreign)}', which --overwrite would delete; move it, or choose another --out"
        )


@contextmanager
def staged_output(out: str | os.PathLike[str], overwrite: bool, work: Path | None = None) -> Iterator[Staged]:
    """Stage a dataset to write at ``out``, a path or URI; nothing of it remains unless it is published.

    Temporary files go to a new folder in ``work``; by default next to a local ``out``, else to the system's folder of
    temporary files.

    Raises:
        InputError: ``out`` exists and may not be replaced, or it or ``work`` cannot be written.
    """
    folder = Folder(out)
    check_free(folder, overwrite)
    with ExitStack() as stack:
        # Entered first, so that it is removed last: a folder created for ``out`` may lie in it.
        own = stack.enter_context(_work_folder(work)) if work is not None or folder.on_s3 else None
        if folder.on_s3:
            assert own is not None
            yield stack.enter_context(_stage_on_s3(folder, overwrite, own))
        else:
            yield stack.enter_context(_stage_locally(folder, overwrite, own))


@contextmanager
def _work_folder(parent: Path | None) -> Iterator[Path]:
    try:
        work = Path(tempfile.mkdtemp(prefix="crossfade-prepare-", dir=parent))
    except OSError as error:
        raise InputError(
            f"--work-dir {parent}: cannot be written: {error.strerror or error}; choose another"
        ) from error
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _stage_locally(out: Folder, overwrite: bool, work: Path | None) -> Iterator[Staged]:
    target = _path(out).absolute()
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    created = [parent for parent in partial.parents if not parent.exists()]
    inner = partial.with_name(f"{partial.name}{_WORK_SUFFIX}")
    try:
        for folder in (partial, inner):
            if folder.exists():
                shutil.rmtree(folder)
        partial.mkdir(parents=True)
        if work is None:
            inner.mkdir()
    except OSError as error:
        _remove(partial, created)
        raise InputError(
            f"{partial.parent}: cannot be written: {error.strerror or error}; choose another --out"
        ) from error
    try:
        yield Staged(out, overwrite, Folder(partial), work or inner, "")
    except BaseException:
        shutil.rmtree(inner, ignore_errors=True)
        _remove(partial, created)
        raise
    shutil.rmtree(inner, ignore_errors=True)


def _remove(partial: Path, created: list[Path]) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    for parent in created:
        try:
            parent.rmdir()
        except OSError:
            return  # never created, or in use by something else by now


def _swap(partial: Path, out: Path) -> None:
    if not os.path.lexists(out):
        partial.rename(out)
        return
    old = out.with_name(f"{out.name}.old-{os.getpid()}")
    out.rename(old)
    try:
        partial.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old)


@contextmanager
def _stage_on_s3(out: Folder, overwrite: bool, work: Path) -> Iterator[Staged]:
    tag = f"-{uuid.uuid4().hex[:12]}"
    with translate_storage_errors(f"--out {out.uri}", unreachable=InputError):
        out.check_bucket()
        out.write(_PROBE + tag, b"")
        out.remove(_PROBE + tag)
    try:
        yield Staged(out, overwrite, out, work, tag)
    except BaseException:
        if not _is_published(out, tag):
            _delete_tagged(out, tag)
        raise


def _is_published(out: Folder, tag: str) -> bool:
    """Return whether the manifest was written, so that the error came after it."""
    try:
        return tag.encode() in out.read(FILE_NAME)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # unknown: leftover files are better than a dataset that lacks files


def _delete_tagged(out: Folder, tag: str) -> None:
    with suppress(OSError):  # the error that ended the preparation is reported, and is most likely the same
        for name in out.sizes():
            if tag in name:
                out.remove(name)


def _path(folder: Folder) -> Path:
    assert folder.path is not None
    return folder.path
