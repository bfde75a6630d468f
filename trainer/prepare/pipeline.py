# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Raw events become vocabularies, interaction shards and a manifest (see ``manifest.py`` for what is written).

    manifest = prepare(PrepareOptions(train=["plays.parquet"], out=Path("data/plays"), hold_out="random:0.1"))
    print(describe(manifest, Folder("data/plays")))

DuckDB reads, checks, splits, joins and sorts, out of core; the same options and files give the same tables, byte for
byte, whatever the number of threads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa

from kvstore.errors import CrossfadeError, InputError
from kvstore.io.folder import Folder
from trainer.data.manifest import SPLITS, TIMESTAMP, WEIGHT, DatasetManifest, Split
from trainer.data.reporter import NullReporter, ProgressReporter
from trainer.data.time_values import EventTimeRange
from trainer.prepare.admission import ADMIT, EXPIRE, MaxAge, count_sightings, filter_admitted, plan_id_policies
from trainer.prepare.cleaning import filter_k_core, sum_duplicates
from trainer.prepare.database import execute, fetch_count, fetch_one, identifier, working_database
from trainer.prepare.disk_space import warn_low_disk
from trainer.prepare.events import ColumnMapping, EventTable, IdChoice, check_event_weights, read_events
from trainer.prepare.extend import OPTION, BaseDataset, open_base_dataset
from trainer.prepare.features import OPTION as FEATURES_OPTION
from trainer.prepare.features import FeatureFile, check_features, plan_features
from trainer.prepare.hold_out import apply_hold_out, plan_hold_outs
from trainer.prepare.input_files import Format, RawFile, Source, find_files
from trainer.prepare.part_writer import PartWriter, row_group_rows
from trainer.prepare.staging import Staged, staged_output
from trainer.prepare.summary import Facts
from trainer.prepare.vocabulary_builder import VocabularyBuilder
from trainer.prepare.vocabulary_tables import IdPolicy, NamesFile, Side

Duplicates = Literal["keep", "sum"]

_ENTITY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_SEED_MAX = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What to prepare, and how. ``train``, ``valid`` and ``test`` are paths, URIs or globs, ``out`` a path or URI.

    ``query`` and ``item`` name the two entities; their ids are in the columns of the same name unless ``query_column``
    and ``item_column`` say otherwise (``lightgcn`` files have no columns). ``weight`` is 1 unless a column has it, or
    ``event_weights`` gives it to each value of the column ``event``; one below 0 says that the item is not wanted, and
    events of weight 0 are dropped, as are those before ``since`` and from ``until`` on. ``duplicates`` 'sum' makes one
    interaction of those of a (query, item) pair. ``min_count`` is the least that ids of an entity must have
    (``cleaning.py``), ``admit`` what one must have over all days to get a row, and ``expire_after`` how long one may be
    unseen before it loses it (``admission.py``). ``ids`` 'auto' reads ids of text files as integers where all of a file
    are, 'string' reads every id as text. Hold-outs are described in ``splits.py``. ``names`` maps an entity to the file
    with its names.
    ``features`` say what ids have besides (``features.py``); ids of the entities in ``catalogue`` that are in no event,
    but have a feature, get rows too. ``vocabulary`` is an earlier data set, a path or URI, whose ids keep their rows
    (``base_vocabulary.py``). ``seed`` decides on the order of the shards and on random
    hold-outs. ``work`` is where temporary files go (see ``staging.py``). ``memory_bytes`` and ``threads`` bound DuckDB
    (default: half of the memory and 4 GiB at most; every core).
    """

    out: str | Path
    train: Sequence[str | Path]
    valid: Sequence[str | Path] = ()
    test: Sequence[str | Path] = ()
    format: Format | None = None
    query: str = "customer"
    item: str = "item"
    query_column: str | None = None
    item_column: str | None = None
    weight: str | None = None
    event: str | None = None
    event_weights: Mapping[str, float] = field(default_factory=dict)
    timestamp: str | None = None
    since: str | None = None
    until: str | None = None
    duplicates: Duplicates = "keep"
    min_count: Mapping[str, int] = field(default_factory=dict)
    admit: Mapping[str, int] = field(default_factory=dict)
    expire_after: Mapping[str, MaxAge] = field(default_factory=dict)
    id_type: IdChoice = "auto"
    hold_out: str | None = None
    hold_out_valid: str | None = None
    hold_out_test: str | None = None
    names: Mapping[str, NamesFile] = field(default_factory=dict)
    features: Sequence[FeatureFile] = ()
    catalog: Sequence[str] = ()
    base: str | None = None
    seed: int = 0
    overwrite: bool = False
    work_dir: Path | None = None
    memory_bytes: int | None = None
    threads: int | None = None

    def columns(self) -> ColumnMapping:
        """The columns to read."""
        return ColumnMapping(
            query=self.query_column or self.query,
            item=self.item_column or self.item,
            weight=self.weight,
            event=self.event,
            event_weights=self.event_weights,
            timestamp=self.timestamp,
        )

    def time_range(self) -> EventTimeRange:
        """The time to read.

        Raises:
            InputError: it cannot be.
        """
        return EventTimeRange.parse(self.since, self.until, self.timestamp is not None)


def prepare(options: PrepareOptions, progress: ProgressReporter | None = None) -> DatasetManifest:
    """Write the prepared data set ``options.out`` and return its manifest.

    It appears whole, at once; on an error or Ctrl-C nothing is left behind.

    Raises:
        InputError: an option or a file is wrong; the message says which, where, and how to mend it.
        CrossfadeError: there is not enough memory or disk.
    """
    progress = progress or NullReporter()
    _check(options)
    inputs = _find_inputs(options)
    base = _find_base(options)
    check_features(options.features, options.query, options.item, base.manifest.feature_owners() if base else {})
    with staged_output(options.out, options.overwrite, options.work_dir) as staged:
        warn_low_disk(staged.work, [file for some in inputs.events.values() for file in some])
        with working_database(staged.work, options.memory_bytes, options.threads) as connection:
            manifest = _Preparation(connection, options, staged, progress, base).run(inputs)
        staged.publish(manifest)
    return manifest


def check_entities(query: str, item: str) -> None:
    """Refuse names of entities that could be no folder or column of a data set.

    Raises:
        InputError: one cannot, or both are the same.
    """
    for option, name in (("--query", query), ("--item", item)):
        check_entity(option, name)
    if query.lower() == item.lower():
        raise InputError(f"--query {query} --item {item}: the two entities need different names (--item NAME=COLUMN)")


def check_entity(option: str, name: str) -> None:
    """Refuse ``name``, given with ``option``, if it could be no folder or column of a data set.

    Raises:
        InputError: it could not.
    """
    if not _ENTITY.fullmatch(name) or name.lower() in (WEIGHT, TIMESTAMP):
        raise InputError(
            f"{option} {name}: cannot be the name of an entity; expected a word of letters, digits, '_' and '-', "
            f"other than '{WEIGHT}' and '{TIMESTAMP}' (a column of another name: {option} NAME=COLUMN)"
        )


def _check_entities_of(options: PrepareOptions) -> None:
    """Refuse options about entities that there are not."""
    for file in options.features:
        for name in file.columns:
            check_entity(FEATURES_OPTION, name)
    for entity in options.catalog:
        if entity not in {file.entity for file in options.features}:
            raise InputError(f"--catalog {entity}: adds ids that are in --features {entity}=… alone; give that too")
    sides = [options.query, options.item]
    nameable = [*sides, *(name for file in options.features for name in file.columns)]
    for option, given_for, known in (
        ("--names", options.names, nameable),
        ("--min-count", options.min_count, sides),
        (ADMIT, options.admit, sides),
        (EXPIRE, options.expire_after, sides),
    ):
        unknown = sorted(set(given_for) - set(known))
        if unknown:
            expected = " or ".join(f"'{entity}'" for entity in known)
            raise InputError(f"{option} {unknown[0]}=…: no such entity; expected {expected}")


def _check(options: PrepareOptions) -> None:
    check_entities(options.query, options.item)
    check_event_weights(options.event_weights)
    if not options.train:
        raise InputError("no events: name files with --train")
    if options.weight is not None and options.event is not None:
        raise InputError("--weight and --event: the weight comes from one of the two; leave out the other")
    if (options.event is None) != (not options.event_weights):
        raise InputError(
            "--event and --event-weights belong together: --event COLUMN --event-weights play=1,like=3,skip=-1"
        )
    _check_entities_of(options)
    for option, minimums in (("--min-count", options.min_count), (ADMIT, options.admit)):
        for entity, minimum in minimums.items():
            if minimum < 1:
                raise InputError(f"{option} {entity}={minimum}: expected at least 1")
    for entity, minimum in options.admit.items():
        if entity in options.catalog:
            raise InputError(
                f"{ADMIT} {entity}={minimum}: --catalog {entity} gives rows to ids without any event; leave one out"
            )
    for span in options.expire_after.values():
        if options.timestamp is None:
            raise InputError(
                f"{EXPIRE} {span.text}: needs to know when each event happened; name the column with --timestamp"
            )
    if not 0 <= options.seed <= _SEED_MAX:
        raise InputError(f"--seed {options.seed}: expected an integer from 0 to {_SEED_MAX}")
    if options.threads is not None and options.threads < 1:
        raise InputError(f"--threads {options.threads}: expected at least 1")
    options.time_range()
    given = {split for split in ("valid", "test") if getattr(options, split)}
    plan_hold_outs(
        options.hold_out, options.hold_out_valid, options.hold_out_test, given, options.timestamp is not None
    )


@dataclass(frozen=True)
class _Inputs:
    """The files of the events of each split, of each entity's names, and of each of the options' features."""

    events: dict[str, list[Source]]
    names: dict[str, Source]
    features: list[list[Source]]


def _find_inputs(options: PrepareOptions) -> _Inputs:
    files = {split: find_files(f"--{split}", getattr(options, split), options.format) for split in SPLITS}
    named = {entity: find_files(f"--names {entity}", [names.path], None)[0] for entity, names in options.names.items()}
    featured = [find_files(f"{FEATURES_OPTION} {file.entity}", [file.path], None) for file in options.features]
    seen: dict[str, str] = {}
    for split, some in files.items():
        for file in some:
            where = _whereabouts(file)
            if where in seen:
                raise InputError(f"--{split} {file}: is given in --{seen[where]} already; expected each file once")
            seen[where] = split
            if file.format == "lightgcn":
                _check_bare(options, file)
    folder = Folder(options.out)
    out = folder.uri if folder.path is None else str(folder.path.resolve())
    for file in [*chain(*files.values()), *named.values(), *chain(*featured)]:
        if _whereabouts(file).startswith(f"{out}/"):
            raise InputError(f"{file}: lies inside --out {options.out}, which would be replaced; choose another --out")
    return _Inputs(files, named, featured)


def _find_base(options: PrepareOptions) -> BaseDataset | None:
    if options.base is None:
        return None
    base = open_base_dataset(options.base)
    base.check_entities(options.query, options.item)
    if base.folder.uri == Folder(options.out).uri:
        raise InputError(f"{OPTION} {options.base}: is --out itself, which would be replaced; choose another --out")
    return base


def _whereabouts(file: Source) -> str:
    return str(file.path.resolve()) if isinstance(file, RawFile) else str(file)


def _check_bare(options: PrepareOptions, file: Source) -> None:
    for option in ("weight", "event", "timestamp", "query_column", "item_column"):
        value = getattr(options, option)
        if value is not None:
            wrong = f"--{option.partition('_')[0]}"
            raise InputError(
                f"{file}: a lightgcn file has no column '{value}'; leave it out of {wrong}, or mend --format"
            )


class _Preparation:
    """The steps, in order, on one database."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        options: PrepareOptions,
        staged: Staged,
        progress: ProgressReporter,
        base: BaseDataset | None,
    ) -> None:
        self._connection = connection
        self._base = base
        self._options = options
        self._staged = staged
        self._progress = progress
        self._facts: Facts = {}

    def run(self, inputs: _Inputs) -> DatasetManifest:
        """Everything but the manifest file."""
        options, files = self._options, inputs.events
        events = read_events(
            self._connection,
            files,
            self._staged.work,
            options.columns(),
            options.id_type,
            options.time_range(),
            self._progress,
            self._base.text_roles() if self._base else (),
        )
        self._tell_tally(events)
        vocabularies = VocabularyBuilder(
            self._connection, self._staged, self._progress, self._base, options.names, inputs.names
        )
        sides: dict[str, Side] = {options.query: "query", options.item: "item"}
        vocabularies.read_earlier(sides, events.id_types)
        source, watches = self._admit(self._sum_duplicates(), sides, events)
        self._hold_out(files, events, self._drop_rare(source))
        rows = self._count_splits(files)
        planned = plan_features(options.features, inputs.features, sides, self._base)
        vocabularies.read_features(planned, options.id_type)
        entities = {
            entity: vocabularies.of_side(
                side, entity, events.id_types[side], entity in options.catalog, watches.get(side)
            )
            for entity, side in sides.items()
        }
        values, features = vocabularies.of_features()
        self._facts |= vocabularies.facts
        splits = {split: self._write_split(split, rows[split], events) for split in SPLITS if rows[split]}
        return DatasetManifest(
            query=options.query,
            item=options.item,
            entities={**entities, **values},
            splits=splits,
            features=features,
            lineage=self._base.lineage() if self._base else [],
            has_timestamp=events.timestamps is not None,
            source={
                **_source(options),
                "timestamps_are_dates": events.timestamps == "moment",
                **self._facts,
            },
        )

    def _tell_tally(self, events: EventTable) -> None:
        tally = events.tally
        self._facts |= {
            "files_read": tally.files,
            "empty_files": tally.empty_files,
            "rows_read": tally.rows,
            "dropped_before_since": tally.before_since,
            "dropped_from_until": tally.from_until,
            "dropped_zero_weight": tally.zero_weight,
            "lines_without_items": tally.lines_without_items,
        }

    def _sum_duplicates(self) -> str:
        """Sum duplicates, if asked to; returns the table that has what is left."""
        options, table = self._options, "events"
        if not fetch_count(self._connection, "SELECT count(*) FILTER (split = 0 AND weight > 0) FROM events"):
            raise InputError("--train: the files hold no interaction with a weight above 0; expected one at least")
        if options.duplicates == "sum":
            self._progress.phase("sum duplicates", None, "row")
            summed = sum_duplicates(self._connection, table, "distinct_events")
            self._facts |= {"merged_duplicates": summed.merged, "cancelled_pairs": summed.cancelled}
            execute(self._connection, f"DROP TABLE {table}")
            table = "distinct_events"
        return table

    def _admit(self, table: str, sides: Mapping[str, Side], events: EventTable) -> tuple[str, dict[Side, IdPolicy]]:
        """Leave out ids with too few events for a row, if asked to: the table of what is left, and what to watch."""
        options = self._options
        watches = plan_id_policies(
            self._connection, table, sides, events.id_types, options.admit, options.expire_after, self._base
        )
        if watches:
            self._progress.phase("admission", len(watches), "side")
        for watch in watches.values():
            count_sightings(self._connection, watch, table, self._base)
            self._progress.advance(1)
        if options.admit:
            self._facts["dropped_waiting"] = filter_admitted(
                self._connection, list(watches.values()), self._base, table, "admitted_events"
            )
            execute(self._connection, f"DROP TABLE {table}")
            table = "admitted_events"
        return table, watches

    def _drop_rare(self, table: str) -> str:
        """Leave out rare ids, if asked to; returns the table that has what is left."""
        options = self._options
        if options.min_count:
            entities = {"query": options.query, "item": options.item}
            minimums = {role: options.min_count[name] for role, name in entities.items() if name in options.min_count}
            core = filter_k_core(self._connection, minimums, entities, table, "core_events", self._progress)
            self._facts |= {
                "dropped_rare": core.interactions,
                **{f"{entity}_rare": core.ids[role] for role, entity in entities.items()},
            }
            execute(self._connection, f"DROP TABLE {table}")
            table = "core_events"
        return table

    def _hold_out(self, files: Mapping[str, list[Source]], events: EventTable, source: str) -> None:
        options = self._options
        plan = plan_hold_outs(
            options.hold_out,
            options.hold_out_valid,
            options.hold_out_test,
            {split for split in files if files[split]} - {"train"},
            events.timestamps is not None,
        )
        if plan:
            self._progress.phase("hold out", len(plan), "split")
        stayed = 0
        for split, hold_out in plan.items():
            target = f"held_out_{split}"
            stayed += apply_hold_out(
                self._connection,
                hold_out,
                split,
                seed=options.seed,
                timestamps=events.timestamps,
                source=source,
                target=target,
            )
            execute(self._connection, f"DROP TABLE {source}")
            source = target
            self._progress.advance(1)
        execute(self._connection, f"CREATE VIEW interactions AS SELECT * FROM {source}")
        self._facts["kept_for_train"] = stayed

    def _count_splits(self, files: Mapping[str, list[Source]]) -> dict[str, int]:
        """The interactions of each split, one of which at least must be liked where there are files."""
        rows = {}
        for code, split in enumerate(SPLITS):
            found, liked = fetch_one(
                self._connection,
                "SELECT count(*), count(*) FILTER (weight > 0) FROM interactions WHERE split = ?",
                [code],
            )
            assert isinstance(found, int)
            rows[split] = found
            if (files[split] or split == "train") and not liked:
                raise InputError(
                    f"--{split}: the files hold no interaction with a weight above 0; mend them, or leave out --{split}"
                )
        negative, first, last = fetch_one(
            self._connection,
            "SELECT count(*) FILTER (weight < 0), min(timestamp), max(timestamp) FROM interactions",
        )
        assert isinstance(negative, int)
        self._facts["negative"] = negative
        if isinstance(first, int) and isinstance(last, int):
            self._facts |= {"first_timestamp": first, "last_timestamp": last}
        return rows

    def _write_split(self, split: str, rows: int, events: EventTable) -> Split:
        options = self._options
        fields = [(options.query, pa.int64()), (options.item, pa.int64()), (WEIGHT, pa.float32())]
        if events.timestamps is not None:
            fields.append((TIMESTAMP, pa.int64()))
        schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])
        timestamp = ", timestamp" if events.timestamps is not None else ""
        # Hashed twice: DuckDB's hash of several values combines them cheaply and would leave neighbours close together.
        shuffled = self._connection.sql(
            f"SELECT q.row AS {identifier(options.query)}, i.row AS {identifier(options.item)}, weight{timestamp} "
            "FROM interactions e "
            "JOIN vocabulary_query q ON q.number = e.query JOIN vocabulary_item i ON i.number = e.item "
            f"WHERE split = {SPLITS.index(split)} ORDER BY hash(hash({options.seed}::BIGINT, seq)), seq"
        )
        self._progress.phase(f"write {split}", rows, "row")
        group_rows = row_group_rows(rows)
        with PartWriter(self._staged, split, schema, group_rows) as writer:
            for batch in shuffled.to_arrow_reader(group_rows):
                writer.write(batch)
                self._progress.advance(batch.num_rows)
            written = Split(files=writer.close())
        if written.rows != rows:
            raise CrossfadeError(
                f"{split}: {rows} interactions were counted, but {written.rows} written; prepare again"
            )
        return written


def _source(options: PrepareOptions) -> Facts:
    """Where the data set comes from, for its manifest."""
    asked = {
        name: getattr(options, name)
        for name in ("since", "until", "hold_out", "hold_out_valid", "hold_out_test", "base")
        if getattr(options, name) is not None
    }
    weights = [f"{event}={weight:g}" for event, weight in options.event_weights.items()]
    minimums = [f"{entity}={minimum}" for entity, minimum in options.min_count.items()]
    admitted = [f"{entity}={minimum}" for entity, minimum in options.admit.items()]
    spans = [f"{entity}={span.text}" for entity, span in options.expire_after.items()]
    features = [f"{file.entity}={Path(file.path).name}:{file.id_column}" for file in options.features]
    return {
        "command": "prepare",
        **{split: [str(path) for path in getattr(options, split)] for split in SPLITS},
        **asked,
        **({"event_weights": weights} if weights else {}),
        **({"min_count": minimums} if minimums else {}),
        **({"admit": admitted} if admitted else {}),
        **({"expire_after": spans} if spans else {}),
        **({"features": features} if features else {}),
        "duplicates": options.duplicates,
        "seed": options.seed,
        "duckdb": duckdb.__version__,
        "pyarrow": pa.__version__,
    }
