"""Staged embeddings: the best so far of a run without a shared run folder, stored with its checkpoints.

    CHECKPOINTS/embeddings/  embeddings.json  epoch-000005/{embeddings.json,ENTITY/rows-000000000000.parquet}

    staged = StagedEmbeddings("s3://music/runs/lastfm/checkpoints")
    staged.stage(store, model.vectors, vocabularies, epoch=5, scratch=Path("/tmp/embeddings"))
    staged.fetch(run / "embeddings")

They are accessible to all workers, and to a run that resumes on another machine. The list of files is written last: if
all of them exist with the sizes it states, the embeddings are complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from crossfade.base.io.folder import Folder
from crossfade.base.io.replacing import replace_folder
from crossfade.base.json_text import validate_json
from crossfade.kvstore.store import RowStore, TableSpec
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.embeddings.files import StoreVectors, VectorSource, partial_folder, write_table
from crossfade.trainer.embeddings.listing import write_listing
from crossfade.trainer.embeddings.popularity import PopularityTerm, write_term

LIST_FILE = "embeddings.json"
_CHUNK_BYTES = 8 << 20
_STAGED = r"^([A-Za-z0-9_-]{1,100}/rows-[0-9]{12,18}\.parquet|embeddings\.json|popularity\.parquet)$"


class _Listing(BaseModel):
    """The list of files. Names are those that ``stage`` gives: others might lead out of the folder."""

    model_config = ConfigDict(extra="forbid")

    epoch: Annotated[int, Field(ge=0)]
    folder: Annotated[str, Field(pattern=r"^epoch-[0-9]{6,18}$")]
    files: dict[Annotated[str, Field(pattern=_STAGED)], int]


class StagedEmbeddings:
    """The staged embeddings of one run."""

    def __init__(self, checkpoints: str) -> None:
        """Use the folder next to the checkpoints in ``checkpoints``, a path or URI."""
        self._folder = Folder(checkpoints).child("embeddings")

    def stage(
        self,
        store: RowStore,
        tables: Sequence[TableSpec],
        vocabularies: dict[str, Vocabulary],
        epoch: int,
        scratch: Path,
        source: VectorSource | None = None,
    ) -> None:
        """Stage the vectors of ``tables`` after ``epoch``, and replace the previous ones when all are stored.

        Every worker calls it and uploads its part.

        Args:
            store: coordinates the workers.
            tables: what to write.
            vocabularies: IDs and names of the rows of each table.
            epoch: the epoch that the vectors are of.
            scratch: a local folder of this worker, which is deleted afterwards.
            source: provides the vectors; by default, the store.

        Raises:
            OSError: storage cannot be written.
        """
        name = f"epoch-{epoch:06d}"
        if store.rank == 0:
            self._folder.child(name).delete()
        store.barrier()
        shutil.rmtree(scratch, ignore_errors=True)
        source = source or StoreVectors(store)
        try:
            for table in tables:
                write_table(scratch, source, table, vocabularies[table.name], rank=store.rank, workers=store.workers)
            for path in sorted(scratch.rglob("*.parquet")):
                self._upload(path, self._folder.child(name).child(path.parent.name))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        store.barrier()
        if store.rank == 0:
            write_listing(self._folder.child(name))
            self._list_files(epoch, name)
            for earlier in self._folder.names():
                if earlier not in {name, LIST_FILE}:
                    self._folder.child(earlier).delete()

    def write_term(self, term: PopularityTerm | None) -> None:
        """Add the popularity term to the embeddings that are staged. One worker calls it.

        Raises:
            OSError: there are none, or storage cannot be written.
        """
        listing = self._require_list()
        write_term(self._folder.child(listing.folder), term)
        self._list_files(listing.epoch, listing.folder)

    def _list_files(self, epoch: int, name: str) -> None:
        files = self._folder.child(name).sizes()
        self._folder.write(LIST_FILE, json.dumps({"epoch": epoch, "folder": name, "files": files}).encode())

    @staticmethod
    def _upload(path: Path, folder: Folder) -> None:
        with path.open("rb") as source, folder.open_output(path.name) as target:
            while chunk := source.read(_CHUNK_BYTES):
                view = memoryview(chunk)
                while view:  # a local file may accept fewer bytes than offered
                    view = view[target.write(view) or len(view) :]

    def epoch(self) -> int | None:
        """Return the epoch whose embeddings are staged; None if there are none, or they are incomplete.

        Raises:
            OSError: storage cannot be read.
        """
        listing = self._list()
        if listing is None or self._folder.child(listing.folder).sizes() != listing.files:
            return None
        return listing.epoch

    def folder(self) -> Folder:
        """Return the folder of the staged embeddings.

        Raises:
            FileNotFoundError: there are none.
        """
        return self._folder.child(self._require_list().folder)

    def fetch(self, folder: Path) -> None:
        """Copy the embeddings to ``folder``, and replace its previous content when all are copied.

        Raises:
            OSError: there are none, or a file system cannot be read or written.
        """
        listing, staging = self._require_list(), partial_folder(folder)
        source = self._folder.child(listing.folder)
        shutil.rmtree(staging, ignore_errors=True)
        for path in listing.files:
            (staging / path).parent.mkdir(parents=True, exist_ok=True)
            file = source.open_random(path)
            buffer = bytearray(_CHUNK_BYTES)
            try:
                with (staging / path).open("wb") as target:
                    while count := file.readinto(buffer):
                        target.write(memoryview(buffer)[:count])
            finally:
                file.close()
        replace_folder(folder, staging)

    def _require_list(self) -> _Listing:
        listing = self._list()
        if listing is None:
            raise FileNotFoundError(f"{self._folder.uri}/{LIST_FILE}: no embeddings are staged there")
        return listing

    def _list(self) -> _Listing | None:
        try:
            return validate_json(_Listing, self._folder.read(LIST_FILE))
        except (FileNotFoundError, ValueError):
            return None
