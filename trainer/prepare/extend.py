# ruff: noqa: S608  (what is put into SQL is a number or a name of this program)
"""A new day on the vocabularies of an earlier data set: old ids keep their rows, new ids get the rows after them.

    base = open_base("s3://music/day1")
    base.check_entities("customer", "track")
    load_base(connection, base, "query", "customer", progress)          # the table base_query (row, id, name)
    report = extend_vocabulary(connection, "query", counted_sql("query"))       # vocabulary_query, as of a first day

So a table that was trained on the earlier data is the beginning of the new one's, and ``checkpoint.warm_start_from`` takes
it from there. A row of the earlier data that was forgotten stays so: its id is null, which no event has. Only where ids
expire (``admission.py``) do new ids take such rows, and those of ids that have expired, before the vocabulary grows.
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from kvstore.errors import InputError
from kvstore.io.folder import Folder
from trainer.data.manifest import DatasetManifest, data_fingerprint, read_manifest
from trainer.data.reporter import ProgressReporter
from trainer.data.vocabulary import Vocabulary
from trainer.prepare.database import execute, fetch_count, fetch_one
from trainer.prepare.events import IdType
from trainer.prepare.vocabulary_tables import IdPolicy, VocabularyKey, last_seen_sql, sql_number

OPTION = "--base"
SQL_TYPES = {"int64": "BIGINT", "string": "VARCHAR"}


@dataclass(frozen=True)
class BaseDataset:
    """The data set whose vocabularies go on."""

    folder: Folder
    manifest: DatasetManifest
    fingerprint: int

    def lineage(self) -> list[int]:
        """That of the data that go on from it."""
        return [*self.manifest.lineage, self.fingerprint]

    def check_entities(self, query: str, item: str) -> None:
        """See that the new data have the same two entities.

        Raises:
            InputError: they do not.
        """
        if (query, item) != (self.manifest.query, self.manifest.item):
            raise InputError(
                f"{OPTION} {self.folder.uri}: is about {self.manifest.query} and {self.manifest.item}, but these "
                f"events are prepared as {query} and {item}; expected the same entities: "
                f"--query {self.manifest.query}=COLUMN --item {self.manifest.item}=COLUMN"
            )

    def text_roles(self) -> list[str]:
        """The sides whose ids are text."""
        sides = {"query": self.manifest.query, "item": self.manifest.item}
        return [side for side, name in sides.items() if self.manifest.entities[name].id_type == "string"]

    def check_id_type(self, entity: str, found: IdType) -> None:
        """See that ids of ``entity`` that were read are of the type of the vocabulary's.

        Raises:
            InputError: they are not.
        """
        id_type = self.manifest.entities[entity].id_type
        if found != id_type:
            kinds = {"int64": "integers", "string": "text"}
            choice = {"int64": "integer", "string": "string"}[id_type]
            raise InputError(
                f"{OPTION} {self.folder.uri}: its ids of {entity} are {kinds[id_type]}, but those "
                f"of the events are {kinds[found]}; expected the same: name the column that has them, cast it, or "
                f"read it with --id-type {choice}"
            )


@dataclass(frozen=True)
class ExtensionReport:
    """What became of an earlier vocabulary: rows whose id kept them, those of them without an event, and new ids.

    ``expired`` ids lost their rows, and so many of the new ids took such a row: they were ``reused``.
    """

    kept: int
    unseen: int
    new: int
    expired: int
    reused: int


def open_base_dataset(location: str) -> BaseDataset:
    """The data set at ``location``, a path or URI.

    Raises:
        InputError: there is none.
    """
    folder = Folder(location)
    try:
        return BaseDataset(folder, read_manifest(folder), data_fingerprint(folder))
    except InputError as error:
        raise InputError(f"{OPTION} {error}") from error


def load_base(
    connection: duckdb.DuckDBPyConnection, base: BaseDataset, role: VocabularyKey, name: str, progress: ProgressReporter
) -> None:
    """Make the table ``base_ROLE`` of the vocabulary of the entity ``name``, in pieces.

    Its columns: row, id, name, ``met``, whether the row was liked in train, there or in data before, ``last_seen``,
    null where that is not known, and ``since``, the place in the lineage from which on the id has the row.

    Raises:
        InputError: a file of the vocabulary is missing or damaged, or an id has two rows.
    """
    entity = base.manifest.entities[name]
    vocabulary = Vocabulary(base.folder, base.manifest, name)
    execute(
        connection,
        f"CREATE TABLE base_{role} (row BIGINT, id {SQL_TYPES[entity.id_type]}, name VARCHAR, met BOOL, "
        "last_seen BIGINT, since BIGINT)",
    )
    progress.phase(f"earlier {name}", entity.rows, "row")
    seen = ["last_seen", "since"] if entity.has_last_seen else []
    wanted = [*vocabulary.columns, "count", *(["met"] if entity.has_warm else []), *seen]
    columns = f"row, id, {'name' if entity.has_names else 'NULL'}, count > 0{' OR met' if entity.has_warm else ''}"
    columns += ", last_seen, since" if seen else ", NULL, 0"
    for piece in vocabulary.iter_tables(wanted):
        connection.register("piece", piece)
        execute(connection, f"INSERT INTO base_{role} SELECT {columns} FROM piece")
        connection.unregister("piece")
        progress.advance(piece.num_rows)
    ids, distinct, nulls = fetch_one(
        connection, f"SELECT count(id), count(DISTINCT id), count(*) FILTER (id IS NULL) FROM base_{role}"
    )
    if ids != distinct or nulls != len(entity.vacant_rows):
        raise InputError(
            f"{OPTION} {base.folder.uri}: its vocabulary of {name} has {ids} ids for {distinct} different ones, and "
            f"{nulls} rows without one where {len(entity.vacant_rows)} are forgotten; crossfade validate "
            f"{base.folder.uri} says where"
        )


def extend_vocabulary(
    connection: duckdb.DuckDBPyConnection, role: VocabularyKey, counted: str, watch: IdPolicy | None = None
) -> ExtensionReport:
    """Make the table ``vocabulary_ROLE`` of ``base_ROLE`` and the query ``counted``.

    Its columns: row, number, id, count, met, last_seen and since. Rows of the base stay, with the count that they have
    in the new train split, be it 0; those without an event have no number. New ids follow by count descending, then by
    id. ``watch`` says who expires: the first of the new ids then take the rows of the base that nobody has, in order.
    """
    execute(connection, f"CREATE TABLE counted AS {counted}")
    seen = fetch_count(connection, f"SELECT count(*) FROM counted SEMI JOIN base_{role} USING (id)")
    _make_holders(connection, role, watch)
    reuse = "id IS NULL" if watch is not None and watch.expires is not None else "false"
    execute(
        connection,
        f"CREATE TABLE free AS SELECT row, row_number() OVER (ORDER BY row) AS turn FROM holders WHERE {reuse}",
    )
    last_seen, sighted = last_seen_sql(role, watch)
    execute(
        connection,
        f"CREATE TABLE fresh AS SELECT number, id, counted.count AS count, {last_seen} AS last_seen, "
        "row_number() OVER (ORDER BY counted.count DESC, place) AS turn "
        f"FROM counted{sighted} ANTI JOIN base_{role} USING (id)",
    )
    rows, free, fresh = (
        fetch_count(connection, f"SELECT count(*) FROM {table}") for table in ("holders", "free", "fresh")
    )
    execute(
        connection,
        f"CREATE TABLE vocabulary_{role} AS "
        "SELECT row, number, id, count, met, last_seen, since FROM holders "
        f"WHERE row NOT IN (SELECT row FROM free WHERE turn <= {fresh}) UNION ALL "
        f"SELECT coalesce(free.row, {rows - free - 1} + turn), number, id, count, count > 0, last_seen, "
        f"{0 if watch is None else watch.lineage_index} FROM fresh LEFT JOIN free USING (turn)",
    )
    kept = fetch_count(connection, "SELECT count(*) FROM holders WHERE id IS NOT NULL")
    before = fetch_count(connection, f"SELECT count(*) FROM base_{role} WHERE id IS NOT NULL")
    for table in ("counted", "holders", "free", "fresh"):
        execute(connection, f"DROP TABLE {table}")
    return ExtensionReport(kept, kept - seen, fresh, before - kept, min(free, fresh))


def _make_holders(connection: duckdb.DuckDBPyConnection, role: VocabularyKey, watch: IdPolicy | None) -> None:
    """Make the table ``holders``, as ``vocabulary_ROLE``, of the rows of ``base_ROLE``, without ids that expire."""
    last_seen, sighted, stays = "b.last_seen", "", "true"
    if watch is not None and watch.track_last_seen:
        # Whether or not an event of the id is left: it was seen. What is not known begins with the newest event.
        newest = sql_number(watch.newest)
        cataloged = f"CASE WHEN c.id IS NOT NULL AND s.id IS NULL THEN {newest} END"
        last_seen = f"coalesce(greatest(b.last_seen, s.last_seen, {cataloged}), {newest})"
        sighted = f" LEFT JOIN sighted_{role} s ON s.id = b.id"
    if watch is not None and watch.expires is not None:
        stays = f"c.id IS NOT NULL OR {last_seen} >= {watch.expires}"
    execute(
        connection,
        "CREATE TABLE holders AS SELECT row, number, CASE WHEN stays THEN id END AS id, count, met AND stays AS met, "
        "CASE WHEN stays THEN last_seen END AS last_seen, since FROM ("
        "SELECT b.row, c.number, b.id, coalesce(c.count, 0) AS count, b.met OR coalesce(c.count > 0, false) AS met, "
        f"{last_seen} AS last_seen, b.since, b.id IS NOT NULL AND ({stays}) AS stays "
        f"FROM base_{role} b LEFT JOIN counted c ON c.id = b.id{sighted})",
    )


def carry_names(connection: duckdb.DuckDBPyConnection, role: VocabularyKey, *, joined: bool) -> None:
    """Make the table ``names_ROLE`` (id, name) of the names in ``base_ROLE``.

    Where names were ``joined`` to the new vocabulary, it is there, and its names go over those of the base.
    """
    named = f"SELECT id, name FROM base_{role} WHERE id IS NOT NULL AND name IS NOT NULL"
    if joined:
        execute(connection, f"INSERT INTO names_{role} SELECT * FROM ({named}) ANTI JOIN names_{role} USING (id)")
    else:
        execute(connection, f"CREATE TABLE names_{role} AS {named}")
