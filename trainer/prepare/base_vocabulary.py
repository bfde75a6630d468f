# ruff: noqa: S608  (what is put into SQL is a number or a name of this program)
"""A new day on the vocabularies of an earlier data set: old ids keep their rows, new ids get the rows after them.

    base = open_base("s3://music/day1")
    base.check_entities("customer", "track")
    load_base(connection, base, "query", "customer", progress)          # the table base_query (row, id, name)
    report = extend_vocabulary(connection, "query", counted_sql("query"))       # vocabulary_query, as of a first day

So a table that was trained on the earlier data is the beginning of the new one's, and ``checkpoint.start_from`` takes
it from there. A row of the earlier data that was forgotten stays so: its id is null, which no event has.
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from kvstore.errors import InputError
from kvstore.storage import Folder
from trainer.data.manifest import Manifest, read_manifest
from trainer.data.progress import Progress
from trainer.data.vocabulary import Vocabulary
from trainer.prepare.build_vocabulary import Role
from trainer.prepare.database import count, one, run
from trainer.prepare.events import IdType

OPTION = "--vocabulary"
_SQL_TYPES = {"int64": "BIGINT", "string": "VARCHAR"}


@dataclass(frozen=True)
class Base:
    """The data set whose vocabularies go on."""

    folder: Folder
    manifest: Manifest

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
                f"read it with --ids {choice}"
            )


@dataclass(frozen=True)
class Extended:
    """What became of an earlier vocabulary: rows that were kept, those of them without an event, and new rows."""

    kept: int
    unseen: int
    new: int


def open_base(location: str) -> Base:
    """The data set at ``location``, a path or URI.

    Raises:
        InputError: there is none.
    """
    folder = Folder(location)
    try:
        return Base(folder, read_manifest(folder))
    except InputError as error:
        raise InputError(f"{OPTION} {error}") from error


def load_base(connection: duckdb.DuckDBPyConnection, base: Base, role: Role, name: str, progress: Progress) -> None:
    """Make the table ``base_ROLE`` (row, id, name, met) of the vocabulary of the entity ``name``, in pieces.

    ``met``: whether the row was liked in train, there or in data before.

    Raises:
        InputError: a file of the vocabulary is missing or damaged, or an id has two rows.
    """
    entity = base.manifest.entities[name]
    vocabulary = Vocabulary(base.folder, base.manifest, name)
    run(connection, f"CREATE TABLE base_{role} (row BIGINT, id {_SQL_TYPES[entity.id_type]}, name VARCHAR, met BOOL)")
    progress.phase(f"earlier {name}", entity.rows, "row")
    wanted = [*vocabulary.columns, "count", *(["met"] if entity.met else [])]
    columns = f"row, id, {'name' if entity.named else 'NULL'}, count > 0{' OR met' if entity.met else ''}"
    for piece in vocabulary.pieces(wanted):
        connection.register("piece", piece)
        run(connection, f"INSERT INTO base_{role} SELECT {columns} FROM piece")
        connection.unregister("piece")
        progress.advance(piece.num_rows)
    ids, distinct, nulls = one(
        connection, f"SELECT count(id), count(DISTINCT id), count(*) FILTER (id IS NULL) FROM base_{role}"
    )
    if ids != distinct or nulls != len(entity.forgotten):
        raise InputError(
            f"{OPTION} {base.folder.uri}: its vocabulary of {name} has {ids} ids for {distinct} different ones, and "
            f"{nulls} rows without one where {len(entity.forgotten)} are forgotten; crossfade prepare --check "
            f"{base.folder.uri} says where"
        )


def extend_vocabulary(connection: duckdb.DuckDBPyConnection, role: Role, counted: str) -> Extended:
    """Make the table ``vocabulary_ROLE`` (row, number, id, count, met) of ``base_ROLE`` and the query ``counted``.

    Rows of the base stay, with the count that they have in the new train split, be it 0; those without an event have
    no number. New ids follow by count descending, then by id.
    """
    run(connection, f"CREATE TABLE counted AS {counted}")
    kept = count(connection, f"SELECT count(*) FROM base_{role}")
    seen = count(connection, f"SELECT count(*) FROM counted SEMI JOIN base_{role} USING (id)")
    run(
        connection,
        f"CREATE TABLE vocabulary_{role} AS "
        "SELECT b.row, c.number, b.id, coalesce(c.count, 0) AS count, b.met OR coalesce(c.count > 0, false) AS met "
        f"FROM base_{role} b LEFT JOIN counted c ON c.id = b.id "
        f"UNION ALL SELECT {kept} + row_number() OVER (ORDER BY count DESC, place) - 1, number, id, count, count > 0 "
        f"FROM counted ANTI JOIN base_{role} USING (id)",
    )
    run(connection, "DROP TABLE counted")
    return Extended(kept, kept - seen, count(connection, f"SELECT count(*) FROM vocabulary_{role}") - kept)


def carry_names(connection: duckdb.DuckDBPyConnection, role: Role, *, joined: bool) -> None:
    """Make the table ``names_ROLE`` (id, name) of the names in ``base_ROLE``.

    Where names were ``joined`` to the new vocabulary, it is there, and its names go over those of the base.
    """
    named = f"SELECT id, name FROM base_{role} WHERE id IS NOT NULL AND name IS NOT NULL"
    if joined:
        run(connection, f"INSERT INTO names_{role} SELECT * FROM ({named}) ANTI JOIN names_{role} USING (id)")
    else:
        run(connection, f"CREATE TABLE names_{role} AS {named}")
