"""Open a version: a model that answers from a copy of all that it needs, in files that are mapped into memory.

    with closing(open_version(folder)) as version:              # of write_version
        rankings = version.model.recommend(np.array([5]), RecommendOptions())

Shapes: Q queries, N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossfade.base.arrays import IntArray
from crossfade.base.errors import InputError, OptionError
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.split_names import ALL_SPLITS, SplitName
from crossfade.trainer.recommend.candidates import Candidates
from crossfade.trainer.recommend.history import Histories, map_histories
from crossfade.trainer.recommend.model import Model
from crossfade.trainer.recommend.options import FilterOptions, RankingOptions, RecommendOptions
from crossfade.trainer.recommend.row_names import RowLookup
from crossfade.trainer.recommend.trained_model import TrainedModel
from crossfade.trainer.recommend.vector_index import VectorIndex, open_built_index
from crossfade.trainer.serving.names import StoredNames
from crossfade.trainer.serving.served_metadata import ServedMetadata
from crossfade.trainer.serving.version_folder import (
    DATA,
    HISTORIES,
    METADATA,
    NAMES,
    VersionCard,
    index_folder,
    open_card,
    open_copy,
)


@dataclass(frozen=True)
class VersionFiles:
    """Reads a version. Metadata and indexes are of the items alone."""

    trained: TrainedModel
    stored_names: Mapping[str, StoredNames]
    stored: Histories
    metadata: ServedMetadata
    indexes: Mapping[ScoreKind, VectorIndex]

    def names(self, entity: str) -> RowLookup:
        """Return the IDs and names of ``entity``."""
        return self.stored_names[entity]

    def histories(self, rows_Q: IntArray, splits: Sequence[SplitName], reporter: ProgressReporter) -> Histories:
        """Return the histories of ``rows_Q``, which a version has from all splits together.

        Raises:
            OptionError: ``splits`` are others.
        """
        if not set(self.trained.manifest.splits) <= set(splits):
            every = " ".join(ALL_SPLITS)
            raise OptionError("exclude", found=" ".join(splits), expected=f"all splits, {every}, or none")
        return self.stored.take(rows_Q)

    def candidates(self, entity: str, options: FilterOptions) -> Candidates:
        """Return the items that meet the condition of ``options``, and their groups.

        Raises:
            InputError: the condition or the column is invalid, or ``entity`` has no metadata.
        """
        rows, item = self.trained.manifest.entities[entity].rows, self.trained.spec.item.name
        if entity != item and (options.where is not None or options.group_limit is not None):
            raise InputError(f"where and max_per: expected the entity '{item}', but found '{entity}'")
        kept_R = np.ones(rows, np.bool_) if options.where is None else self.metadata.rows_where(options.where)
        if options.group_limit is None:
            return Candidates(kept_R)
        return Candidates(kept_R, self.metadata.groups(options.group_limit[0]), options.group_limit[1])

    def index(self, entity: str, metric: ScoreKind, options: RankingOptions) -> VectorIndex | None:
        """Return the index of the items by ``metric``, if the version has it."""
        return self.indexes.get(metric) if entity == self.trained.spec.item.name else None


@dataclass(frozen=True)
class Version:
    """An open version.

    Attributes:
        card: what it was copied from.
        model: answers from it.
        names: by entity, its IDs and names, to search.
        metadata: evaluates filters, which requests do before they ask the model.
    """

    card: VersionCard
    model: Model
    names: Mapping[str, StoredNames]
    metadata: ServedMetadata

    def warm_up(self) -> None:
        """Answer one request of each kind, so that the first of a client finds all loaded."""
        self.metadata.rows_where("true")
        some_Q = np.flatnonzero(self.model.trained_rows(self.model.query))[:1]
        for options in (RecommendOptions(), RecommendOptions(diversity=0.5)):
            self.model.recommend(some_Q, options)

    def close(self) -> None:
        """Close the metadata; other files are closed when nothing refers to them."""
        self.metadata.close()


def open_version(folder: Path) -> Version:
    """Open the version in ``folder``.

    Raises:
        InputError: it is damaged or cannot be read.
        MissingExtraError: it has an index, and FAISS is not installed.
    """
    card = open_card(folder)
    trained = open_copy(folder, card.model, card.fingerprint)
    item, path = trained.spec.item, folder / METADATA
    metadata = ServedMetadata(path, folder / DATA, item.name, item.rows, has_file=card.has_metadata)
    indexes: dict[ScoreKind, VectorIndex] = {}
    names = {table.name: StoredNames(folder / NAMES, table.name) for table in trained.spec.vectors}
    model = Model(trained, VersionFiles(trained, names, map_histories(folder / HISTORIES), metadata, indexes))
    for metric in card.indexes:
        indexes[metric] = open_built_index(index_folder(folder, metric), model.trained_rows(item.name))
    model.prepare()
    return Version(card, model, names, metadata)
