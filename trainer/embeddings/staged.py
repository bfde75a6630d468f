"""The best embeddings of a run whose folder is on no common file system: they lie beside its checkpoints meanwhile.

    CHECKPOINTS/embeddings/  embeddings.json  epoch-000005/ENTITY/rows-000000000000.parquet

So they are there for all workers, wherever those are, and for whoever takes the run up on another machine. The list of
what belongs to them is written last: if all its files are there, as large as it says, the embeddings are whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvstore.io.folder import Folder
from kvstore.store import RowStore, TableSpec
from trainer.data.vocabulary import Vocabulary
from trainer.embeddings.files import StoreVectors, VectorSource, replace_folder, write_table

LIST_FILE = "embeddings.json"
_PIECE_BYTES = 8 << 20


class StagedEmbeddings:
    """Those of one run."""

    def __init__(self, checkpoints: str) -> None:
        """Those beside the checkpoints in ``checkpoints``, a path or URI."""
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
        """Keep what ``store`` holds after ``epoch``, in place of what is there, once all is there.

        Called by every worker; each writes its share, into the folder ``scratch`` first, which is its own. ``source``
        gives the vectors of ``tables``, by default those that the store holds.

        Raises:
            OSError: storage cannot be written.
        """
        name = f"epoch-{epoch:06d}"
        if store.rank == 0:
            self._folder.child(name).delete()
        store.barrier()
        shutil.rmtree(scratch, ignore_errors=True)
        source = source or StoreVectors(store)
        for table in tables:
            write_table(scratch, source, table, vocabularies[table.name], rank=store.rank, workers=store.workers)
        for path in sorted(scratch.rglob("*.parquet")):
            self._put(path, self._folder.child(name).child(path.parent.name))
        shutil.rmtree(scratch)
        store.barrier()
        if store.rank == 0:
            files = self._folder.child(name).sizes()
            self._folder.write(LIST_FILE, json.dumps({"epoch": epoch, "folder": name, "files": files}).encode())
            for earlier in self._folder.names():
                if earlier not in {name, LIST_FILE}:
                    self._folder.child(earlier).delete()

    @staticmethod
    def _put(path: Path, folder: Folder) -> None:
        with path.open("rb") as source, folder.open_output(path.name) as target:
            while piece := source.read(_PIECE_BYTES):
                view = memoryview(piece)
                while view:  # a file on a file system may take fewer than all
                    view = view[target.write(view) or len(view) :]

    def epoch(self) -> int | None:
        """The epoch whose embeddings are kept; None if there are none, or not all of them.

        Raises:
            OSError: storage cannot be read.
        """
        kept = self._list()
        if kept is None or self._folder.child(kept["folder"]).sizes() != kept["files"]:
            return None
        return int(kept["epoch"])

    def folder(self) -> Folder:
        """Where they are.

        Raises:
            FileNotFoundError: there are none.
        """
        kept = self._list()
        if kept is None:
            raise FileNotFoundError(f"{self._folder.uri}/{LIST_FILE}: no embeddings are kept there")
        return self._folder.child(kept["folder"])

    def fetch(self, folder: Path) -> None:
        """Copy them to ``folder``, in place of what is there, once all is there.

        Raises:
            OSError: there are none, or a file system cannot be read or written.
        """
        source, staging = self.folder(), folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(staging, ignore_errors=True)
        for path in source.sizes():
            entity, _, name = path.rpartition("/")
            (staging / entity).mkdir(parents=True, exist_ok=True)
            file = source.child(entity).open_input(name)
            buffer = bytearray(_PIECE_BYTES)
            try:
                with (staging / path).open("wb") as target:
                    while count := file.readinto(buffer):
                        target.write(memoryview(buffer)[:count])
            finally:
                file.close()
        replace_folder(folder, staging)

    def _list(self) -> dict[str, Any] | None:
        try:
            kept: dict[str, Any] = json.loads(self._folder.read(LIST_FILE))
        except (FileNotFoundError, ValueError):
            return None
        return kept if {"epoch", "folder", "files"} <= kept.keys() else None
