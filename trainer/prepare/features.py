# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Features of an entity, from files of their own: the artist of a track, its tags, the country of a customer.

    types = read_features(connection, planned, work, "auto", base, progress)    # given_feature_0 (id, value), …
    report = join_feature(connection, planned[0], base)                         # pairs_feature_0 (row, id)
    ...                                                     # its vocabulary, of what ``counted_values_sql`` counts
    feature = write_feature(connection, planned[0], staged)

A value is an id of a feature's own entity. An id of the file may stand in several rows, or have a list of values. Where
an earlier data set goes on (``base_vocabulary.py``), ids that the file has no value for keep those that they had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from kvstore.errors import InputError
from trainer.data.features import ROW, SCHEMA, VALUE, iter_pairs
from trainer.data.manifest import FEATURES, Feature
from trainer.data.reporter import ProgressReporter
from trainer.prepare.database import execute, fetch_count
from trainer.prepare.events import INTEGER_TEXT, KIND_NAMES, IdChoice, IdType
from trainer.prepare.extend import SQL_TYPES, BaseDataset
from trainer.prepare.fetch import fetch_files
from trainer.prepare.input_files import RawFile, Source
from trainer.prepare.part_writer import PartWriter, row_group_rows
from trainer.prepare.raw_files import Kind, close_raw, open_columns, read_errors
from trainer.prepare.staging import Staged
from trainer.prepare.vocabulary_tables import Side, VocabularyKey

OPTION = "--features"
_AFTER_ALL = 2**60
"""More than there are ids: what is added to the places of those that no event has."""


@dataclass(frozen=True)
class FeatureFile:
    """Files (a path, URI or pattern) that say what the ids of ``entity`` in ``id_column`` have.

    ``columns`` maps the name of each feature to the column of its values.
    """

    entity: str
    path: str | Path
    id_column: str
    columns: Mapping[str, str]


@dataclass(frozen=True)
class FeaturePlan:
    """A feature to prepare: the ``number``-th one, of ``entity``, which stands on ``side``.

    ``asked`` is None for one that only an earlier data set has.
    """

    number: int
    name: str
    entity: str
    side: Side
    asked: FeatureFile | None
    files: Sequence[Source] = ()

    @property
    def role(self) -> VocabularyKey:
        """What tables of the working database call it."""
        return f"feature_{self.number}"


@dataclass(frozen=True)
class FeatureReport:
    """Rows of the entity that have a value, and ids of the files that no event has."""

    filled: int
    unknown: int


def check_features(features: Sequence[FeatureFile], query: str, item: str, known: Mapping[str, str]) -> None:
    """Refuse features of no entity, and names that are taken; ``known`` are those of an earlier data set.

    Raises:
        InputError: there is one.
    """
    taken = {query.lower(), item.lower()}
    for file in features:
        if file.entity not in (query, item):
            raise InputError(f"{OPTION} {file.entity}=…: no such entity; expected '{query}' or '{item}'")
        for name in file.columns:
            if name.lower() in taken:
                raise InputError(
                    f"{OPTION} {file.entity}=…: the name '{name}' is taken; give the feature another one: NAME=COLUMN"
                )
            if known.get(name, file.entity) != file.entity:
                raise InputError(
                    f"{OPTION} {file.entity}=…: '{name}' is a feature of {known[name]} in the earlier data; give this "
                    "one another name: NAME=COLUMN"
                )
            taken.add(name.lower())


def plan_features(
    features: Sequence[FeatureFile],
    files: Sequence[Sequence[Source]],
    sides: Mapping[str, Side],
    base: BaseDataset | None,
) -> list[FeaturePlan]:
    """The features to prepare: those that are asked for, in ``files``, and those that only ``base`` has."""
    known = base.manifest.feature_owners() if base else {}
    named = [(name, file, found) for file, found in zip(features, files, strict=True) for name in file.columns]
    planned = [
        FeaturePlan(number, name, file.entity, sides[file.entity], file, found)
        for number, (name, file, found) in enumerate(named)
    ]
    carried = [name for name in known if name not in {name for name, _, _ in named}]
    return planned + [
        FeaturePlan(number, name, known[name], sides[known[name]], None)
        for number, name in enumerate(carried, start=len(planned))
    ]


def read_features(
    connection: duckdb.DuckDBPyConnection,
    planned: Sequence[FeaturePlan],
    work: Path,
    ids: IdChoice,
    base: BaseDataset | None,
    progress: ProgressReporter,
) -> dict[str, IdType]:
    """Make the table ``given_ROLE`` (id as text, value) of each feature that is asked for; the type of its values.

    Values of text files are integers where all are, unless ``ids`` says 'string' or ``base`` has text.

    Raises:
        InputError: a file cannot be read, lacks a column, or has values of no type that ids may have; or two files of
            a feature differ in it.
    """
    types: dict[str, IdType] = {}
    asked = [feature for feature in planned if feature.asked]
    progress.phase("read features", sum(file.bytes for feature in asked for file in feature.files), "B")
    for feature in asked:
        assert feature.asked is not None
        column = feature.asked.columns[feature.name]
        known = base.manifest.entities.get(feature.name) if base else None
        text = ids == "string" or (known is not None and known.id_type == "string")
        execute(connection, f"CREATE TABLE text_{feature.role} (id VARCHAR, value VARCHAR)")
        found: dict[str, RawFile] = {}
        with fetch_files(feature.files, work, [feature.asked.id_column, column]) as here:
            for source, file in zip(feature.files, here, strict=True):
                found.setdefault(_append(connection, feature, file, text), file)
                progress.advance(source.bytes)
        types[feature.name] = _settle(feature.name, column, found)
        value = f"CAST(value AS {SQL_TYPES[types[feature.name]]}) AS value"
        execute(
            connection, f"CREATE TABLE given_{feature.role} AS SELECT DISTINCT id, {value} FROM text_{feature.role}"
        )
        execute(connection, f"DROP TABLE text_{feature.role}")
    return types


def _append(connection: duckdb.DuckDBPyConnection, feature: FeaturePlan, file: RawFile, text: bool) -> IdType:
    """Append the pairs of one file to ``text_ROLE``; the type of its values."""
    assert feature.asked is not None
    column = feature.asked.columns[feature.name]
    kinds = open_columns(connection, file, {"id": feature.asked.id_column, "value": column}, lists=("value",))
    with read_errors(file):
        found = _type(connection, file, column, kinds["value"], text)
        filled = " AND ".join(f"{name} IS NOT NULL AND CAST({name} AS VARCHAR) <> ''" for name in ("id", "value"))
        execute(
            connection,
            f"INSERT INTO text_{feature.role} SELECT CAST(id AS VARCHAR), CAST(value AS VARCHAR) FROM raw "
            f"WHERE {filled}",
        )
    close_raw(connection)
    return found


def _type(connection: duckdb.DuckDBPyConnection, file: RawFile, column: str, kind: Kind, text: bool) -> IdType:
    if kind in ("number", "moment"):
        raise InputError(
            f"{file}: column '{column}' holds {KIND_NAMES[kind]}; expected integers or strings: cast it, or name "
            "another column"
        )
    if kind == "string" or text:
        return "string"
    if kind == "text":
        whole = f"coalesce({INTEGER_TEXT.format('value')}, value IS NULL OR value = '')"
        if fetch_count(connection, f"SELECT count(*) FILTER (NOT {whole}) FROM raw"):
            return "string"
    return "int64"


def _settle(name: str, column: str, found: Mapping[str, RawFile]) -> IdType:
    if len(found) == 2:
        raise InputError(
            f"{found['string']}: column '{column}' holds strings, but {found['int64']} holds integers there; expected "
            f"one type of '{name}' in all files: make them alike, or read all ids as text with --id-type string"
        )
    return "string" if "string" in found else "int64"


def join_feature(
    connection: duckdb.DuckDBPyConnection, feature: FeaturePlan, id_type: IdType, base: BaseDataset | None
) -> FeatureReport:
    """Make the table ``pairs_ROLE`` (row of the entity, id of the value), each pair once.

    Of ``base``, whose vocabulary of the feature is in ``base_ROLE``, rows that get no value keep theirs.

    Raises:
        InputError: the files know none of the ids.
    """
    role, side = feature.role, feature.side
    execute(connection, f"CREATE TABLE pairs_{role} (row BIGINT, id {SQL_TYPES[id_type]})")
    unknown = 0
    if feature.asked is not None:
        # As text, as in names: text files have no types, and an int64 has one way only to be written.
        execute(
            connection,
            f"INSERT INTO pairs_{role} SELECT v.row, g.value FROM given_{role} g "
            f"JOIN vocabulary_{side} v ON CAST(v.id AS VARCHAR) = g.id",
        )
        given = fetch_count(connection, f"SELECT count(DISTINCT id) FROM given_{role}")
        known = fetch_count(connection, f"SELECT count(DISTINCT row) FROM pairs_{role}")
        unknown = given - known
        if not known:
            raise InputError(
                f"{OPTION} {feature.entity}={feature.asked.path}: has a value of '{feature.name}' for none of the ids "
                f"that the events have (column '{feature.asked.id_column}' holds {given} ids with one); expected ids "
                "of the same entity: check the columns"
            )
        execute(connection, f"DROP TABLE given_{role}")
    if base is not None and feature.name in base.manifest.features_of(feature.entity):
        _carry(connection, base, feature)
    return FeatureReport(fetch_count(connection, f"SELECT count(DISTINCT row) FROM pairs_{role}"), unknown)


def _carry(connection: duckdb.DuckDBPyConnection, base: BaseDataset, feature: FeaturePlan) -> None:
    """Take over the pairs of the earlier data, but of rows that have new ones or another id now."""
    role, side = feature.role, feature.side
    execute(connection, "CREATE TABLE earlier (row BIGINT, value BIGINT)")
    for _, row_N, value_N in iter_pairs(base.folder, base.manifest, feature.entity, feature.name):
        connection.register("piece", pa.table([row_N, value_N], schema=SCHEMA))
        execute(connection, f"INSERT INTO earlier SELECT {ROW}, {VALUE} FROM piece")
        connection.unregister("piece")
    execute(
        connection,
        f"INSERT INTO pairs_{role} SELECT e.row, b.id FROM earlier e JOIN base_{role} b ON b.row = e.value "
        f"JOIN base_{side} was ON was.row = e.row JOIN vocabulary_{side} v ON v.row = e.row AND v.id = was.id "
        f"WHERE b.id IS NOT NULL AND e.row NOT IN (SELECT row FROM pairs_{role})",
    )
    execute(connection, "DROP TABLE earlier")


def counted_values_sql(feature: FeaturePlan) -> str:
    """A query for each value that some row has, as ``build_vocabulary`` wants it: the count is of interactions."""
    return (
        "SELECT NULL::BIGINT AS number, p.id AS id, p.id AS place, CAST(sum(v.count) AS BIGINT) AS count "
        f"FROM pairs_{feature.role} p JOIN vocabulary_{feature.side} v ON v.row = p.row GROUP BY p.id"
    )


def cataloged_sql(planned: Sequence[FeaturePlan], side: Side, id_type: IdType) -> str:
    """A query for each id of ``side`` that files of features have a value of, and ``interactions`` have not.

    As ``build_vocabulary`` wants it: the count is 0, and the place after those of all ids that events have.
    """
    given = " UNION ".join(
        f"SELECT id FROM given_{feature.role}" for feature in planned if feature.side == side and feature.asked
    )
    own = given
    if id_type == "int64":
        own = f"SELECT CAST(id AS BIGINT) AS id FROM ({given}) WHERE {INTEGER_TEXT.format('id')}"
    met = f"SELECT i.id FROM ids_{side} i SEMI JOIN interactions e ON e.{side} = i.number"
    return (
        f"SELECT NULL::BIGINT AS number, id, {_AFTER_ALL} + row_number() OVER (ORDER BY id) AS place, 0 AS count "
        f"FROM ({own}) ANTI JOIN ({met}) USING (id)"
    )


def write_feature(connection: duckdb.DuckDBPyConnection, feature: FeaturePlan, staged: Staged) -> Feature:
    """Write ``pairs_ROLE`` as rows of the entity and of ``vocabulary_ROLE``."""
    role = feature.role
    group_rows = row_group_rows(fetch_count(connection, f"SELECT count(*) FROM pairs_{role}"))
    pairs = connection.sql(
        f"SELECT p.row AS row, v.row AS value FROM pairs_{role} p JOIN vocabulary_{role} v ON v.id = p.id ORDER BY 1, 2"
    )
    with PartWriter(staged, f"{FEATURES}/{feature.entity}/{feature.name}", SCHEMA, group_rows) as writer:
        for batch in pairs.to_arrow_reader(group_rows):
            writer.write(batch)
        return Feature(files=writer.close())
