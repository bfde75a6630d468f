"""The shards of a result, which many processes make: what each is made from and has made, and whether all are there.

    shards = ShardFolder(Folder("s3://music/recs"), "recommend", {"vectors": ..., "options": ...})
    if shards.begin(Shard(2, 16)) is None:      # else it has been completed before
        shards.complete(Shard(2, 16), {"rows": 1_000, "files": [...]})
    shards.results()                            # of all shards, once each is complete

    OUT/_shards/00002-of-00016.json     what the shard is made from and, once it is complete, its result

An entry is written when its shard begins and, with the result, when it ends, after all that it lists. Two processes
that do the same shard, as when a scheduler has lost sight of one, write the same files. Names that begin with ``_`` are
left out by readers of folders of Parquet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from crossfade.base.errors import CrossfadeError, InputError, Option, OptionError, format_names
from crossfade.base.io.folder import Folder
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.base.json_text import validate_json
from crossfade.kvstore import __version__
from crossfade.trainer.data.manifest import DataFile
from crossfade.trainer.data.parquet import ListedIn, checked_metadata, open_parquet, storage_errors_of
from crossfade.trainer.runs.options import Shard

SHARDS_FOLDER = "_shards"
LISTED_BY_SHARD = ListedIn("its shard", "delete it, and repeat its shard")
_ENTRY = re.compile(r"(\d{5})-of-(\d{5})\.json")

Result = dict[str, Any]
"""What a shard has made, as JSON."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["crossfade-shard"]
    version: Literal[1]
    made_from: dict[str, Any]
    result: Result | None


class ShardFolder:
    """The shards of one result, in the folder that users name with ``out``."""

    def __init__(self, out: Folder, verb: str, made_from: Mapping[str, Any]) -> None:
        """Use the shards in ``out`` that ``verb`` makes from ``made_from``, all that the result depends on, as JSON."""
        self.out = out
        self._entries = out.child(SHARDS_FOLDER)
        self._made_from = json.loads(json.dumps({"verb": verb, "crossfade": __version__, **made_from}))

    def name(self, shard: Shard) -> str:
        """Return what the files of ``shard`` begin with; by name, they are in the order of the shards."""
        return f"{shard.number:05d}-of-{shard.count:05d}"

    def has_begun(self, shard: Shard) -> bool:
        """Return whether ``shard`` has begun, so that the files it has written are its own.

        Raises:
            InputError: the folder cannot be used.
        """
        with shard_errors(self.out):
            return f"{self.name(shard)}.json" in self._names()

    def begin(self, shard: Shard) -> Result | None:
        """Return the result of ``shard`` if it is complete, or write that it has begun.

        Raises:
            InputError: the folder cannot be used, or has shards of another request.
        """
        with shard_errors(self.out):
            names, own = self._names(), f"{self.name(shard)}.json"
            for name in {own} & set(names) or names[:1]:
                entry = self._read(name, shard.count)
                if name == own:
                    return entry.result
            self._write(shard, None)
            return None

    def complete(self, shard: Shard, result: Result) -> None:
        """Write what ``shard`` has made, all of whose files are written."""
        with shard_errors(self.out):
            self._write(shard, result)

    def results(self) -> list[Result]:
        """Return what all shards have made, in their order.

        Raises:
            InputError: one is missing or incomplete, or they are of another request.
        """
        with shard_errors(self.out):
            names = self._names()
            if not names:
                raise OptionError("merge", problem=f"{self.out.uri} has no shards", fix=("add ", Option("shard")))
            count = int(names[0][9:14])
            found = {name: self._read(name, count).result for name in names}
        shards = [Shard(number, count) for number in range(1, count + 1)]
        results = [found.get(f"{self.name(shard)}.json") for shard in shards]
        if missing := [shard for shard, result in zip(shards, results, strict=True) if result is None]:
            raise OptionError(
                "merge",
                problem=f"{count - len(missing)} of the {count} shards in {self.out.uri} are complete; missing are "
                f"{format_names(missing)}",
                fix=("repeat the command with ", Option("shard", missing[0])),
            )
        return [result for result in results if result is not None]

    def discard(self) -> bool:
        """Delete the shards, in whose place the result is; return whether there were any.

        Raises:
            InputError: they are of another request.
        """
        with shard_errors(self.out):
            names = self._names()
            for name in names:
                self._read(name, int(name[9:14]))
            if names:
                self._entries.delete()
        return bool(names)

    def _names(self) -> list[str]:
        return [name for name in self._entries.names() if _ENTRY.fullmatch(name)]

    def _read(self, name: str, count: int) -> _Entry:
        """Read an entry, which must be of this request, divided into ``count`` shards."""
        uri = f"{self._entries.uri}/{name}"
        try:
            entry = validate_json(_Entry, self._entries.read(name))
        except ValueError as error:
            raise InputError(f"{uri}: is no entry of a shard: {error}; delete it, and repeat its shard") from error
        check_request(self.out.uri, "holds shards", entry.made_from, {**self._made_from, "shards": count})
        return entry

    def _write(self, shard: Shard, result: Result | None) -> None:
        made_from = {**self._made_from, "shards": shard.count}
        entry = _Entry(format="crossfade-shard", version=1, made_from=made_from, result=result)
        self._entries.write(f"{self.name(shard)}.json", (json.dumps(entry.model_dump(), indent=1) + "\n").encode())


def check_files(out: Folder, files: Sequence[DataFile], *, pages: bool) -> None:
    """Check that ``files`` are whole, and the only Parquet files in and below ``out``; of ``pages``, read all.

    Raises:
        InputError: they are not.
        StorageUnavailableError: storage does not answer.
    """
    for file in files:
        with storage_errors_of(out, file.path, LISTED_BY_SHARD), closing(out.open_random(file.path)) as source:
            uri = f"{out.uri}/{file.path}"
            metadata, _ = checked_metadata(source, file, uri, LISTED_BY_SHARD)
            if pages:
                _check_pages(open_parquet(source, metadata=metadata, page_checksum_verification=True), uri)
    with shard_errors(out):
        foreign = {path for path in out.sizes() if path.endswith(".parquet")} - {file.path for file in files}
    if foreign:
        problem = f"has files that are of no shard: {format_names(sorted(foreign))}"
        raise OptionError("out", found=out.uri, problem=problem, fix="move them: readers would read them, too")


def _check_pages(file: pq.ParquetFile, uri: str) -> None:
    """Read all of ``file``, whose pages have checksums.

    Raises:
        ConnectionError: storage does not answer.
        InputError: a page is damaged.
    """
    try:
        for group in range(file.num_row_groups):
            file.read_row_group(group, use_threads=False)
    except ConnectionError:
        raise
    except (OSError, pa.ArrowException) as error:
        problem = f"is damaged: {' '.join(str(error).split()).rstrip('.')}"
        raise InputError(f"{uri}: {problem}; {LISTED_BY_SHARD.fix}") from error


def check_request(out: object, found: str, earlier: Mapping[str, Any], request: Mapping[str, Any]) -> None:
    """Reject what is ``found`` for ``out`` if it was made for an ``earlier`` request that is not ``request``.

    Raises:
        OptionError: it was.
    """
    if changed := [key for key in request if earlier.get(key) != request[key]]:
        raise OptionError(
            "out",
            found=out,
            problem=f"{found} of another request (different: {', '.join(changed)})",
            fix=("repeat that request, delete the folder, or choose another ", Option("out")),
        )


def shard_errors(out: Folder) -> AbstractContextManager[None]:
    """Return a context in which errors of storage are raised as errors of Crossfade about ``out``."""
    return translate_storage_errors(Option("out", out.uri), action="written", other=CrossfadeError)
