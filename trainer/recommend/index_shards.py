"""Build an index in shards: each adds the vectors of its rows to the same lists, and merging puts the files together.

    index_shard(model, options, Shard(2, 16), reporter)
    card = merge_index(model, options, reporter)        # once all shards are complete

    OUT/_shards/lists.npz                   the lists, without vectors, and the length of the longest vector
    OUT/_shards/00002-of-00016.faiss        the lists with the vectors of a shard
    OUT/_shards/00002-of-00016.json         see trainer/runs/shards.py

The first shard that finds no lists makes them, from the sample that a whole index would take; the others use its file.
So the merged index is that of one process. A process holds the vectors of one shard, as they are stored; merging holds
none, and replaces the shards by the files of the index.

Shapes: N rows, R rows of the entity.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from crossfade.base.errors import InputError, Option, OptionError, format_names
from crossfade.base.io.checksums import FileChecksum, verify_files
from crossfade.base.io.disk_errors import TEMPORARY_ADVICE, full_disk_errors
from crossfade.base.io.folder import Folder, OutputFile
from crossfade.base.io.s3 import ChangedError
from crossfade.base.io.temporary_folder import temporary_folder
from crossfade.trainer.data.manifest import data_fingerprint
from crossfade.trainer.data.parquet import storage_errors_of
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.embeddings.files import staged_export
from crossfade.trainer.recommend.faiss_lists import VectorLists, load_faiss, write_merged
from crossfade.trainer.recommend.index_build import Indexing, measure
from crossfade.trainer.recommend.index_folder import CARD_FILE, INDEX_FILE, ROWS_FILE, IndexCard, parse_card
from crossfade.trainer.recommend.options import IndexOptions
from crossfade.trainer.recommend.trained_model import TrainedModel
from crossfade.trainer.runs.options import Shard
from crossfade.trainer.runs.shards import LISTED_BY_SHARD, SHARDS_FOLDER, Result, ShardFolder, shard_errors

_LISTS_FILE = "lists.npz"


class _SharedLists(NamedTuple):
    """The lists that all shards fill: the CRC-32 of their file, and its content."""

    crc32: int
    content: bytes
    longest: float


def index_shard(model: TrainedModel, options: IndexOptions, shard: Shard, reporter: ProgressReporter) -> int:
    """Write the vectors of ``shard`` to the folder ``out``, unless they are there; return how many they are.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        CrossfadeError: the folder cannot be written.
        InputError: the model has no vectors of the entity, or too few, or the folder has an index or shards of another
            request.
        MissingExtraError: FAISS is not installed.
        StorageUnavailableError: storage does not answer.
    """
    load_faiss("crossfade index")
    out, indexing = Folder(options.out), Indexing.of(model, options, reporter)
    _check_unfinished(out)
    shards, parts = ShardFolder(out, "index", _made_from(indexing)), out.child(SHARDS_FOLDER)
    found, part = shards.begin(shard), shard.part(indexing.table.rows)
    with shard_errors(out):
        shared, sizes = _read_lists(parts), parts.sizes()
    if found is None or shared is None or found["lists"] != shared.crc32 or sizes.get(found["file"]) != found["bytes"]:
        shared = shared or _write_lists(indexing.find_lists(), out)
        lists = VectorLists.of_content(shared.content, indexing.kind, shared.longest)
        indexing.add(lists, indexing.indexed_R, part)
        name = f"{shards.name(shard)}.faiss"
        with shard_errors(out), parts.open_output(name) as file:
            written = _Checksummed(file)
            lists.write_to(written)
        rows = int(np.count_nonzero(indexing.indexed_R[part]))
        of_file = {"file": name, "bytes": written.bytes, "crc32": written.crc32}
        found = {"rows": rows, "lists": shared.crc32, **of_file}
        shards.complete(shard, found)
    return int(found["rows"])


def merge_index(model: TrainedModel, options: IndexOptions, reporter: ProgressReporter) -> IndexCard:
    """Verify that the folder ``out`` has all shards, whole, replace them by the index, and return its card.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        CrossfadeError: the folder, or the one for temporary files, cannot be written.
        InputError: a shard is missing, incomplete, damaged, or of another request or other lists.
        MissingExtraError: FAISS is not installed.
        StorageUnavailableError: storage does not answer.
    """
    load_faiss("crossfade index")
    out, indexing = Folder(options.out), Indexing.of(model, options, reporter)
    shards, parts = ShardFolder(out, "index", _made_from(indexing)), out.child(SHARDS_FOLDER)
    if (complete := _uploaded_card(out)) is not None and shards.discard():
        return complete
    results = shards.results()
    _check_unfinished(out)
    with shard_errors(out):
        shared = _read_lists(parts)
    if shared is None or (other := [result["file"] for result in results if result["lists"] != shared.crc32]):
        found = f"of other lists: {format_names(other)}" if shared else f"without {_LISTS_FILE}"
        raise OptionError("merge", problem=f"{out.uri} has shards {found}", fix="repeat these shards")
    if out.path is not None:
        with staged_export(out.path, lambda: _check_unfinished(out)) as folder:
            return _merge(indexing, options.recall, shared, parts, results, folder)
    with temporary_folder("index") as work:
        copies, folder = Folder(work).child(SHARDS_FOLDER), Path(work, "index")
        folder.mkdir()
        for name in (result["file"] for result in results):
            with storage_errors_of(parts, name, LISTED_BY_SHARD), full_disk_errors(work, TEMPORARY_ADVICE):
                copies.take_over(name, parts, name)
        with full_disk_errors(work, TEMPORARY_ADVICE):
            card = _merge(indexing, options.recall, shared, copies, results, folder)
        with shard_errors(out):
            for name in (*card.files, CARD_FILE):
                out.take_over(name, Folder(folder), name)
            parts.delete()
    return card


def _merge(
    indexing: Indexing, recall: float, shared: _SharedLists, parts: Folder, results: Sequence[Result], folder: Path
) -> IndexCard:
    """Merge the files of ``results`` in the local folder ``parts`` to an index in ``folder``."""
    assert parts.path is not None, "files are mapped"
    start = time.perf_counter()
    listed = {result["file"]: FileChecksum(bytes=result["bytes"], crc32=result["crc32"]) for result in results}
    verify_files(parts.path, listed, "its shard", LISTED_BY_SHARD.fix)
    write_merged(shared.content, [parts.path / name for name in listed], folder / INDEX_FILE)
    lists = VectorLists.read(folder / INDEX_FILE, indexing.kind)
    seconds = time.perf_counter() - start
    return indexing.write_card(folder, lists, measure(indexing, lists, recall), seconds)


def _made_from(indexing: Indexing) -> dict[str, Any]:
    """Return what shards depend on, as JSON."""
    rows_N = np.flatnonzero(indexing.indexed_R)
    return {
        "vectors": indexing.model.fingerprint,
        "data": data_fingerprint(indexing.model.data),
        "entity": indexing.table.name,
        "rows": [len(rows_N), zlib.crc32(rows_N.tobytes())],
        "options": asdict(indexing.kind),
    }


def _check_unfinished(out: Folder) -> None:
    """Check that there is nothing but shards in ``out``, and what an interrupted merge has written to S3: no card.

    Raises:
        OptionError: there is.
    """
    with shard_errors(out):
        names = set(out.names())
    if out.on_s3 and SHARDS_FOLDER in names and CARD_FILE not in names:
        names -= {INDEX_FILE, ROWS_FILE}
    names -= {SHARDS_FOLDER}
    if names:
        problem, fix = f"holds more than shards: {format_names(sorted(names))}", ("choose another ", Option("out"))
        raise OptionError("out", found=out.uri, problem=problem, fix=fix)


def _uploaded_card(out: Folder) -> IndexCard | None:
    """Return the card in ``out`` if it is on S3, where a merge writes it last, and then deletes the shards.

    Raises:
        InputError: the card is damaged.
    """
    with shard_errors(out):
        if not (out.on_s3 and out.exists(CARD_FILE)):
            return None
        return parse_card(out.read(CARD_FILE), f"{out.uri}/{CARD_FILE}")


def _read_lists(parts: Folder) -> _SharedLists | None:
    """Return the lists in ``parts``, if there are any.

    Raises:
        InputError: the file is damaged.
    """
    if not parts.exists(_LISTS_FILE):
        return None
    content = parts.read_version(_LISTS_FILE).data
    try:
        with np.load(BytesIO(content), allow_pickle=False) as found:
            return _SharedLists(zlib.crc32(content), found["index"].tobytes(), float(found["longest"]))
    except (BadZipFile, KeyError, OSError, ValueError) as error:
        raise InputError(f"{parts.uri}/{_LISTS_FILE}: is damaged; delete it, and repeat all shards") from error


def _write_lists(lists: VectorLists, out: Folder) -> _SharedLists:
    """Write ``lists``, unless another shard has been faster; return those that are there."""
    content, parts = BytesIO(), out.child(SHARDS_FOLDER)
    np.savez(content, index=np.frombuffer(lists.content(), np.uint8), longest=lists.longest)
    with shard_errors(out):
        with suppress(ChangedError):
            parts.write_over(_LISTS_FILE, content.getvalue(), None)
        found = _read_lists(parts)
    assert found is not None, "one of the shards has written them"
    return found


class _Checksummed:
    """A file that is written, with the size and the CRC-32 of what has been written."""

    def __init__(self, file: OutputFile) -> None:
        self._file = file
        self.bytes = self.crc32 = 0

    def write(self, data: Any, /) -> int:
        """Write all of ``data``."""
        self.bytes, self.crc32 = self.bytes + len(data), zlib.crc32(data, self.crc32)
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]
        return len(data)
