"""Select the candidates: the rows of an entity that may be listed, by IDs and by a condition on their metadata.

    options = RankingOptions.of(where="year > 1990", metadata="songs.csv", max_per=("artist", 2))
    candidates = filter_rows(model, "track", options)
    candidates.kept_R, candidates.groups

A condition is an SQL expression of DuckDB over the columns that ``metadata_table.py`` lists.

Shapes: R rows of the entity.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from crossfade.base.arrays import BoolArray
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.recommend.options import FilterOptions
from crossfade.trainer.recommend.trained_model import TrainedModel

Filters = TypeVar("Filters", bound=FilterOptions)


@dataclass(frozen=True)
class Candidates:
    """The rows that may be listed.

    Attributes:
        kept_R: which rows, bool (R,).
        groups: the groups of each row; None without a limit.
        max_per_group: the most rows of a group in one list.
    """

    kept_R: BoolArray
    groups: JaggedArray | None = None
    max_per_group: int = 0


def read_lists(options: Filters, entity: str) -> Filters:
    """Return ``options`` of the command line with the IDs of ``entity`` in place of the files that have them.

    Raises:
        InputError: a file cannot be read.
    """
    if not options.allow and not options.deny:
        return options
    from crossfade.trainer.prepare.id_list import read_ids  # by DuckDB, which takes time to import

    files = {"allow": options.allow, "deny": options.deny}
    ids = {
        name: [id for file in of for id in read_ids(file, None, entity, name).to_pylist()] for name, of in files.items()
    }
    return options.model_copy(update={name: tuple(found) for name, found in ids.items()})


def filter_rows(model: TrainedModel, entity: str, options: FilterOptions) -> Candidates:
    """Select by the condition and the groups of ``options`` alone, from the metadata of the dataset and of a file.

    Raises:
        InputError: the metadata cannot be read, a column is missing, or the condition is invalid.
    """
    kept_R, groups = np.ones(model.vocabulary(entity).rows, np.bool_), None
    kept_R[model.manifest.entities[entity].vacant_rows] = False
    limit = options.group_limit
    if options.where is not None or limit is not None:
        from crossfade.trainer.recommend.metadata_table import open_metadata  # by DuckDB, too

        columns, file = set(re.findall(r"\w+", options.where or "")), options.metadata
        if limit is not None:
            columns.add(limit[0])
        with open_metadata(model, entity, file, columns) as table:
            if options.where is not None:
                kept_R &= table.rows_where(options.where)
            if limit is not None:
                groups = table.groups(limit[0])[0]
    return Candidates(kept_R, groups, limit[1] if limit else 0)
