# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""The vocabularies of a preparation: those of the two sides, then those of their features, with the pairs of these.

vocabularies = Vocabularies(connection, staged, progress, base, names, files_of_names)
vocabularies.read_earlier({"customer": "query", "track": "item"}, id_types)
vocabularies.read_features(planned, ids="auto")
entity = vocabularies.of_side("item", "track", "int64", catalogue=False, watch=None)
entities, features = vocabularies.of_features()
vocabularies.facts                                                  # for the manifest
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import duckdb

from trainer.data.manifest import Entity, Feature
from trainer.data.reporter import ProgressReporter
from trainer.prepare.admission import write_pending
from trainer.prepare.database import fetch_count
from trainer.prepare.events import IdChoice, IdType
from trainer.prepare.extend import BaseDataset, carry_names, extend_vocabulary, load_base
from trainer.prepare.features import (
    FeaturePlan,
    cataloged_sql,
    counted_values_sql,
    join_feature,
    read_features,
    write_feature,
)
from trainer.prepare.fetch import fetch_files
from trainer.prepare.input_files import Source
from trainer.prepare.staging import Staged
from trainer.prepare.summary import Facts, popularity
from trainer.prepare.vocabulary_tables import (
    IdPolicy,
    NamesFile,
    Side,
    VocabularyKey,
    build_vocabulary,
    counted_sql,
    join_names,
    write_vocabulary,
)


class VocabularyBuilder:
    """Makes and writes vocabularies; ``facts`` are what there is to say of them."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        staged: Staged,
        progress: ProgressReporter,
        base: BaseDataset | None,
        names: Mapping[str, NamesFile],
        files: Mapping[str, Source],
    ) -> None:
        """Go on from ``base``, if there is one. ``names`` of entities are in ``files``."""
        self._connection = connection
        self._staged = staged
        self._progress = progress
        self._base = base
        self._names = names
        self._files = files
        self._planned: Sequence[FeaturePlan] = ()
        self._types: dict[str, IdType] = {}
        self.facts: Facts = {}

    def read_earlier(self, sides: Mapping[str, Side], id_types: Mapping[str, IdType]) -> None:
        """Make the tables ``base_query`` and ``base_item`` of the earlier data, if there are some.

        Raises:
            InputError: their ids are of another type, or a file of theirs is missing or damaged.
        """
        if self._base is not None:
            for entity, side in sides.items():
                self._base.check_id_type(entity, id_types[side])
                load_base(self._connection, self._base, side, entity, self._progress)

    def read_features(self, planned: Sequence[FeaturePlan], ids: IdChoice) -> None:
        """Read the files of the features that are ``planned``.

        Raises:
            InputError: one cannot be used.
        """
        self._planned = planned
        self._types = read_features(self._connection, planned, self._staged.work, ids, self._base, self._progress)

    def of_side(self, side: Side, entity: str, id_type: IdType, catalog: bool, watch: IdPolicy | None) -> Entity:
        """The vocabulary of the ids of ``interactions`` on one side, written, with those that wait for a row.

        With ``catalogue``, ids follow that files of features alone have.
        """
        counted = counted_sql(side)
        if catalog:
            further = cataloged_sql(self._planned, side, id_type)
            self.facts[f"{entity}_cataloged"] = fetch_count(self._connection, f"SELECT count(*) FROM ({further})")
            counted = f"{counted} UNION ALL {further}"
        self._make(side, entity, counted, watch)
        self.facts |= popularity(self._connection, side, entity)
        described = self._write(side, entity, id_type, seen=watch is not None and watch.track_last_seen)
        if watch is None or watch.admit is None:
            return described
        return described.model_copy(update={"pending": write_pending(self._connection, watch, self._staged)})

    def of_features(self) -> tuple[dict[str, Entity], dict[str, dict[str, Feature]]]:
        """The vocabularies of features, by name, and the pairs, by entity and name, of rows that ``of_side`` has made.

        Raises:
            InputError: files know none of the ids, or values are of another type than those of the earlier data.
        """
        types = self._types
        entities: dict[str, Entity] = {}
        features: dict[str, dict[str, Feature]] = {}
        for feature in self._planned:
            name = feature.name
            if self._base is not None and name in self._base.manifest.entities:
                id_type = types.setdefault(name, self._base.manifest.entities[name].id_type)
                self._base.check_id_type(name, id_type)
                load_base(self._connection, self._base, feature.role, name, self._progress)
            report = join_feature(self._connection, feature, types[name], self._base)
            self._make(feature.role, name, counted_values_sql(feature))
            entities[name] = self._write(feature.role, name, types[name])
            features.setdefault(feature.entity, {})[name] = write_feature(self._connection, feature, self._staged)
            self.facts[f"{name}_filled"] = report.filled
            self.facts[f"{name}_ids_ignored"] = report.unknown
        return entities, features

    def _make(self, role: VocabularyKey, entity: str, counted: str, watch: IdPolicy | None = None) -> None:
        """Make the table ``vocabulary_ROLE``: a fresh one or, where ``base`` has the entity, one that goes on."""
        self._progress.phase(f"vocabulary of {entity}", None, "row")
        if self._base is None or entity not in self._base.manifest.entities:
            self._progress.advance(build_vocabulary(self._connection, role, counted, watch))
            return
        extended = extend_vocabulary(self._connection, role, counted, watch)
        self._progress.advance(extended.kept + extended.new)
        self.facts[f"{entity}_kept"] = extended.kept
        self.facts[f"{entity}_unseen"] = extended.unseen
        self.facts[f"{entity}_new"] = extended.new
        if watch is not None and watch.expires is not None:
            self.facts[f"{entity}_expired"] = extended.expired
            self.facts[f"{entity}_reused"] = extended.reused

    def _write(self, role: VocabularyKey, entity: str, id_type: IdType, seen: bool = False) -> Entity:
        """Write the table ``vocabulary_ROLE``, with names if there are some."""
        named = entity in self._names
        if named:
            names = self._names[entity]
            with fetch_files([self._files[entity]], self._staged.work, [names.id_column, names.name_column]) as here:
                report = join_names(self._connection, role, next(here), names)
            self.facts[f"{entity}_names_ignored"] = report.unknown
            self.facts[f"{entity}_named"] = report.named
        base = self._base.manifest.entities.get(entity) if self._base else None
        if base and base.has_names:
            carry_names(self._connection, role, joined=named)
        return write_vocabulary(
            self._connection,
            role,
            staged=self._staged,
            entity=entity,
            id_type=id_type,
            named=named or bool(base and base.has_names),
            extended=base is not None,
            track_last_seen=seen,
        )
