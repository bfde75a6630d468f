"""Windows of time of a dataset, and the datasets that are cut from it for them.

    source = WindowSource(folder, manifest, read_by_time(folder, manifest, splits))
    windows = cut_windows(source.interactions, windows=10, first=0.5, queries=1892)
    source.write(windows[0], Path("window"))                        # its past is train, the window is test

Shapes: N interactions, W windows, R rows of the query entity.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.errors import OptionError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.column_names import TIMESTAMP, WEIGHT
from crossfade.trainer.data.manifest import DataFile, DatasetManifest
from crossfade.trainer.data.reader import InteractionReader, Interactions, concatenate
from crossfade.trainer.data.split_names import ALL_SPLITS, SplitName
from crossfade.trainer.prepare.hold_out import DEFAULT
from crossfade.trainer.prepare.option_values import EntityColumn, FeatureFile
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.pipeline import prepare


@dataclass(frozen=True)
class Window:
    """A window: what it is cut from, and what is judged.

    Attributes:
        number: its place in time, from 1.
        since: its first timestamp.
        until: the first timestamp after it.
        past: interactions before it, which are the first so many.
        end: interactions to its end.
        new_queries: queries of the window that have no past, and are left out.
    """

    number: int
    since: int
    until: int
    past: int
    end: int
    new_queries: int

    @property
    def name(self) -> str:
        """Return the name of its files."""
        return f"window-{self.number:02}"


def cut_windows(interactions: Interactions, windows: int, first: float, queries: int) -> list[Window]:
    """Cut ``interactions``, ordered by time, of ``queries`` rows: ``windows`` of equal size after a share of ``first``.

    Raises:
        InputError: there are no interactions, or a window has no query with a past.
    """
    total, timestamp_N = len(interactions), interactions.timestamp_N
    if not total:
        raise OptionError("splits", problem="they have no interaction", fix="name others")
    assert timestamp_N is not None
    places_W1 = np.linspace(first * total, total, windows + 1).astype(np.int64)
    # Interactions of one time are in one window.
    begins_W = np.searchsorted(timestamp_N, timestamp_N[np.minimum(places_W1[:-1], total - 1)])
    ends_W = np.append(begins_W[1:], total)
    found = []
    for number, (past, end) in enumerate(zip(begins_W.tolist(), ends_W.tolist(), strict=True), start=1):
        known_R, seen_R = np.zeros(queries, np.bool_), np.zeros(queries, np.bool_)
        positive_N = interactions.weight_N > 0
        known_R[interactions.query_N[:past][positive_N[:past]]] = True
        seen_R[interactions.query_N[past:end][positive_N[past:end]]] = True
        if not (known_R & seen_R).any():
            raise OptionError(
                "windows",
                found=windows,
                problem=f"window {number} has no interaction of positive weight of a query that has an earlier one",
                fix="cut fewer windows, or begin them later",
            )
        since, last = int(timestamp_N[past]), int(timestamp_N[end - 1])
        until = int(timestamp_N[end]) if end < total else last + 1
        found.append(Window(number, since, until, past, end, int((seen_R & ~known_R).sum())))
    return found


def raw_paths(data: Path) -> dict[str, Path]:
    """Return the files, by split, from which the dataset ``data`` of a window is prepared."""
    return {split: data.with_name(f"{data.name}-{split}.parquet") for split in ("train", "test")}


@dataclass(frozen=True)
class WindowSource:
    """The dataset that is backtested, with its interactions ordered by time."""

    folder: Folder
    manifest: DatasetManifest
    interactions: Interactions

    def write(self, window: Window, out: Path) -> None:
        """Prepare the dataset of ``window`` in ``out``: its past, and the window as test."""
        past = self.interactions.take(slice(0, window.past))
        future = self.interactions.take(slice(window.past, window.end))
        known_N = np.isin(future.query_N, past.query_N[past.weight_N > 0])
        splits = {"train": past, "test": future.take(known_N)}
        manifest, raw = self.manifest, raw_paths(out)
        attributes = {
            kind: [
                FeatureFile(entity, self._pattern(of.files), "row", {name: "value"})
                for entity, columns in found.items()
                for name, of in columns.items()
            ]
            for kind, found in (("features", manifest.features), ("content", manifest.content))
        }
        options = PrepareOptions.of(
            **{split: [str(path)] for split, path in raw.items()},
            **attributes,
            query=EntityColumn(manifest.query),
            item=EntityColumn(manifest.item),
            weight=WEIGHT,
            timestamp=TIMESTAMP,
            context={name: name for name in manifest.context},
            hold_out_valid=DEFAULT,
            out=str(out),
            overwrite=True,
        )
        try:
            for split, path in raw.items():
                pq.write_table(self._table(splits[split]), path)
            prepare(options)
        finally:
            for path in raw.values():
                path.unlink(missing_ok=True)

    def _table(self, interactions: Interactions) -> pa.Table:
        columns = {
            self.manifest.query: interactions.query_N,
            self.manifest.item: interactions.item_N,
            WEIGHT: interactions.weight_N,
            TIMESTAMP: interactions.timestamp_N,
        }
        if interactions.context_NK is not None:
            for place, name in enumerate(self.manifest.context):
                row_N = interactions.context_NK[:, place]
                columns[name] = pa.array(row_N, mask=row_N < 0)
        return pa.table(columns)

    def _pattern(self, files: Sequence[DataFile]) -> str:
        """Return what matches ``files``, which are in one folder."""
        return f"{self.folder.uri}/{PurePosixPath(files[0].path).parent}/*.parquet"


def read_by_time(folder: Folder, manifest: DatasetManifest, chosen: Sequence[SplitName]) -> Interactions:
    """Read the interactions of the ``chosen`` splits, ordered by time, and then by their place in the files.

    Raises:
        InputError: the dataset has none of them.
    """
    splits = [manifest.splits[name] for name in ALL_SPLITS if name in chosen and name in manifest.splits]
    if not splits:
        found = ", ".join(manifest.splits)
        raise OptionError("splits", found=" ".join(chosen), problem=f"{folder.uri} has only {found}")
    with closing(InteractionReader(folder, manifest)) as reader:
        parts = [part for split in splits for part in reader.read_all(split, manifest.context, timestamps=True)]
    interactions = concatenate(parts)
    if interactions.timestamp_N is None:  # there are no parts
        return interactions
    return interactions.take(np.argsort(interactions.timestamp_N, kind="stable"))
