# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Prepare a dataset from raw events: vocabularies, shards of interactions and a manifest (docs/data-format.md).

    manifest = prepare(PrepareOptions.of(train=["plays.parquet"], out="data/plays", hold_out="random:0.1"))
    print(format_summary(manifest, Folder("data/plays")))

DuckDB reads, checks, splits, joins and sorts, out of core. The same options and files give the same tables, byte for
byte, whatever the number of threads.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from crossfade.base.errors import InputError, MissingExtraError, Option, OptionError, Text, join
from crossfade.base.io.disk_errors import full_disk_errors
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.lineage import EarlierDataset
from crossfade.trainer.data.manifest import REPLAY, CoOccurrence, DatasetManifest, Entity, Feature, Split
from crossfade.trainer.data.reporter import NullReporter, ProgressReporter
from crossfade.trainer.data.split_names import ALL_SPLITS
from crossfade.trainer.prepare.admission import count_sightings, filter_admitted, plan_id_policies
from crossfade.trainer.prepare.attribute_columns import plan_columns
from crossfade.trainer.prepare.cleaning import filter_k_core, sum_duplicates
from crossfade.trainer.prepare.co_occurrence import measure_co_occurrence
from crossfade.trainer.prepare.database import (
    PREPARING_ADVICE,
    estimate_temp_bytes,
    fetch_count,
    fetch_one,
    warn_low_disk,
    working_database,
)
from crossfade.trainer.prepare.event_context import check_base_context, context_columns_sql, create_context_values
from crossfade.trainer.prepare.events import EventTable, read_events
from crossfade.trainer.prepare.extend import BaseDataset, open_base_dataset
from crossfade.trainer.prepare.faults import Faults, Quarantine
from crossfade.trainer.prepare.hold_out import (
    apply_hold_outs,
    check_split,
    create_interactions,
    drop_gaps,
    plan_hold_outs,
)
from crossfade.trainer.prepare.input_files import (
    FORMATS,
    STANDARD_INPUT,
    RawFile,
    Source,
    StandardInput,
    find_files,
)
from crossfade.trainer.prepare.options import PrepareOptions, Side, memory_bytes
from crossfade.trainer.prepare.replay import ReplayDraw, find_replayed
from crossfade.trainer.prepare.split_files import SplitLayout
from crossfade.trainer.prepare.staging import Staged, staged_output, write_relation
from crossfade.trainer.prepare.summary import Facts, describe_options, describe_stats, heavy_weights
from crossfade.trainer.prepare.vocabulary_builder import VocabularyBuilder
from crossfade.trainer.prepare.vocabulary_tables import IdPolicy

if TYPE_CHECKING:
    from crossfade.trainer.prepare.spark_engine import SparkPreparation


@dataclass(frozen=True)
class Inputs:
    """The input files: of the events by split, of names by entity, and of each entry of the features and content."""

    events: dict[str, list[Source]]
    names: dict[str, Source]
    features: list[list[Source]]
    content: list[list[Source]]


def find_inputs(options: PrepareOptions) -> Inputs:
    """Find the input files of ``options``.

    Raises:
        InputError: a file is missing, is given twice, or would be replaced by the output.
    """
    events: dict[str, list[Source]] = {split: _find_events(options, split) for split in ALL_SPLITS}
    names = {entity: find_files("names", [names.path], None, entity)[0] for entity, names in options.names.items()}
    features = [find_files("features", [file.path], None, file.entity) for file in options.features]
    content = [find_files("content", [file.path], None, file.entity) for file in options.content]
    seen: dict[str, str] = {}
    for split, files in events.items():
        for file in files:
            location = _location(file)
            if location in seen:
                earlier = Option(seen[location])
                raise OptionError(
                    split, found=file, problem=("was already given in ", earlier), expected="each file once"
                )
            seen[location] = split
            if file.format == "lightgcn":
                _check_no_columns(options, file)
    folder = Folder(options.out)
    out = folder.uri if folder.path is None else str(folder.path.resolve())
    for file in [*chain(*events.values()), *names.values(), *chain(*features, *content)]:
        if _location(file).startswith(f"{out}/"):
            raise InputError(
                f"{file}: is inside ", Option("out", options.out), ", which would be replaced; choose another folder"
            )
    return Inputs(events, names, features, content)


def find_base(options: PrepareOptions) -> BaseDataset | None:
    """Open the base dataset of ``options``, if any, and check that entities, features, content, and context fit it.

    Raises:
        InputError: it is missing, would be replaced by the output, or has other entities.
    """
    base = None
    if options.base is not None:
        base = open_base_dataset(options.base)
        base.check_entities(options.query.name, options.item.name)
        if base.folder.uri == Folder(options.out).uri:
            out = Option("out")
            raise OptionError(
                "base",
                found=options.base,
                problem=("is also ", out, ", which would be replaced"),
                fix="choose another folder",
            )
        base.reference(Folder(options.out))
        check_base_context(options.context_plans(), base)
        base.check_attributes(options)
    return base


def _find_events(options: PrepareOptions, split: str) -> list[Source]:
    files: list[Source] = []
    for pattern in getattr(options, split):
        if str(pattern) != STANDARD_INPUT:
            files += find_files(split, [pattern], options.format)
        elif options.format is None:
            raise OptionError(
                split,
                found=STANDARD_INPUT,
                problem="standard input has no extension",
                fix=("name its format: ", Option("format", "|".join(FORMATS))),
            )
        else:
            files.append(StandardInput(options.format))
    return files


def _location(file: Source) -> str:
    return str(file.path.resolve()) if isinstance(file, RawFile) else str(file)


def _check_no_columns(options: PrepareOptions, file: Source) -> None:
    """Check that no option names a column, which files of the format lightgcn do not have."""
    columns = {"weight": options.weight, "event": options.event, "timestamp": options.timestamp}
    columns |= {"query": options.query.given, "item": options.item.given}
    found = {Option(name): column for name, column in columns.items() if column is not None}
    found |= {Option("context", name): column for name, column in options.context.items()}
    for option, column in found.items():
        raise InputError(
            f"{file}: a lightgcn file has no column '{column}'; leave it out of ",
            option,
            ", or correct ",
            Option("format"),
        )


_logger = logging.getLogger(__name__)


def prepare(
    options: PrepareOptions, progress: ProgressReporter | None = None, *, first_row: int = 1
) -> DatasetManifest:
    """Write the prepared dataset ``options.out`` of files with events, and return its manifest.

    Messages count the rows of Parquet files from ``first_row``.

    The dataset appears completely, in one step; after an error or Ctrl-C, nothing is left behind.

    Raises:
        InputError: an option or a file is wrong; the message names it, the place, and how to fix it.
        CrossfadeError: there is not enough memory or disk space.
    """
    progress = progress or NullReporter()
    plan_hold_outs(options)  # before files are read: it raises an error if one is wrong
    if options.query.column == options.item.column:
        _logger.warning(
            f"the IDs of {options.query.name} and of {options.item.name} are both in the column "
            f"'{options.item.column}', so that every interaction is of an ID with itself; name another column for one"
        )
    inputs = find_inputs(options)
    base = find_base(options)
    if options.engine == "spark":
        check_for_spark(options, inputs, base)
    replayed = find_replayed(base) if base is not None and options.replay is not None else []
    with (
        full_disk_errors(Folder(options.out).path or Path(tempfile.gettempdir()), PREPARING_ADVICE),
        staged_output(options.out, options.overwrite, options.work_dir) as staged,
        ExitStack() as opened,
    ):
        if options.engine == "spark":
            staged.publish(manifest := _spark_preparation(options, inputs, base, staged, progress, first_row).run())
            return manifest
        warn_low_disk(staged.work, estimate_temp_bytes([file for files in inputs.events.values() for file in files]))
        quarantine = None
        if options.quarantine is not None:
            quarantine = opened.enter_context(closing(Quarantine(options.quarantine, staged.work, options.overwrite)))
        skip, drop = options.on_bad_line != "fail", options.on_missing == "drop"
        faults = Faults(skip, drop, quarantine, options.max_bad, first_row)
        with working_database(
            staged.work, memory_bytes(options.memory), options.threads, PREPARING_ADVICE
        ) as connection:
            manifest = _Preparation(connection, options, inputs, base, replayed, staged, faults, progress).run()
        if quarantine is not None:
            quarantine.publish()
        staged.publish(manifest)
    return manifest


_NOT_ON_SPARK = ("replay",)
_COLUMNS = ("features", "content", "catalog", "context")


def check_for_spark(options: PrepareOptions, inputs: Inputs | None = None, base: BaseDataset | None = None) -> None:
    """Check that nothing is asked for that Spark does not do here, also of the ``inputs`` and the ``base`` if given.

    Raises:
        OptionError: something is.
    """
    given: list[Text] = [Option(name) for name in _NOT_ON_SPARK if getattr(options, name)]
    given += [Option("order", "random")] if options.order == "random" else []
    given += [Option("on_bad_line", "quarantine=FILE")] if options.quarantine is not None else []
    for split, files in inputs.events.items() if inputs is not None else ():
        given += [Option(split, STANDARD_INPUT) for file in files if isinstance(file, StandardInput)]
    if options.base is not None:
        given += [(Option("base"), " with ", Option(name)) for name in _COLUMNS if getattr(options, name)]
    if base is not None:
        manifest = base.manifest
        found = {"features": manifest.features, "content": manifest.content, "context": manifest.context}
        given += [(Option("base"), f" of a dataset with {kind}") for kind, has_some in found.items() if has_some]
    if given:
        problem = ("does not support ", join(given, ", "))
        raise OptionError(
            "engine", found="spark", problem=problem, fix=("leave them out, or use ", Option("engine", "duckdb"))
        )


def _spark_preparation(
    options: PrepareOptions,
    inputs: Inputs,
    base: BaseDataset | None,
    staged: Staged,
    progress: ProgressReporter,
    first_row: int,
) -> SparkPreparation:
    """Return a preparation on Spark, which is optional.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        importlib.import_module("pandas")  # PySpark needs it, and does not require it
        from crossfade.trainer.prepare.spark_engine import SparkPreparation
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "pyspark", "spark", Option("engine", "spark")) from error
    files = (inputs.features, inputs.content)
    return SparkPreparation(options, inputs.events, inputs.names, base, staged, progress, first_row, *files)


@dataclass
class _Preparation:
    """The steps of one preparation, on one database."""

    connection: duckdb.DuckDBPyConnection
    options: PrepareOptions
    inputs: Inputs
    base: BaseDataset | None
    replayed: list[EarlierDataset]
    staged: Staged
    faults: Faults
    progress: ProgressReporter
    facts: Facts = field(default_factory=dict)

    def run(self) -> DatasetManifest:
        """Write all files except the manifest, which is returned."""
        options = self.options
        events = self._read_events()
        vocabularies = VocabularyBuilder(
            self.connection,
            self.staged,
            self.progress,
            self.base,
            options.names,
            self.inputs.names,
            self._faults_of_names,
        )
        vocabularies.load_base(options)
        table = self._sum_duplicates("events")
        policies = self._plan_admission(table, options.sides(), events)
        table = self._filter_admitted(table, policies)
        table = self._filter_rare(table)
        self._hold_out(table, events)
        rows = self._count_splits()
        entities, features = self._write_vocabularies(vocabularies, events, policies)
        content = vocabularies.write_content()
        if context := options.context_plans():
            types = create_context_values(self.connection, context, events)
            entities |= vocabularies.build_context(context, types)
        self.facts |= vocabularies.facts
        layout = self._layout(events.timestamps is not None)
        layout.place_groups(self.connection, "vocabulary_query WHERE number IS NOT NULL")
        manifest = DatasetManifest(
            query=options.query.name,
            item=options.item.name,
            entities=entities,
            splits={split: self._write_split(split, rows[split], layout) for split in ALL_SPLITS if rows[split]},
            features=features,
            content=content,
            context=[plan.name for plan in context],
            lineage=self.base.lineage() if self.base else [],
            base=self.base.reference(self.staged.out) if self.base else None,
            has_timestamp=layout.has_timestamp,
            is_grouped=layout.is_grouped,
            co_occurrence=self._measure_co_occurrence(),
            source={
                **describe_options(options),
                "timestamps_are_dates": events.timestamps == "datetime",
                **self.facts,
            },
        )
        return manifest.model_copy(update={"replay": self._draw_replay(manifest)}) if self.replayed else manifest

    def _draw_replay(self, manifest: DatasetManifest) -> Split | None:
        """Write the replay of the dataset that ``manifest`` describes; return None if there is nothing to draw."""
        assert self.options.replay is not None
        draw = ReplayDraw(self.connection, self.options, self.replayed, manifest, self.progress)
        rows = draw.create(round(self.options.replay * manifest.splits["train"].rows))
        if not rows:
            return None
        self.progress.phase(f"write {REPLAY}", rows, "row")
        schema = self._layout(manifest.has_timestamp).schema()
        return Split(files=write_relation(self.staged, REPLAY, schema, draw.relation(), rows, self.progress))

    def _read_events(self) -> EventTable:
        options = self.options
        events = read_events(
            self.connection,
            self.inputs.events,
            self.staged.work,
            options,
            self.base,
            self.faults,
            self.progress,
        )
        self.facts |= describe_stats(events.stats, self.faults)
        if not fetch_count(self.connection, "SELECT count(*) FILTER (split = 0 AND weight > 0) FROM events"):
            raise OptionError(
                "train",
                problem="the files hold no interaction with a weight above 0",
                expected="at least one",
            )
        return events

    def _faults_of_names(self, file: Source) -> Faults:
        """Return what receives the bad lines of a ``file`` of names, which has its own if it is no file of events."""
        events = {str(source) for files in self.inputs.events.values() for source in files}
        return self.faults.emptied(keep_lines=str(file) not in events)

    def _sum_duplicates(self, table: str) -> str:
        """Sum duplicates if requested; return the table to continue with. (So do the other filters.)"""
        if self.options.duplicates != "sum":
            return table
        self.progress.phase("sum duplicates", None, "row")
        report = sum_duplicates(self.connection, table, "distinct_events")
        self.facts |= {"merged_duplicates": report.merged, "cancelled_pairs": report.cancelled}
        self.connection.execute(f"DROP TABLE {table}")
        return "distinct_events"

    def _plan_admission(self, table: str, sides: Mapping[str, Side], events: EventTable) -> dict[Side, IdPolicy]:
        """Plan which IDs are admitted and which expire, and count their events in ``table``."""
        options = self.options
        newest = fetch_one(self.connection, f"SELECT max(timestamp) FROM {table}")[0]
        assert newest is None or isinstance(newest, int)
        policies = plan_id_policies(newest, sides, events.id_types, options.admit, options.max_ages(), self.base)
        if policies:
            self.progress.phase("admission", len(policies), "side")
        for policy in policies.values():
            count_sightings(self.connection, policy, table, self.base)
            self.progress.advance(1)
        return policies

    def _filter_admitted(self, table: str, policies: Mapping[Side, IdPolicy]) -> str:
        if not self.options.admit:
            return table
        self.facts["dropped_pending"] = filter_admitted(
            self.connection, list(policies.values()), self.base, table, "admitted_events"
        )
        self.connection.execute(f"DROP TABLE {table}")
        return "admitted_events"

    def _filter_rare(self, table: str) -> str:
        options = self.options
        if not options.min_count:
            return table
        entities = {"query": options.query.name, "item": options.item.name}
        minimums = {side: options.min_count[name] for side, name in entities.items() if name in options.min_count}
        report = filter_k_core(self.connection, minimums, entities, table, "core_events", self.progress)
        self.facts["dropped_rare"] = report.interactions
        self.facts |= {f"{entity}_rare": report.ids[side] for side, entity in entities.items()}
        self.connection.execute(f"DROP TABLE {table}")
        return "core_events"

    def _hold_out(self, table: str, events: EventTable) -> None:
        """Create the view ``interactions`` of ``table``, with the hold-outs applied."""
        plan = plan_hold_outs(self.options)
        if self.options.hold_out_gap is not None:
            self.facts |= drop_gaps(self.connection, table, plan, self.options.hold_out_gap)
        create_interactions(self.connection, table, plan)
        self.facts["valid_by_default"] = "valid" in plan and plan["valid"].by_default
        self.facts["kept_for_train"] = apply_hold_outs(
            self.connection, plan, seed=self.options.seed, timestamps=events.timestamps, progress=self.progress
        )
        negative, first, last = fetch_one(
            self.connection, f"SELECT count(*) FILTER (weight < 0), min(timestamp), max(timestamp) FROM {table}"
        )
        assert isinstance(negative, int)
        self.facts["negative"] = negative
        if isinstance(first, int) and isinstance(last, int):
            self.facts |= {"first_timestamp": first, "last_timestamp": last}
        if self.options.weight is not None or self.options.duplicates == "sum":
            self.facts |= heavy_weights(self.connection)

    def _count_splits(self) -> dict[str, int]:
        """Count the interactions of each split; one with files needs at least one of positive weight."""
        rows: dict[str, int] = {}
        for code, split in enumerate(ALL_SPLITS):
            found, positives = fetch_one(
                self.connection,
                "SELECT coalesce(sum(count)::BIGINT, 0), coalesce(sum(positives)::BIGINT, 0) FROM counts_split "
                f"WHERE split = {code}",
            )
            assert isinstance(found, int)
            assert isinstance(positives, int)
            rows[split] = found
            check_split(split, found, positives, has_files=bool(self.inputs.events[split]))
        return rows

    def _write_vocabularies(
        self, vocabularies: VocabularyBuilder, events: EventTable, policies: Mapping[Side, IdPolicy]
    ) -> tuple[dict[str, Entity], dict[str, dict[str, Feature]]]:
        """Write the vocabularies of the two sides and of their features, and the pairs of the features."""
        options, sides = self.options, self.options.sides()
        base = self.base.manifest if self.base else None
        in_base = list(base.feature_owners().items()) if base else []
        plans = plan_columns("feature", options.features, self.inputs.features, sides, in_base)
        in_base = [(name, entity) for entity, names in base.content.items() for name in names] if base else []
        content = plan_columns("content", options.content, self.inputs.content, sides, in_base)
        vocabularies.read_features(plans, content, options.id_type)
        entities = {
            entity: vocabularies.build_side(
                side, entity, events.id_types[side], entity in options.catalog, policies.get(side)
            )
            for entity, side in sides.items()
        }
        values, features = vocabularies.build_features()
        return {**entities, **values}, features

    def _layout(self, has_timestamp: bool) -> SplitLayout:
        options = self.options
        return SplitLayout(
            options.query.name,
            options.item.name,
            has_timestamp=has_timestamp,
            context=[plan.name for plan in options.context_plans()],
            is_grouped=options.order == "grouped",
            seed=options.seed,
        )

    def _measure_co_occurrence(self) -> CoOccurrence | None:
        """Return that of the base dataset, so that days of one model have one temperature, or measure it."""
        if self.base is not None and self.base.manifest.co_occurrence is not None:
            return self.base.manifest.co_occurrence
        self.progress.phase("co-occurrence", None, "row")
        return measure_co_occurrence(self.connection)

    def _write_split(self, split: str, rows: int, layout: SplitLayout) -> Split:
        context, joins = context_columns_sql(self.options.context_plans())
        timestamp = ", timestamp" if layout.has_timestamp else ""
        source = "train_interactions" if split == "train" else "interactions"
        joined = (
            f"{source} e JOIN places q ON q.number = e.query JOIN vocabulary_item i ON i.number = e.item"
            f"{joins} WHERE e.split = {ALL_SPLITS.index(split)}"
        )
        columns = f"q.row AS query, i.row AS item, e.weight{timestamp}{context}"
        return layout.write(self.connection, self.staged, split, columns, joined, rows, self.progress)
