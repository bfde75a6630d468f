"""Select the candidates: the rows of an entity that may be recommended, by IDs and by a condition on their metadata.

    options = FilterOptions(where="year > 1990", metadata=MetadataFile("songs.csv"), max_per=("artist", 2))
    candidates = select_candidates(model.data, model.manifest, "track", options, model.counts)
    candidates.kept_R, candidates.groups

A condition is an SQL expression of DuckDB over the columns that ``metadata_table.py`` lists.

Shapes: R rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from crossfade.base.arrays import BoolArray, IntArray
from crossfade.base.errors import InputError, format_names
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.prepare.id_list import read_ids
from crossfade.trainer.recommend.metadata_table import GroupLists, MetadataFile, open_metadata
from crossfade.trainer.recommend.row_names import RowNames


@dataclass(frozen=True)
class FilterOptions:
    """Which rows may be recommended.

    Attributes:
        where: an SQL condition; None: no condition.
        metadata: a file with further columns; None: only those of the dataset.
        allow: files of IDs, the only ones to keep; empty: all.
        deny: files of IDs to leave out.
        max_per: the column of a group, such as an artist, and the most rows of a group in one list; None: no limit.
    """

    where: str | None = None
    metadata: MetadataFile | None = None
    allow: Sequence[str] = ()
    deny: Sequence[str] = ()
    max_per: tuple[str, int] | None = None

    @property
    def columns_used(self) -> set[str]:
        """Words that may name a column."""
        words = set(re.findall(r"\w+", self.where or ""))
        return words | {self.max_per[0]} if self.max_per else words


@dataclass(frozen=True)
class Candidates:
    """The rows that may be recommended.

    Attributes:
        kept_R: which rows, bool (R,).
        groups: the groups of each row; None without a limit.
        max_per_group: the most rows of a group in one list.
    """

    kept_R: BoolArray
    groups: GroupLists | None = None
    max_per_group: int = 0


def select_candidates(
    data: Folder, manifest: DatasetManifest, entity: str, options: FilterOptions, counts: Callable[[str], IntArray]
) -> Candidates:
    """Select the rows of ``entity`` that ``options`` keep. Vacant rows are left out.

    ``counts`` returns the interactions of each row in train, if a condition is about them.

    Raises:
        InputError: a file cannot be read, a column is missing, the condition is invalid, or no row is left.
        StorageUnavailableError: storage does not answer.
    """
    vocabulary = Vocabulary(data, manifest, entity)
    kept_R = np.ones(vocabulary.rows, np.bool_)
    kept_R[manifest.entities[entity].vacant_rows] = False
    names = RowNames(vocabulary, entity)
    if options.allow:
        allowed_R = np.zeros(vocabulary.rows, np.bool_)
        for file in options.allow:
            allowed_R[_rows_in(file, names, entity)] = True
        kept_R &= allowed_R
    for file in options.deny:
        kept_R[_rows_in(file, names, entity)] = False
    groups = None
    if options.where is not None or options.max_per is not None:
        with open_metadata(data, manifest, entity, options.metadata, options.columns_used, counts) as table:
            if options.where is not None:
                kept_R &= table.rows_where(options.where)
            if options.max_per is not None:
                groups = table.groups(options.max_per[0])
    if not kept_R.any():
        raise InputError(f"the filters leave no {entity}: relax --where, --allow, or --deny")
    return Candidates(kept_R, groups, options.max_per[1] if options.max_per else 0)


def _rows_in(file: str, names: RowNames, entity: str) -> IntArray:
    """Return the rows of the IDs in ``file``; IDs without a row have no effect, but one must have one."""
    ids = read_ids(file, None, entity)
    rows_N, missing = names.rows_of(ids)
    if not len(rows_N):
        raise InputError(f"{file}: none of its {len(missing)} IDs is one of {entity}: {format_names(missing[:3])}")
    return rows_N
