"""Staged embeddings: the best so far of a run without a shared run folder, stored with its checkpoints.

    CHECKPOINTS/embeddings/epoch-000005/  embeddings.json  ENTITY/rows-000000000000.parquet

    staged = StagedEmbeddings("s3://music/runs/lastfm/checkpoints")
    staged.stage(store, model.vectors, vocabularies, 5, Path("/tmp/embeddings"), source)
    staged.fetch(run / "embeddings")

They are accessible to all workers, and to a run that resumes on another machine. The list of their files is written
last: if all of them exist with the sizes it states, the embeddings are complete.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.base.io.replacing import replace_folder
from crossfade.kvstore.store import RowStore, TableSpec
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.embeddings.files import VectorSource, partial_folder, write_table
from crossfade.trainer.embeddings.listing import LISTING_FILE, read_listing, write_listing
from crossfade.trainer.embeddings.popularity import PopularityTerm, write_term

_CHUNK_BYTES = 8 << 20
_NAME = re.compile(r"epoch-([0-9]{6,18})")


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
        source: VectorSource,
    ) -> None:
        """Stage the vectors of ``tables`` after ``epoch``, and replace the previous ones when all are stored.

        Every worker calls it and uploads its part.

        Args:
            store: coordinates the workers.
            tables: what to write.
            vocabularies: IDs and names of the rows of each table.
            epoch: the epoch that the vectors are of.
            scratch: a local folder of this worker, which is deleted afterwards.
            source: provides the vectors.

        Raises:
            OSError: storage cannot be written.
        """
        name = self._child(epoch).name
        if store.rank == 0:
            self._folder.child(name).delete()
        store.barrier()
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            for table in tables:
                write_table(scratch, source, table, vocabularies[table.name], rank=store.rank, workers=store.workers)
            for path in sorted(scratch.rglob("*.parquet")):
                self._upload(path, self._folder.child(name).child(path.parent.name))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        store.barrier()
        if store.rank == 0:
            # A later epoch was of an attempt that is repeated: it goes first, since the latest counts.
            others = [other for other in self._folder.names() if other != name]
            for later in filter(name.__lt__, others):
                self._folder.child(later).delete()
            write_listing(self._folder.child(name))
            for earlier in filter(name.__gt__, others):
                self._folder.child(earlier).delete()

    def write_term(self, term: PopularityTerm | None) -> None:
        """Add the popularity term to the embeddings that are staged. One worker calls it.

        Raises:
            OSError: there are none, or storage cannot be written.
        """
        write_term(self.folder(), term)

    @staticmethod
    def _upload(path: Path, folder: Folder) -> None:
        with path.open("rb") as source, folder.open_output(path.name) as target:
            shutil.copyfileobj(source, target, _CHUNK_BYTES)

    def epoch(self) -> int | None:
        """Return the epoch whose embeddings are staged, the latest that are complete; None if there are none.

        Raises:
            OSError, StorageUnavailableError: storage cannot be read.
        """
        found = [int(match[1]) for name in self._folder.names() if (match := _NAME.fullmatch(name))]
        return max(filter(self._is_complete, found), default=None)

    def _child(self, epoch: int) -> Folder:
        return self._folder.child(f"epoch-{epoch:06d}")

    def _is_complete(self, epoch: int) -> bool:
        folder = self._child(epoch)
        try:
            listed = read_listing(folder)
        except InputError:
            return False
        sizes = folder.sizes()
        return all(sizes.get(file.path) == file.bytes for files in listed.values() for file in files)

    def folder(self) -> Folder:
        """Return the folder of the staged embeddings.

        Raises:
            FileNotFoundError: there are none.
        """
        epoch = self.epoch()
        if epoch is None:
            raise FileNotFoundError(f"{self._folder.uri}: no embeddings are staged there")
        return self._child(epoch)

    def fetch(self, folder: Path) -> None:
        """Copy the embeddings to ``folder``, and replace its previous content when all are copied.

        Raises:
            OSError: there are none, or a file system cannot be read or written.
        """
        source, staging = self.folder(), partial_folder(folder)
        shutil.rmtree(staging, ignore_errors=True)
        for path in (LISTING_FILE, *(file.path for files in read_listing(source).values() for file in files)):
            (staging / path).parent.mkdir(parents=True, exist_ok=True)
            with source.open_random(path) as file, (staging / path).open("wb") as target:
                shutil.copyfileobj(file, target, _CHUNK_BYTES)
        replace_folder(folder, staging)
