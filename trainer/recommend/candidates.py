"""Select the candidates: the rows of an entity that may be listed, by IDs and by a condition on their metadata.

    options = RankingOptions.of(where="year > 1990", metadata="songs.csv", max_per=("artist", 2))
    candidates = filter_rows(model, "track", options)
    candidates.kept_R, candidates.groups

A condition is an SQL expression of DuckDB over the columns that ``metadata_table.py`` lists.

Shapes: R rows of the entity, P places in a subset, K ranks, N rows or elements of lists, D columns.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from crossfade.base.arrays import BoolArray, IntArray
from crossfade.base.errors import InputError, Option, format_names
from crossfade.base.text import counted
from crossfade.trainer.recommend.options import FilterOptions, RankingOptions
from crossfade.trainer.recommend.row_names import RowLookup, UnknownRowError
from crossfade.trainer.recommend.trained_model import TrainedModel

if TYPE_CHECKING:
    from crossfade.trainer.recommend.metadata_table import GroupLists

Filters = TypeVar("Filters", bound=FilterOptions)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidates:
    """The rows that may be listed.

    Attributes:
        kept_R: which rows, bool (R,).
        groups: the groups of each row; None without a limit.
        max_per_group: the most rows of a group in one list.
    """

    kept_R: BoolArray
    groups: GroupLists | None = None
    max_per_group: int = 0


def read_lists(options: Filters, names: RowLookup, entity: str) -> Filters:
    """Return ``options`` of the command line with the IDs of ``entity`` in place of the files that have them.

    A warning names a file of ``deny`` without an ID of ``entity``, which has no effect.

    Raises:
        InputError: a file cannot be read, or one of ``allow`` has no ID of ``entity``.
    """
    if not options.allow and not options.deny:
        return options
    from crossfade.trainer.prepare.id_list import read_ids  # by DuckDB, which takes time to import

    lists: dict[str, list[str]] = {"allow": [], "deny": []}
    for name, ids in lists.items():
        for file in getattr(options, name):
            listed = read_ids(file, None, entity).to_pylist()
            rows_N, missing = names.rows_of(listed)
            if len(rows_N):
                ids.extend(listed)
                continue
            found = f"none of its {counted(len(missing), 'ID')} is one of {entity}: {format_names(missing[:3])}"
            if name == "allow":
                raise InputError(f"{file}: {found}")
            _logger.warning(f"{file}: {found}")
    return options.model_copy(update={name: tuple(ids) for name, ids in lists.items()})


def filter_rows(model: TrainedModel, entity: str, options: FilterOptions) -> Candidates:
    """Select by the condition and the groups of ``options`` alone, from the metadata of the dataset and of a file.

    Raises:
        InputError: the metadata cannot be read, a column is missing, or the condition is invalid.
    """
    kept_R, groups = np.ones(model.vocabulary(entity).rows, np.bool_), None
    kept_R[model.manifest.entities[entity].vacant_rows] = False
    max_per = options.max_per if isinstance(options, RankingOptions) else None
    if options.where is not None or max_per is not None:
        from crossfade.trainer.recommend.metadata_table import open_metadata  # by DuckDB, too

        columns, file = set(re.findall(r"\w+", options.where or "")), options.metadata
        if max_per is not None:
            columns.add(max_per[0])
        with open_metadata(model.data, model.manifest, entity, file, columns, model.counts) as table:
            if options.where is not None:
                kept_R &= table.rows_where(options.where)
            if max_per is not None:
                groups = table.groups(max_per[0])
    return Candidates(kept_R, groups, max_per[1] if max_per else 0)


def listed_rows(names: RowLookup, entity: str, ids: Sequence[str]) -> IntArray:
    """Return the rows of the allowed ``ids``, sorted; IDs without a row have no effect.

    Raises:
        UnknownRowError: none has a row.
    """
    rows_N, missing = names.rows_of(ids)
    if not len(rows_N):
        examples = format_names(missing[:3])
        raise UnknownRowError(Option("allow"), f": none of its {len(missing)} IDs is one of {entity}: {examples}")
    return rows_N
