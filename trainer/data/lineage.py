"""Read the interactions of a dataset together with the earlier ones that it carries.

    with closing(LineageReader(folder, manifest)) as lineage:
        for interactions in lineage.read_known(["train", "valid"]):     # the earliest first
            interactions.query_N, interactions.item_N

A dataset of ``prepare`` with a base trains on new events only, but customers have heard music before: whatever treats
interactions as history, exclusions, or popularity reads them here. Earlier interactions are files of the dataset, in
its rows, and those of IDs that were forgotten or have expired are not among them (``trainer/prepare/earlier.py``).

Shapes: N interactions, R rows of an entity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from crossfade.base.arrays import IntArray
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import DataFile, DatasetManifest, Split
from crossfade.trainer.data.reader import DEFAULT_READER_THREADS, InteractionReader, Interactions
from crossfade.trainer.data.split_names import ALL_SPLITS
from crossfade.trainer.data.vocabulary import Vocabulary


class LineageReader:
    """Reads the interactions and counts of a dataset, earlier ones included."""

    def __init__(self, folder: Folder, manifest: DatasetManifest, threads: int = DEFAULT_READER_THREADS) -> None:
        """Read the dataset in ``folder`` with up to ``threads`` threads. Nothing is read yet."""
        self.folder, self.manifest = folder, manifest
        self.own = InteractionReader(folder, manifest, threads)
        self._earlier = dict(manifest.earlier)

    def skip_known(self, known: DatasetManifest) -> bool:
        """Leave out the interactions of the earlier dataset ``known``; return False if files of it were rewritten.

        ``known`` is one that this dataset extends. Its files are the first of the earlier ones of each split.
        """
        rest = {}
        for name in ALL_SPLITS:
            earlier = _files([self._earlier.get(name)])
            before = _files([known.earlier.get(name), known.splits.get(name)])
            if [file.content for file in earlier[: len(before)]] != [file.content for file in before]:
                return False
            rest[name] = Split(files=earlier[len(before) :])
        self._earlier = rest
        return True

    def read_train(self, *, timestamps: bool = False) -> Iterator[Interactions]:
        """Yield the train interactions, the earliest first, one row group at a time.

        Raises:
            InputError: a file is missing or corrupt.
            StorageUnavailableError: storage does not answer.
        """
        yield from self._read(self._chosen(["train"], ["train"]), timestamps)

    def read_known(self, splits: Sequence[str], *, timestamps: bool = False) -> Iterator[Interactions]:
        """Yield what was known before: ``splits`` of this dataset, and all earlier interactions, which lie in the past.

        Without ``splits``, nothing is known. Raises as ``read_train`` does.
        """
        yield from self._read(self._chosen(ALL_SPLITS if splits else (), splits), timestamps)

    def known_rows(self, splits: Sequence[str]) -> int:
        """Return how many interactions ``read_known`` reads."""
        return sum(split.rows for split in self._chosen(ALL_SPLITS if splits else (), splits))

    def train_rows(self) -> int:
        """Return how many interactions ``read_train`` reads."""
        return sum(split.rows for split in self._chosen(["train"], ["train"]))

    def counts(self, entity: str) -> IntArray:
        """Return how often each row has occurred in train with a positive weight: int64 (R,).

        Interactions with an ID of the other side that has expired since count.
        """
        return Vocabulary(self.folder, self.manifest, entity).total_counts()

    def close(self) -> None:
        """Stop the threads."""
        self.own.close()

    def _chosen(self, earlier: Sequence[str], own: Sequence[str]) -> list[Split]:
        """Return the ``earlier`` splits, then the ``own`` ones, in the order of the manifest."""
        chosen = [split for name, split in self._earlier.items() if name in earlier]
        return chosen + [split for name, split in self.manifest.splits.items() if name in own]

    def _read(self, splits: Sequence[Split], timestamps: bool) -> Iterator[Interactions]:
        for split in splits:
            yield from self.own.read_all(split, (), timestamps=timestamps and self.manifest.has_timestamp)


def _files(splits: Sequence[Split | None]) -> list[DataFile]:
    return [file for split in splits if split is not None for file in split.files]
