"""Read the interactions of a dataset together with those of its base datasets, which are its lineage.

    with closing(LineageReader(folder, manifest)) as lineage:
        for interactions in lineage.read_known(["train", "valid"]):     # the oldest dataset first
            interactions.query_N, interactions.item_N                   # rows of the newest dataset

A dataset of ``prepare`` with a base has only new events, but customers have heard music before: whatever treats
interactions as history, exclusions, or popularity reads them here. IDs keep their rows in the datasets that extend
theirs. Left out are interactions whose ID was forgotten or has expired since, even where a later ID has the row.

Base datasets are opened when they are first needed, and one of them is read at a time.

Shapes: N interactions, R rows of an entity.
"""

from __future__ import annotations

import logging
import os
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from crossfade.base.arrays import BoolArray, IntArray
from crossfade.base.errors import InputError, Option, StorageUnavailableError, Text
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import (
    BaseReference,
    DatasetManifest,
    Split,
    data_fingerprint,
    read_manifest,
)
from crossfade.trainer.data.reader import DEFAULT_READER_THREADS, InteractionReader, Interactions
from crossfade.trainer.data.split_names import ALL_SPLITS, SplitName
from crossfade.trainer.data.vocabulary import Vocabulary

WITHOUT_BASES = (
    "go on without it: ",
    Option("history_from_this_dataset_only"),
    " (in a job, data.history_from_this_dataset_only: true)",
)
_logger = logging.getLogger(__name__)
BEFORE_ALL = int(np.iinfo(np.int64).min)
"""The time of the interactions of a base dataset without timestamps."""


@dataclass(frozen=True)
class EarlierDataset:
    """A dataset that another one extends.

    Attributes:
        folder: where it is.
        manifest: its manifest.
        fingerprint: that of its manifest.
        index: its place in the lineage of the dataset that extends it, which ``lineage_index`` of vocabularies names.
    """

    folder: Folder
    manifest: DatasetManifest
    fingerprint: int
    index: int


def refer_to_base(base: Folder, fingerprint: int, out: Folder) -> BaseReference:
    """Return what the manifest in ``out`` says of the dataset in ``base``.

    On a file system, and in a bucket, the path is relative to ``out``, so that datasets can be moved, copied, or
    mounted elsewhere together.
    """
    location = base.uri if base.path is None else str(base.path.resolve())
    if base.path is not None and out.path is not None:
        with suppress(ValueError):  # it is on another drive
            parent = out.path.absolute().parent.resolve()
            location = Path(os.path.relpath(location, parent / out.path.name)).as_posix()
    elif _bucket(base) == _bucket(out) is not None:
        location = posixpath.relpath(base.uri, out.uri)
    return BaseReference(location=location, fingerprint=fingerprint)


def open_bases(folder: Folder, manifest: DatasetManifest, without: Text = WITHOUT_BASES) -> list[EarlierDataset]:
    """Open the base datasets of the dataset in ``folder``, the oldest first.

    ``without`` says in an error how to do without them.

    Raises:
        InputError: one is not where its successor has it, has been replaced since, or is corrupt.
        StorageUnavailableError: storage does not answer.
    """
    found: list[EarlierDataset] = []
    last, extended, index = folder, manifest, len(manifest.lineage)
    while (reference := extended.base) is not None:
        location = _base_folder(last, reference)
        with explaining_base(location, folder, without):
            base, fingerprint = read_manifest(location), data_fingerprint(location)
            # A deletion from the base dataset since changes its manifest, which then lists the fingerprint from before.
            if reference.fingerprint not in (fingerprint, *base.lineage):
                raise InputError("another dataset has replaced it since it was extended")
            if reference.fingerprint not in manifest.lineage[:index]:
                raise InputError(f"{folder.uri} does not list it in its lineage")
            for name in (manifest.query, manifest.item):
                if name not in base.entities or base.entities[name].rows > manifest.entities[name].rows:
                    raise InputError(f"its rows of {name} are not those of {folder.uri}")
        index = manifest.lineage.index(reference.fingerprint)
        found.append(EarlierDataset(location, base, fingerprint, index))
        last, extended = location, base
    if extended.base is None and "base" in extended.source:
        with explaining_base(Folder(str(extended.source["base"])), folder, without):
            raise InputError(
                f"{last.uri} was prepared by an earlier version, which did not record where it is: prepare that again"
            )
    return found[::-1]


def _base_folder(folder: Folder, reference: BaseReference) -> Folder:
    """Return the folder that the manifest in ``folder`` refers to."""
    location, bucket = reference.location, _bucket(folder)
    if "://" in location or (bucket is not None and location.startswith("/")):
        return Folder(location)
    if bucket is None:
        assert folder.path is not None
        return Folder(os.path.normpath(folder.path.resolve() / location))
    path = posixpath.normpath(posixpath.join(folder.uri.removeprefix(bucket), location))
    return Folder(f"{bucket}{path}")


def _bucket(folder: Folder) -> str | None:
    """Return the URI of the bucket of ``folder``; None on a file system."""
    return "/".join(folder.uri.split("/")[:3]) if folder.on_s3 else None


@contextmanager
def explaining_base(base: Folder, folder: Folder, without: Text) -> Iterator[None]:
    """Add to an error about the dataset in ``base`` why it is needed, and what to do."""
    try:
        yield
    except (InputError, StorageUnavailableError) as error:
        problem = error.args[0], *error.args[1:]
        if isinstance(problem[0], str):
            problem = problem[0].removeprefix(f"{base.uri}: "), *problem[1:]
        where = f"{base.uri}: cannot be used as the base dataset of {folder.uri}: "
        raise type(error)(where, problem, "; restore it there, or ", without) from error


@cache
def _warn_of_missing_history(uri: str, base: str) -> None:
    _logger.warning(f"{uri}: its history is read from this dataset only, without its base dataset {base}")


class LineageReader:
    """Reads the interactions and counts of a dataset and its base datasets, in the rows of the dataset."""

    def __init__(
        self,
        folder: Folder,
        manifest: DatasetManifest,
        threads: int = DEFAULT_READER_THREADS,
        *,
        this_dataset_only: bool = False,
        without: Text = WITHOUT_BASES,
    ) -> None:
        """Read the dataset in ``folder`` with up to ``threads`` threads; ``this_dataset_only``: without base datasets.

        ``without`` says in an error how to do without base datasets. Nothing is read yet.
        """
        self.folder, self.manifest = folder, manifest
        self.own = InteractionReader(folder, manifest, threads)
        self._threads, self._this_dataset_only, self._without = threads, this_dataset_only, without

    @cached_property
    def bases(self) -> list[EarlierDataset]:
        """The base datasets, the oldest first.

        Raises:
            InputError: one cannot be reached, or is another one than was extended.
            StorageUnavailableError: storage does not answer.
        """
        if not self._this_dataset_only:
            return open_bases(self.folder, self.manifest, self._without)
        if self.manifest.base is not None:
            _warn_of_missing_history(self.folder.uri, self.manifest.base.location)
        return []

    def read_train(self, *, timestamps: bool = False) -> Iterator[Interactions]:
        """Yield the train interactions of all datasets, the oldest dataset first, one row group at a time.

        Raises:
            InputError: a file is missing or corrupt.
            StorageUnavailableError: storage does not answer.
        """
        yield from self._read(["train"], ["train"], timestamps)

    def read_known(self, splits: Sequence[str], *, timestamps: bool = False) -> Iterator[Interactions]:
        """Yield what was known before: ``splits`` of this dataset, and all of the base datasets, which lie in the past.

        Without ``splits``, nothing is known. Raises as ``read_train`` does.
        """
        yield from self._read(ALL_SPLITS if splits else (), splits, timestamps)

    def read_splits(self, *, timestamps: bool = False) -> Iterator[tuple[SplitName, Interactions]]:
        """Yield all interactions of all datasets with their context, each part with the name of its split.

        Otherwise as ``read_train``. Interactions of a base dataset that lacks a context entity have none of it.
        """
        timestamps, context = timestamps and self.manifest.has_timestamp, self.manifest.context
        for base in self.bases:
            yield from self._read_base(base, ALL_SPLITS, timestamps, context)
        for name, split in self.manifest.splits.items():
            yield from ((name, part) for part in self.own.read_all(split, context, timestamps=timestamps))

    def known_rows(self, splits: Sequence[str]) -> int:
        """Return how many interactions ``read_known`` reads, including those it leaves out."""
        return _rows(self.manifest, splits) + sum(
            _rows(base.manifest, ALL_SPLITS if splits else ()) for base in self.bases
        )

    def train_rows(self) -> int:
        """Return how many interactions ``read_train`` reads, including those it leaves out."""
        return sum(_rows(each, ["train"]) for each in (self.manifest, *(base.manifest for base in self.bases)))

    def counts(self, entity: str) -> IntArray:
        """Return how often each row occurs in the train splits with a positive weight: int64 (R,).

        Interactions with an ID of the other side that has expired since count.
        """
        count_R = Vocabulary(self.folder, self.manifest, entity).lineage_counts()
        for base in self.bases:
            if entity in base.manifest.entities:
                with explaining_base(base.folder, self.folder, self._without):
                    earlier_R = Vocabulary(base.folder, base.manifest, entity).lineage_counts()
                count_R[: len(earlier_R)] += np.where(self._kept_rows(entity, base), earlier_R, 0)
        return count_R

    def fingerprints(self) -> list[int]:
        """Return the fingerprints of the base datasets, which change with what they hold."""
        return [base.fingerprint for base in self.bases]

    def close(self) -> None:
        """Stop the threads."""
        self.own.close()

    def _read(self, of_bases: Sequence[str], of_this: Sequence[str], timestamps: bool) -> Iterator[Interactions]:
        timestamps = timestamps and self.manifest.has_timestamp
        for base in self.bases if of_bases else ():
            yield from (part for _, part in self._read_base(base, of_bases, timestamps))
        for split in _splits(self.manifest, of_this):
            yield from self.own.read_all(split, (), timestamps=timestamps)

    def _read_base(
        self, base: EarlierDataset, names: Sequence[str], timestamps: bool, context: Sequence[str] = ()
    ) -> Iterator[tuple[SplitName, Interactions]]:
        kept_query_R, kept_item_R = (self._kept_rows(name, base) for name in (self.manifest.query, self.manifest.item))
        with (
            explaining_base(base.folder, self.folder, self._without),
            closing(InteractionReader(base.folder, base.manifest, self._threads)) as reader,
        ):
            in_base = [name for name in context if name in base.manifest.context]
            for name in (name for name in base.manifest.splits if name in names):
                split, has_timestamp = base.manifest.splits[name], base.manifest.has_timestamp
                for part in reader.read_all(split, in_base, timestamps=timestamps and has_timestamp):
                    kept = part.take(kept_query_R[part.query_N] & kept_item_R[part.item_N])
                    if timestamps and kept.timestamp_N is None:
                        kept = replace(kept, timestamp_N=np.full(len(kept), BEFORE_ALL))
                    yield name, _with_context(kept, in_base, context)

    def _kept_rows(self, entity: str, base: EarlierDataset) -> BoolArray:
        """Return which rows of ``entity`` in ``base`` have the same ID in this dataset: bool (R,)."""
        kept_R = np.ones(base.manifest.entities[entity].rows, np.bool_)
        vacant_N = np.array(self.manifest.entities[entity].vacant_rows, np.int64)
        kept_R[vacant_N[vacant_N < len(kept_R)]] = False
        if self.manifest.entities[entity].has_last_seen:
            later_N = Vocabulary(self.folder, self.manifest, entity).rows_assigned_after(base.index)
            kept_R[later_N[later_N < len(kept_R)]] = False
        return kept_R


def _with_context(part: Interactions, names: Sequence[str], context: Sequence[str]) -> Interactions:
    """Return ``part``, whose context is that of ``names``, with that of ``context``: none where it lacks one."""
    if len(names) == len(context):
        return part
    context_NK = np.full((len(part), len(context)), -1)
    if part.context_NK is not None:
        context_NK[:, [context.index(name) for name in names]] = part.context_NK
    return replace(part, context_NK=context_NK)


def _splits(manifest: DatasetManifest, names: Sequence[str]) -> list[Split]:
    return [split for name, split in manifest.splits.items() if name in names]


def _rows(manifest: DatasetManifest, names: Sequence[str]) -> int:
    return sum(split.rows for split in _splits(manifest, names))
