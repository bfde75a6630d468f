# ruff: noqa: S608  (what is put into SQL is quoted by `identifier`, or is a number or a name of this program)
"""Compact a dataset and its base datasets into one without a base, which takes their place.

    manifest = compact(CompactOptions.of(data="data/day300", out="data/compact"), progress)
    manifest.lineage[-1], manifest.compacted            # both are the fingerprint of data/day300

The new dataset has the rows, names, features, content, and pending IDs of the newest dataset, and the interactions of
all, each in its split, except those that ``LineageReader`` leaves out: of IDs that were forgotten or have expired. It
is a further step of the lineage, so checkpoints that were trained on any dataset of it can start a run, and datasets
can extend it. ``count`` of a vocabulary is that of its train, as everywhere; ``former_count`` is what it lacks of the
counts of all datasets (``LineageReader.counts``), such as plays by customers who have expired since.

DuckDB orders the interactions out of core, as ``prepare`` does. The same datasets give the same bytes.

Shapes: R rows of an entity, V rows of a feature's values, N rows of a part of a table.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from crossfade.base.arrays import BoolArray, IntArray
from crossfade.base.errors import CrossfadeError, InputError, Option, OptionError, command
from crossfade.base.io.disk_errors import full_disk_errors
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.features import (
    SCHEMA,
    content_group_rows,
    content_schema,
    iter_content,
    iter_pairs,
)
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import (
    CONTENT,
    FEATURES,
    PENDING,
    VOCABULARY,
    Content,
    DataFile,
    DatasetManifest,
    Entity,
    Feature,
    Split,
    data_fingerprint,
    read_manifest,
)
from crossfade.trainer.data.parquet import ParquetFiles
from crossfade.trainer.data.reader import Interactions, concatenate
from crossfade.trainer.data.reporter import NullReporter, ProgressReporter
from crossfade.trainer.data.split_names import ALL_SPLITS, SplitName
from crossfade.trainer.data.vocabulary import Vocabulary, plain_strings
from crossfade.trainer.prepare.admission import COLUMNS, pending_schema
from crossfade.trainer.prepare.co_occurrence import with_co_occurrence
from crossfade.trainer.prepare.database import (
    PREPARING_ADVICE,
    execute_on,
    fetch_one,
    identifier,
    working_database,
)
from crossfade.trainer.prepare.event_context import NO_ROW
from crossfade.trainer.prepare.options import CompactOptions, Side, memory_bytes
from crossfade.trainer.prepare.split_files import SplitLayout
from crossfade.trainer.prepare.staging import PartWriter, Staged, row_group_rows, staged_output
from crossfade.trainer.prepare.summary import Facts, heavy_weights, popularity
from crossfade.trainer.prepare.vocabulary_tables import vocabulary_schema

_logger = logging.getLogger(__name__)

_WITHOUT_BASES = "prepare all events again as one dataset"
_SEED = 0
"""Seeds the order of interactions, as ``prepare`` does by default."""
_ROWS_AT_ONCE = 1 << 18
"""Interactions that are added to the database at a time, at least: a dataset of an hour has small row groups."""
_KEPT_FACTS = (
    "hold_out",
    "hold_out_valid",
    "hold_out_test",
    "timestamp_formats",
    "timestamps_are_dates",
    "times_without_zone",
    "joined_columns",
    "event_weights",
    "context",
    "features",
    "content",
    "min_count",
    "admit",
    "expire_after",
    "duplicates",
)
"""What ``source`` says of how events were prepared, which holds for the compacted dataset as for the newest one."""


def compact(options: CompactOptions, progress: ProgressReporter | None = None) -> DatasetManifest:
    """Write the dataset ``options.out`` of all that ``options.data`` and its base datasets hold; return its manifest.

    It appears completely, in one step; after an error, nothing is left behind.

    Raises:
        InputError: a dataset is missing, corrupt, or does not fit, or the output exists.
        CrossfadeError: there is not enough memory or disk space, or a dataset has changed meanwhile.
        StorageUnavailableError: storage does not answer.
    """
    progress, folder = progress or NullReporter(), Folder(options.data)
    fingerprint = data_fingerprint(folder)
    manifest = read_manifest(folder)
    with (
        full_disk_errors(Folder(options.out).path or Path(tempfile.gettempdir()), PREPARING_ADVICE),
        closing(LineageReader(folder, manifest, without=_WITHOUT_BASES)) as lineage,
    ):
        _check_output(lineage, options)
        _check_bases(lineage, without_timestamps=options.without_timestamps)
        has_timestamp = manifest.has_timestamp and not options.without_timestamps
        with staged_output(options.out, options.overwrite, options.work_dir) as staged:
            with working_database(
                staged.work, memory_bytes(options.memory), options.threads, PREPARING_ADVICE
            ) as connection:
                run = _Compaction(connection, lineage, fingerprint, has_timestamp, options.data, staged, progress)
                compacted = run.write()
            _check_unchanged(lineage, fingerprint)
            staged.publish(compacted)
    return compacted


def _check_output(lineage: LineageReader, options: CompactOptions) -> None:
    """Check that the output replaces none of the datasets that are read."""
    out = _place(Folder(options.out))
    for read in (lineage.folder, *(base.folder for base in lineage.bases)):
        if _place(read) == out:
            problem = f"would replace {read.uri}, which is read"
            raise OptionError("out", found=options.out, problem=problem, fix="choose another folder")


def _place(folder: Folder) -> str:
    return folder.uri if folder.path is None else str(folder.path.resolve())


def _check_bases(lineage: LineageReader, *, without_timestamps: bool) -> None:
    """Check that the interactions of all datasets have the columns of one."""
    newest, folder = lineage.manifest, lineage.folder
    for base in lineage.bases:
        if newest.has_timestamp and not base.manifest.has_timestamp and not without_timestamps:
            raise InputError(
                f"{base.folder.uri}: its interactions have no timestamps, but those of {folder.uri} have them; leave "
                "out all of them with ",
                Option("without_timestamps"),
                ", or prepare it again with ",
                Option("timestamp"),
                ", and the datasets that extend it",
            )
    with_times = [each.uri for each, manifest in _datasets(lineage) if manifest.has_timestamp]
    if with_times and not newest.has_timestamp:
        _logger.warning(
            f"{folder.uri}: has no timestamps, so those of its base datasets, such as {with_times[0]}, are left out"
        )


def _datasets(lineage: LineageReader) -> list[tuple[Folder, DatasetManifest]]:
    """Return all datasets with their manifests, the oldest first."""
    return [*((base.folder, base.manifest) for base in lineage.bases), (lineage.folder, lineage.manifest)]


def _check_unchanged(lineage: LineageReader, fingerprint: int) -> None:
    """Check that no dataset has changed since it was opened: a deletion must not be undone.

    Raises:
        CrossfadeError: one has.
    """
    expected = [*((base.folder, base.fingerprint) for base in lineage.bases), (lineage.folder, fingerprint)]
    for folder, before in expected:
        if data_fingerprint(folder) != before:
            raise CrossfadeError(
                f"{folder.uri}: has changed since this command began, so the new dataset was discarded; run the "
                "command again"
            )


@dataclass
class _Compaction:
    """The steps of one compaction, on one database."""

    connection: duckdb.DuckDBPyConnection
    lineage: LineageReader
    fingerprint: int
    has_timestamp: bool
    location: str
    staged: Staged
    progress: ProgressReporter
    facts: Facts = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder, self.manifest = self.lineage.folder, self.lineage.manifest
        self._layout = SplitLayout(
            self.manifest.query,
            self.manifest.item,
            self.has_timestamp,
            self.manifest.context,
            self.manifest.is_grouped,
            _SEED,
        )
        self._context_columns = [f"context_{number}" for number in range(len(self.manifest.context))]

    def write(self) -> DatasetManifest:
        """Write all files except the manifest, which is returned."""
        newest = self.manifest
        self._read_interactions()
        entities, features = self._write_entities()
        content = self._write_content()
        splits = self._write_splits()
        manifest = DatasetManifest(
            query=newest.query,
            item=newest.item,
            entities=entities,
            splits=splits,
            features=features,
            content=content,
            context=newest.context,
            lineage=[*newest.lineage, self.fingerprint],
            compacted=self.fingerprint,
            has_timestamp=self.has_timestamp,
            is_grouped=newest.is_grouped,
            co_occurrence=newest.co_occurrence,
            source=self._describe(),
        )
        return with_co_occurrence(self.staged.folder, manifest, self.progress)

    def _read_interactions(self) -> None:
        """Create the table ``events``: the rows, weight, and split of each interaction, and its number ``seq``."""
        timestamp = ", timestamp BIGINT" if self.has_timestamp else ""
        context = "".join(f", {column} BIGINT" for column in self._context_columns)
        self.connection.execute(
            f"CREATE TABLE events (seq BIGINT, split TINYINT, query BIGINT, item BIGINT, weight FLOAT{timestamp}"
            f"{context})"
        )
        stored, rows = self.lineage.known_rows(ALL_SPLITS), 0
        self.progress.phase("read interactions", stored, "row")
        for split, part in _joined(self.lineage.read_splits(timestamps=self.has_timestamp)):
            execute_on(self.connection, self._event_table(split, part, rows), "INSERT INTO events SELECT * FROM part")
            rows += len(part)
            self.progress.advance(len(part))
        self.facts["dropped_expired"] = stored - rows

    def _event_table(self, split: SplitName, part: Interactions, first: int) -> pa.Table:
        columns = {
            "seq": np.arange(first, first + len(part)),
            "split": np.full(len(part), ALL_SPLITS.index(split), np.int8),
            "query": part.query_N,
            "item": part.item_N,
            "weight": part.weight_N,
        }
        if self.has_timestamp:
            assert part.timestamp_N is not None
            columns["timestamp"] = part.timestamp_N
        for number, name in enumerate(self.manifest.context):
            assert part.context_NK is not None
            row_N = part.context_NK[:, number]
            # A value that was forgotten in the newest dataset may be left in others.
            is_vacant_N = np.isin(row_N, np.array(self.manifest.entities[name].vacant_rows, np.int64))
            columns[self._context_columns[number]] = np.where(is_vacant_N, NO_ROW, row_N)
        return pa.table(columns)

    def _write_splits(self) -> dict[SplitName, Split]:
        rows = dict(self.connection.execute("SELECT split, count(*) FROM events GROUP BY split").fetchall())
        self._layout.place_groups(self.connection, "(SELECT DISTINCT query AS number, query AS row FROM events)")
        columns = ", ".join(
            ["e.query", "e.item", "e.weight", *(["e.timestamp"] if self.has_timestamp else [])]
            + [f"e.{column} AS {identifier(column)}" for column in self._context_columns]
        )
        joined = "events e JOIN places q ON q.number = e.query WHERE e.split = "
        return {
            split: self._layout.write(
                self.connection, self.staged, split, columns, f"{joined}{code}", rows[code], self.progress
            )
            for code, split in enumerate(ALL_SPLITS)
            if code in rows
        }

    def _write_entities(self) -> tuple[dict[str, Entity], dict[str, dict[str, Feature]]]:
        """Write the vocabularies, pending IDs, and features."""
        newest = self.manifest
        entities: dict[str, Entity] = {}
        features: dict[str, dict[str, Feature]] = {}
        sides: dict[str, Side] = {newest.query: "query", newest.item: "item"}
        for name, side in sides.items():
            count_R = self._train_counts(side, newest.entities[name].rows)
            self._keep_counts(side, count_R)
            self.facts |= popularity(self.connection, side, name)
            pending = self._write_pending(name)
            entities[name] = self._write_vocabulary(name, count_R).model_copy(update={"pending": pending})
            for feature in newest.features_of(name):
                written, count_V = self._write_feature(name, feature, count_R)
                features.setdefault(name, {})[feature] = written
                entities[feature] = self._write_vocabulary(feature, count_V)
        for name, column in zip(newest.context, self._context_columns, strict=True):
            entities[name] = self._write_vocabulary(name, self._train_counts(column, newest.entities[name].rows))
        # In the order of the newest dataset.
        return {name: entities[name] for name in newest.entities if name in entities}, features

    def _train_counts(self, column: str, rows: int) -> IntArray:
        """Return how often each row of ``column`` occurs in train with a positive weight: int64 (R,)."""
        found = self.connection.execute(
            f"SELECT {column} AS row, count(*) AS count FROM events "
            f"WHERE split = 0 AND weight > 0 AND {column} <> {NO_ROW} GROUP BY {column}"
        ).fetchnumpy()
        count_R = np.zeros(rows, np.int64)
        count_R[found["row"]] = found["count"]
        return count_R

    def _keep_counts(self, side: Side, count_R: IntArray) -> None:
        """Create the table ``vocabulary_SIDE``, and the view ``counts_query``, as those of a preparation."""
        part = pa.table({"row": np.arange(len(count_R)), "count": count_R})
        execute_on(
            self.connection, part, f"CREATE TABLE vocabulary_{side} AS SELECT row, row AS number, count FROM part"
        )
        self.connection.execute(f"CREATE VIEW counts_{side} AS SELECT number, count FROM vocabulary_{side}")

    def _write_vocabulary(self, name: str, count_R: IntArray) -> Entity:
        """Write the vocabulary of ``name``, with the counts ``count_R`` of train."""
        entity = self.manifest.entities[name]
        self.progress.phase(f"vocabulary of {name}", entity.rows, "row")
        former_R = self.lineage.counts(name) - count_R
        has_former_count = bool(former_R.any())
        schema = vocabulary_schema(
            entity.id_type, entity.has_names, len(entity.vacant_rows) > 0, True, entity.has_last_seen, has_former_count
        )
        vocabulary, first, vacant = Vocabulary(self.folder, self.manifest, name), 0, 0
        computed = {"count", "former_count", *(() if entity.has_warm else ("warm",))}
        stored = [column for column in schema.names if column not in computed]
        with PartWriter(self.staged, f"{VOCABULARY}/{name}", schema, row_group_rows(entity.rows)) as writer:
            for table in vocabulary.iter_tables([*stored, "count"]):
                part = slice(first, first + table.num_rows)
                columns = dict(zip(table.column_names, table.columns, strict=True)) | {
                    "count": pa.array(count_R[part]),
                    "former_count": pa.array(former_R[part]),
                    "warm": pa.array(_warm_rows(table)),
                }
                vacant += table.column("id").null_count
                writer.write(
                    _batch(
                        schema,
                        [columns[column] for column in schema.names],
                    )
                )
                first += table.num_rows
                self.progress.advance(table.num_rows)
            files = writer.close()
        if vacant != len(entity.vacant_rows):
            raise InputError(
                f"{self.folder.uri}: its vocabulary of {name} has {vacant} rows without an id, of which the manifest "
                f"lists {len(entity.vacant_rows)}; {command('validate', self.folder.uri)} shows where"
            )
        changed = {"files": files, "has_warm": True, "has_former_count": has_former_count, "pending": []}
        return entity.model_copy(update=changed)

    def _write_pending(self, name: str) -> list[DataFile]:
        entity, files = self.manifest.entities[name], ParquetFiles(self.folder)
        schema, rows = pending_schema(entity.id_type), sum(file.rows for file in entity.pending)
        with PartWriter(self.staged, f"{PENDING}/{name}", schema, row_group_rows(rows)) as writer:
            for file in entity.pending:
                for index in range(len(file.row_groups)):
                    table = plain_strings(files.read(file, index, COLUMNS))
                    writer.write(_batch(schema, table.columns))
            return writer.close()

    def _write_feature(self, owner: str, name: str, count_R: IntArray) -> tuple[Feature, IntArray]:
        """Write the feature ``name`` of ``owner``; return it, and the interactions of each value: int64 (V,)."""
        feature = self.manifest.features[owner][name]
        count_V = np.zeros(self.manifest.entities[name].rows, np.int64)
        self.progress.phase(f"feature {name}", feature.pairs, "row")
        folder = f"{FEATURES}/{owner}/{name}"
        with PartWriter(self.staged, folder, SCHEMA, row_group_rows(feature.pairs)) as writer:
            for _, row_N, value_N in iter_pairs(self.folder, self.manifest, owner, name):
                np.add.at(count_V, value_N, count_R[row_N])
                writer.write(pa.RecordBatch.from_arrays([pa.array(row_N), pa.array(value_N)], schema=SCHEMA))
                self.progress.advance(len(row_N))
            return Feature(files=writer.close()), count_V

    def _write_content(self) -> dict[str, dict[str, Content]]:
        written: dict[str, dict[str, Content]] = {}
        for owner, columns in self.manifest.content.items():
            for name, column in columns.items():
                written.setdefault(owner, {})[name] = self._write_column(owner, name, column)
        return written

    def _write_column(self, owner: str, name: str, column: Content) -> Content:
        schema = content_schema(column.width)
        group_rows = content_group_rows(row_group_rows(column.pairs), column.width)
        self.progress.phase(f"content {name}", column.pairs, "row")
        with PartWriter(self.staged, f"{CONTENT}/{owner}/{name}", schema, group_rows) as writer:
            for _, row_N, value_ND in iter_content(self.folder, self.manifest, owner, name):
                lists = pa.FixedSizeListArray.from_arrays(pa.array(value_ND.ravel()), type=schema.field("value").type)
                writer.write(pa.RecordBatch.from_arrays([pa.array(row_N), lists], schema=schema))
                self.progress.advance(len(row_N))
            return column.model_copy(update={"files": writer.close()})

    def _describe(self) -> Facts:
        """Return what the manifest records under ``source``."""
        manifests = [manifest for _, manifest in _datasets(self.lineage)]
        raw: Facts = {}
        for split in ALL_SPLITS:
            listed = [manifest.source.get(split) for manifest in manifests]
            raw[split] = list(dict.fromkeys(file for files in listed if isinstance(files, list) for file in files))
        kept = {name: self.manifest.source[name] for name in _KEPT_FACTS if name in self.manifest.source}
        negative, *_ = fetch_one(self.connection, "SELECT count(*) FILTER (weight < 0) FROM events")
        assert isinstance(negative, int)
        times: Facts = {}
        if self.has_timestamp:
            first, last = fetch_one(self.connection, "SELECT min(timestamp), max(timestamp) FROM events")
            if isinstance(first, int) and isinstance(last, int):
                times = {"first_timestamp": first, "last_timestamp": last}
        self.connection.execute(
            "CREATE VIEW train_interactions AS SELECT query, item, weight FROM events WHERE split = 0"
        )
        return {
            "command": "compact",
            "compacted_from": self.location,
            "datasets": len(manifests),
            **raw,
            **kept,
            **self.facts,
            "negative": negative,
            **times,
            **heavy_weights(self.connection),
            "duckdb": duckdb.__version__,
            "pyarrow": pa.__version__,
        }


def _joined(parts: Iterator[tuple[SplitName, Interactions]]) -> Iterator[tuple[SplitName, Interactions]]:
    """Join consecutive parts of a split until they have ``_ROWS_AT_ONCE`` interactions."""
    held: list[Interactions] = []
    of: SplitName | None = None
    for split, part in parts:
        if of is not None and (split != of or sum(map(len, held)) >= _ROWS_AT_ONCE):
            yield of, concatenate(held)
            held = []
        of = split
        held.append(part)
    if of is not None:
        yield of, concatenate(held)


def _warm_rows(table: pa.Table) -> BoolArray:
    """Return which rows of a part of a vocabulary are warm in the newest dataset: bool (N,)."""
    warm_N: BoolArray = table.column("count").to_numpy() > 0
    return warm_N | table.column("warm").to_numpy() if "warm" in table.column_names else warm_N


def _batch(schema: pa.Schema, columns: Sequence[pa.Array | pa.ChunkedArray]) -> pa.RecordBatch:
    """Return ``columns`` as a batch of ``schema``."""
    arrays = [column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column for column in columns]
    return pa.RecordBatch.from_arrays(
        [array.cast(field.type) for array, field in zip(arrays, schema, strict=True)], schema=schema
    )
