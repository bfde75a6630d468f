"""Build and write the vocabularies of a preparation: of the two sides, then of their features, then of context.

builder = VocabularyBuilder(connection, staged, progress, base, names, files_of_names, faults)
builder.load_base(options)
builder.read_features(plans, id_type="auto")
entity = builder.build_side("item", "track", "int64", in_catalog=False, policy=None)
entities, features = builder.build_features()
builder.facts                                                       # for the manifest
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import duckdb

from crossfade.trainer.data.manifest import Content, Entity, Feature
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.admission import write_pending
from crossfade.trainer.prepare.attribute_columns import (
    ColumnPlan,
    catalog_ids_sql,
    counted_values_sql,
    join_column,
    read_columns,
    write_content,
    write_feature,
)
from crossfade.trainer.prepare.event_context import counted_context_sql
from crossfade.trainer.prepare.extend import (
    BaseDataset,
    carry_names,
    extend_vocabulary,
    load_base,
)
from crossfade.trainer.prepare.faults import Faults
from crossfade.trainer.prepare.fetch import fetch_files
from crossfade.trainer.prepare.id_encoder import IdType
from crossfade.trainer.prepare.input_files import Source
from crossfade.trainer.prepare.option_values import ContextPlan, NamesFile
from crossfade.trainer.prepare.options import IdChoice, PrepareOptions, Side
from crossfade.trainer.prepare.staging import Staged
from crossfade.trainer.prepare.summary import Facts
from crossfade.trainer.prepare.vocabulary_tables import (
    IdPolicy,
    VocabularyKey,
    build_vocabulary,
    counted_ids_sql,
    join_names,
    write_vocabulary,
)


@dataclass
class VocabularyBuilder:
    """Builds and writes vocabularies; ``facts`` describe them.

    Attributes:
        connection: The working database.
        staged: Where files are written.
        progress: Receives a phase for each vocabulary.
        base: The dataset whose vocabularies are extended, if any.
        names: The names file of each entity that has one.
        files: The files found for ``names``.
        faults: Returns what receives the bad lines of such a file.
    """

    connection: duckdb.DuckDBPyConnection
    staged: Staged
    progress: ProgressReporter
    base: BaseDataset | None
    names: Mapping[str, NamesFile]
    files: Mapping[str, Source]
    faults: Callable[[], Faults]
    facts: Facts = field(default_factory=dict)
    _plans: Sequence[ColumnPlan] = ()
    _content: Sequence[ColumnPlan] = ()
    _value_types: dict[str, IdType] = field(default_factory=dict)

    def load_base(self, options: PrepareOptions) -> None:
        """Create the tables ``base_query`` and ``base_item`` if there is a base dataset.

        Raises:
            InputError: one of its files is missing or corrupt.
        """
        if self.base is not None:
            for entity, side in options.sides().items():
                load_base(self.connection, self.base, side, entity, self.progress)

    def read_features(self, plans: Sequence[ColumnPlan], content: Sequence[ColumnPlan], id_type: IdChoice) -> None:
        """Read the files of the features in ``plans``, and of the columns in ``content``.

        Raises:
            InputError: one cannot be used.
        """
        self._plans, self._content = plans, content
        both, work = [*content, *plans], self.staged.work
        self._value_types = read_columns(self.connection, both, work, id_type, self.base, self.progress)

    def build_side(self, side: Side, entity: str, id_type: IdType, in_catalog: bool, policy: IdPolicy | None) -> Entity:
        """Build and write the vocabulary of the IDs of ``interactions`` on one side, and its pending IDs.

        With ``in_catalog``, IDs that occur only in files of features or content get rows too.
        """
        counted = counted_ids_sql(side)
        if in_catalog:
            files = [plan for plan in (*self._plans, *self._content) if plan.side == side and plan.source is not None]
            further = catalog_ids_sql(files, side, id_type)
            counted = f"{counted} UNION ALL {further}"
        self._build(side, entity, counted, policy)
        track_last_seen = policy is not None and policy.track_last_seen
        written = self._write(side, entity, id_type, has_last_seen=track_last_seen)
        if policy is None or policy.admit is None:
            return written
        return written.model_copy(update={"pending": write_pending(self.connection, policy, self.staged)})

    def build_features(self) -> tuple[dict[str, Entity], dict[str, dict[str, Feature]]]:
        """Build and write the features of the sides that ``build_side`` has written.

        Returns the vocabularies of their values by name, and their pairs by entity and name.

        Raises:
            InputError: files have a value for none of the IDs, or values of another type than in the base dataset.
        """
        types = self._value_types
        entities: dict[str, Entity] = {}
        features: dict[str, dict[str, Feature]] = {}
        for plan in self._plans:
            name = plan.name
            if self.base is not None and name in self.base.manifest.entities:
                id_type = types.setdefault(name, self.base.manifest.entities[name].id_type)
                self.base.check_id_type(name, id_type)
                load_base(self.connection, self.base, plan.key, name, self.progress)
            report = join_column(self.connection, plan, types[name], self.base)
            self._build(plan.key, name, counted_values_sql(plan))
            entities[name] = self._write(plan.key, name, types[name])
            features.setdefault(plan.entity, {})[name] = write_feature(self.connection, plan, self.staged)
            self.facts[f"{name}_filled"] = report.filled_rows
            self.facts[f"{name}_ids_ignored"] = report.ignored_ids
        return entities, features

    def write_content(self) -> dict[str, dict[str, Content]]:
        """Write the content of the sides that ``build_side`` has written; return the columns by entity and name.

        Raises:
            InputError: files have a value for none of the IDs, or of another length than in the base dataset.
        """
        written: dict[str, dict[str, Content]] = {}
        for plan in self._content:
            report = join_column(self.connection, plan, None, self.base)
            column = write_content(self.connection, plan, self.base, self.staged)
            written.setdefault(plan.entity, {})[plan.name] = column
            self.facts[f"{plan.name}_ids_ignored"] = report.ignored_ids
        return written

    def build_context(self, plans: Sequence[ContextPlan], types: Mapping[str, IdType]) -> dict[str, Entity]:
        """Build and write the vocabularies of context, whose values are in ``event_values``, by name.

        Raises:
            InputError: values have another type than in the base dataset.
        """
        entities: dict[str, Entity] = {}
        for plan in plans:
            if self.base is not None and plan.name in self.base.manifest.entities:
                self.base.check_id_type(plan.name, types[plan.name])
                load_base(self.connection, self.base, plan.key, plan.name, self.progress)
            self._build(plan.key, plan.name, counted_context_sql(plan.key))
            entities[plan.name] = self._write(plan.key, plan.name, types[plan.name])
        return entities

    def _build(self, key: VocabularyKey, entity: str, counted: str, policy: IdPolicy | None = None) -> None:
        """Create the table ``vocabulary_KEY``, as an extension of the base dataset if that has the entity."""
        self.progress.phase(f"vocabulary of {entity}", None, "row")
        if self.base is None or entity not in self.base.manifest.entities:
            self.progress.advance(build_vocabulary(self.connection, key, counted, policy))
            return
        extended = self.base.manifest.entities[entity]
        report = extend_vocabulary(self.connection, key, extended, counted, policy)
        self.progress.advance(report.kept + report.new)
        self.facts[f"{entity}_kept"] = report.kept
        self.facts[f"{entity}_unseen"] = report.unseen
        self.facts[f"{entity}_new"] = report.new
        if policy is not None and policy.expire_before is not None:
            self.facts[f"{entity}_expired"] = report.expired
            self.facts[f"{entity}_reused"] = report.reused

    def _write(self, key: VocabularyKey, entity: str, id_type: IdType, has_last_seen: bool = False) -> Entity:
        """Write the table ``vocabulary_KEY`` with the names of its file and of the base dataset."""
        has_names_file = entity in self.names
        if has_names_file:
            names = self.names[entity]
            columns = [names.id_column, names.name_column]
            with fetch_files([self.files[entity]], self.staged.work, columns) as local_files:
                report = join_names(self.connection, key, next(local_files), names, self.faults())
            self.facts[f"{entity}_names_ignored"] = report.ignored
            self.facts[f"{entity}_named"] = report.named
            self.facts |= {f"{entity}_names_bad_lines": report.bad_lines} if report.bad_lines else {}
        base = self.base.manifest.entities.get(entity) if self.base else None
        if base and base.has_names:
            carry_names(self.connection, key, joined=has_names_file)
        return write_vocabulary(
            self.connection,
            key,
            staged=self.staged,
            entity=entity,
            id_type=id_type,
            has_names=has_names_file or bool(base and base.has_names),
            has_earlier_count=base is not None,
            has_last_seen=has_last_seen,
        )
