r"""Replace tables of vectors in PostgreSQL with pgvector: by files that psql loads, or directly.

    write_pgvector(exported, folder)
    server = push(exported, "postgresql://recommender@db.example.com/music")

    FOLDER/load.sh                              runs the three scripts with psql in one transaction
    FOLDER/schema.sql                           the extension, and tables with id, name, and vector
    FOLDER/copy.sql                             \copy of each file
    FOLDER/replace.sql                          primary keys and HNSW indexes; then the tables replace the previous ones
    FOLDER/ENTITY/rows-000000000000.csv         id, name if the dataset has names, and vector; named by the first row

Of changes since an earlier model, a second table has the changed rows, and the deleted IDs without a vector. They are
deleted from the first one, and inserted or updated there, if its comment names the earlier model and its dataset.

Both ways run the same statements, in one transaction. Rows are loaded as CSV into a second table, which takes the name
of the first at the end, so that readers find the previous rows until the transaction commits, and the new ones from
then on. The second table gets the privileges of the first. A comment marks tables that an export wrote; others are
never replaced.

A push connects by a URI, and by libpq's environment for what the URI leaves out (PGHOST, PGUSER, PGPASSWORD, ~/.pgpass,
PGSSLMODE and so on). A password is only taken from there: others can list the arguments of a process. Only this module
imports psycopg, when it pushes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv

from crossfade.base.errors import CrossfadeError, MissingExtraError, Option, OptionError, command
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.embeddings.files import FILE_ROWS
from crossfade.trainer.formats.exported_model import Block, ExportedModel, identity, write_script
from crossfade.trainer.recommend.trained_model import TrainedModel

MAX_COLUMNS = 16_000
"""What the type vector can have."""
MAX_INDEXED_COLUMNS = 2_000
"""What an index of the type vector can have."""
_MARK = "crossfade export: "
_FINGERPRINT = "dataset fingerprint"
_OPERATOR_CLASSES: dict[ScoreKind, str] = {
    "cosine": "vector_cosine_ops",
    "dot": "vector_ip_ops",
    "euclidean": "vector_l2_ops",
}
_OPERATORS: dict[ScoreKind, str] = {"cosine": "<=>", "dot": "<#>", "euclidean": "<->"}
"""The distances by which the indexes search: 1 - cosine, minus the dot product, and the Euclidean distance."""
_PREPARATION = (
    "SET LOCAL client_min_messages = warning;",
    "CREATE EXTENSION IF NOT EXISTS vector;",
)
"""The statements that come before all tables."""
_SCRIPT = """\
#!/bin/sh
# Load these tables into PostgreSQL with pgvector: sh load.sh
# The connection is that of libpq's environment: PGHOST, PGPORT, PGDATABASE, PGUSER, and PGPASSWORD or ~/.pgpass.
# Everything is one transaction, so that readers find all previous rows or all new ones.
set -eu
cd "$(dirname "$0")"
exec psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --single-transaction \\
     --file schema.sql --file copy.sql --file replace.sql "$@"
"""
_NO_HEADER = pyarrow.csv.WriteOptions(include_header=False)


@dataclass(frozen=True)
class VectorTable:
    """A table in PostgreSQL.

    Attributes:
        name: its name, of letters a-z, digits, and _ only.
        id_type: the type of its IDs.
        has_names: whether it has the column ``name``.
        dim: columns of its vectors.
        score: what its index searches by.
        comment: what it holds, in one line.
        since: the fingerprint of the dataset whose vectors it must hold for changes; None where it is replaced.
    """

    name: str
    id_type: Literal["bigint", "text"]
    has_names: bool
    dim: int
    score: ScoreKind
    comment: str
    since: str | None = None

    @property
    def staging(self) -> str:
        """The table that rows are loaded into."""
        return f"{self.name}_new"

    @property
    def columns(self) -> list[str]:
        """The names of its columns."""
        return ["id", *(["name"] if self.has_names else []), "vector"]

    def create(self) -> list[str]:
        """Return the statements that create the table for the rows, after waiting for other exports of this table."""
        # A change without a vector is an ID that is deleted.
        vector = f"vector({self.dim}){' NOT NULL' if self.since is None else ''}"
        types = {"id": f"{self.id_type} NOT NULL", "name": "text", "vector": vector}
        columns = ",\n".join(f"    {column} {types[column]}" for column in self.columns)
        check = f"""\
DO $check$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('{_MARK}{self.name}'));
{self._check()}
END $check$;"""
        return [check, f"CREATE TABLE {self.staging} (\n{columns}\n);"]

    def copy(self, source: str, *, header: bool = True) -> str:
        """Return the statement that loads CSV from ``source``."""
        options = f"FORMAT csv{', HEADER' if header else ''}, ENCODING 'UTF8'"
        return f"copy {self.staging} ({', '.join(self.columns)}) FROM {source} WITH ({options})"

    def complete(self) -> list[str]:
        """Return the statements that follow the rows: keys, the index, and statistics."""
        if self.since is not None:
            return [f"ANALYZE {self.staging};"]
        index = (
            f"CREATE INDEX {self.staging}_vector_idx ON {self.staging} USING hnsw "
            f"(vector {_OPERATOR_CLASSES[self.score]});"
        )
        return [
            f"ALTER TABLE {self.staging} ADD CONSTRAINT {self.staging}_pkey PRIMARY KEY (id);",
            *([index] if self._is_indexed else []),
            self._comment(self.staging),
            f"ANALYZE {self.staging};",
        ]

    def replace(self) -> list[str]:
        """Return the statements that change the previous table, or replace it; then readers wait until the commit."""
        if self.since is not None:
            return self._apply()
        swap = f"""\
DO $replace$
DECLARE
    privilege record;
BEGIN
{self._check()}
    FOR privilege IN
        SELECT acl.privilege_type AS kind, coalesce(quote_ident(role.rolname), 'PUBLIC') AS grantee,
               CASE WHEN acl.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END AS suffix
        FROM pg_class previous CROSS JOIN aclexplode(previous.relacl) acl
             LEFT JOIN pg_roles role ON role.oid = acl.grantee
        WHERE previous.relname = '{self.name}' AND previous.relnamespace = quote_ident(current_schema())::regnamespace
    LOOP
        EXECUTE format('GRANT %s ON {self.staging} TO %s%s', privilege.kind, privilege.grantee, privilege.suffix);
    END LOOP;
    EXECUTE format('DROP TABLE IF EXISTS %I.{self.name}', current_schema());
END $replace$;"""  # noqa: S608 - the name is of letters, digits, and _
        return [
            swap,
            f"ALTER TABLE {self.staging} RENAME TO {self.name};",
            f"ALTER INDEX {self.staging}_pkey RENAME TO {self.name}_pkey;",
            *([f"ALTER INDEX {self.staging}_vector_idx RENAME TO {self.name}_vector_idx;"] if self._is_indexed else []),
        ]

    def _apply(self) -> list[str]:
        values = ", ".join(f"{column} = excluded.{column}" for column in self.columns[1:])
        columns = ", ".join(self.columns)
        return [
            f"DELETE FROM {self.name} USING {self.staging} changed "  # noqa: S608 - as above
            f"WHERE {self.name}.id = changed.id AND changed.vector IS NULL;",
            f"INSERT INTO {self.name} ({columns}) SELECT {columns} FROM {self.staging} "  # noqa: S608
            f"WHERE vector IS NOT NULL ON CONFLICT (id) DO UPDATE SET {values};",
            f"DROP TABLE {self.staging};",
            self._comment(self.name),
        ]

    def _comment(self, name: str) -> str:
        comment = f"{_MARK}{self.comment}".replace("'", "''")
        return f"COMMENT ON TABLE {name} IS '{comment}';"

    @property
    def _is_indexed(self) -> bool:
        return self.dim <= MAX_INDEXED_COLUMNS

    def _check(self) -> str:
        """Return PL/pgSQL that raises if another table has the name, or lacks what changes are made to."""
        if self.since is not None:
            return f"""\
    IF NOT EXISTS (
        SELECT FROM pg_class previous
        WHERE previous.relname = '{self.name}' AND previous.relnamespace = quote_ident(current_schema())::regnamespace
              AND obj_description(previous.oid, 'pg_class') LIKE '{_MARK}%, {_FINGERPRINT} {self.since}, %'
    ) THEN
        RAISE EXCEPTION 'the table {self.name} does not hold the version that the changes are of; export it completely';
    END IF;"""
        return f"""\
    IF EXISTS (
        SELECT FROM pg_class previous
        WHERE previous.relname = '{self.name}' AND previous.relnamespace = quote_ident(current_schema())::regnamespace
              AND coalesce(obj_description(previous.oid, 'pg_class'), '') NOT LIKE '{_MARK}%'
    ) THEN
        RAISE EXCEPTION 'the table {self.name} is not one that crossfade export wrote; export it by another name';
    END IF;"""


def _identity(model: TrainedModel) -> str:
    """Return a text that two models have in common only if their vectors and their IDs are the same."""
    return ", model ".join(identity(model))


def _vector_tables(exported: ExportedModel) -> dict[str, VectorTable]:
    """Return the table in PostgreSQL of each exported table."""
    model = exported.model
    origin = model.uri.rpartition("/")[2] if model.step is None else f"step {model.step:,}"
    comment = (
        f"{origin} of job {model.job.name}, score {model.job.model.score}, {_FINGERPRINT} {_identity(model)}, "
        f"exported {exported.date.isoformat(timespec='seconds')}"
    )
    tables = {}
    for table in exported.tables:
        entity = model.manifest.entities[table.name]
        tables[table.name] = VectorTable(
            exported.names[table.name],
            id_type="text" if entity.id_type == "string" else "bigint",
            has_names=entity.has_names,
            dim=table.dim,
            score=model.job.model.score,
            comment=comment,
            since=None if exported.since is None else _identity(exported.since),
        )
    return tables


def write_pgvector(exported: ExportedModel, folder: Path) -> str:
    """Write the files, and return Markdown on how to load them.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        InputError: the model has no vectors of a table, or the dataset is corrupt.
        OSError: a file cannot be written.
    """
    tables = _vector_tables(exported)
    copies = [
        "\\" + tables[table.name].copy(f"'{table.name}/{path.name}'")
        for table in exported.tables
        for path in _write_rows(exported, table, tables[table.name], folder / table.name)
    ]
    creations = [statement for target in tables.values() for statement in target.create()]
    completions = [statement for target in tables.values() for statement in target.complete()]
    replacements = [statement for target in tables.values() for statement in target.replace()]
    _write_sql(folder / "schema.sql", [*_PREPARATION, *creations])
    _write_sql(folder / "copy.sql", copies)
    _write_sql(folder / "replace.sql", [*completions, *replacements])
    write_script(folder / "load.sh", _SCRIPT)
    return _loading(exported)


def _loading(exported: ExportedModel) -> str:
    if exported.since is not None:
        return (
            "`load.sh` makes the changes to the tables of an export of the earlier model, in one transaction. Tables "
            "that hold another one are not changed.\n\n```\nPGHOST=localhost PGDATABASE=music sh load.sh\n```"
        )
    table, query = exported.example_tables()
    name = exported.names[table.name]
    example = exported.example_ids[query.name]
    literal = str(example) if isinstance(example, int) else "'" + example.replace("'", "''") + "'"
    label = "id, name" if exported.model.manifest.entities[table.name].has_names else "id"
    operator = _OPERATORS[exported.model.job.model.score]
    # It is only printed.
    first = f"(SELECT vector FROM {exported.names[query.name]} WHERE id = {literal})"  # noqa: S608
    search = f"SELECT {label}, vector {operator} {first} AS distance\nFROM {name} ORDER BY distance LIMIT 10;"
    indexed = (
        "with an HNSW index"
        if table.dim <= MAX_INDEXED_COLUMNS
        else f"without an index, since pgvector indexes {MAX_INDEXED_COLUMNS:,} columns at most"
    )
    return (
        f"`load.sh` loads a table for each entity, {indexed}, in one transaction that replaces the previous tables, "
        "so that readers find all previous rows or all new ones. Tables that no export wrote are not replaced. "
        "pgvector 0.5 or later is required.\n\n"
        "```\nPGHOST=localhost PGDATABASE=music sh load.sh\n```\n\n"
        f"The ten rows of {table.name} with the best score for the first {query.name}:\n\n"
        f"```sql\n{search}\n```"
    )


def _write_rows(exported: ExportedModel, table: TableSpec, target: VectorTable, folder: Path) -> list[Path]:
    folder.mkdir()
    paths: list[Path] = []
    writer: Any = None
    try:
        for first, rows in _csv_tables(exported, table, target):
            if writer is None or first // FILE_ROWS > int(paths[-1].stem.rpartition("-")[2]) // FILE_ROWS:
                if writer is not None:
                    writer.close()
                paths.append(folder / f"rows-{first:012d}.csv")
                writer = pyarrow.csv.CSVWriter(paths[-1], rows.schema)
            writer.write_table(rows)
    finally:
        if writer is not None:
            writer.close()
    return paths


def _csv_tables(exported: ExportedModel, table: TableSpec, target: VectorTable) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows of ``table``, or its changes, in pieces, and the number of the first row of each."""
    if exported.since is None:
        for block in exported.trained_blocks(table):
            for piece in block.pieces():
                yield piece.rows.column("row")[0].as_py(), _csv_table(piece, target)
        return
    for changes in exported.changes(table, complete=False):
        for piece in changes.block.pieces():
            yield 0, _csv_table(piece, target)
        nulls = {name: pa.nulls(len(changes.deleted), pa.string()) for name in target.columns[1:]}
        yield 0, pa.table({"id": changes.deleted, **nulls})


def _csv_table(block: Block, target: VectorTable) -> pa.Table:
    columns = {name: block.rows.column(name) for name in target.columns if name != "vector"}
    return pa.table({**columns, "vector": block.vector_texts()})


def _write_sql(path: Path, statements: list[str]) -> None:
    path.write_text("\n".join(statements) + "\n", encoding="utf-8")


def check_connection(uri: str) -> None:
    """Check that psycopg is installed, and that ``uri``, which may be empty, is valid and has no password.

    Raises:
        InputError: it is not valid, or has one.
        MissingExtraError: psycopg is not installed.
    """
    psycopg = _load_psycopg()
    try:
        options = psycopg.conninfo.conninfo_to_dict(uri)
    except psycopg.ProgrammingError as error:
        # The message of libpq may quote the URI, and with it a password.
        uri = "postgresql://USER@HOST:PORT/DATABASE"
        raise OptionError("push", problem="not a URI of PostgreSQL", expected=uri) from error
    if {"password", "sslpassword"} & options.keys():
        problem = "the URI has a password, which others can see in the list of processes"
        raise OptionError("push", problem=problem, fix="leave it out, and set PGPASSWORD or write it to ~/.pgpass")


def push(exported: ExportedModel, uri: str) -> str:
    """Replace the tables, and return the address of the server and the database.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        CrossfadeError: the server failed or was lost.
        InputError: the server cannot be reached, rejects a statement, or has another table of the same name.
        MissingExtraError: psycopg is not installed.
    """
    psycopg = _load_psycopg()
    try:
        connection = psycopg.connect(uri, application_name="crossfade export")
    except psycopg.OperationalError as error:
        problem = f"cannot connect to PostgreSQL: {_one_line(error)}"
        fix = "check the URI, or PGHOST, PGPORT, PGDATABASE, PGUSER and PGPASSWORD"
        raise OptionError("push", problem=problem, fix=fix) from error
    try:
        _replace_tables(connection, exported)
        connection.commit()
        info = connection.info
        return f"{info.host}:{info.port}/{info.dbname}"
    except psycopg.OperationalError as error:
        message = (Option("push"), f": {_one_line(error)}; tables are replaced completely or not at all")
        raise CrossfadeError(message) from error
    except psycopg.Error as error:
        raise OptionError("push", problem=_one_line(error), fix="the previous tables are unchanged") from error
    finally:
        if connection.info.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
            # A signal interrupted a statement, which the server would complete. Canceling fails if the server is lost.
            with suppress(psycopg.Error):
                connection.cancel()
        connection.close()


def _load_psycopg() -> Any:
    try:
        import psycopg
        import psycopg.conninfo
    except ImportError as error:
        raise MissingExtraError("psycopg", extra="export", purpose=command("export", push=True)) from error
    return psycopg


def _replace_tables(connection: Any, exported: ExportedModel) -> None:
    tables = _vector_tables(exported)
    for statement in _PREPARATION:
        connection.execute(statement)
    for table in exported.tables:
        target = tables[table.name]
        for statement in target.create():
            connection.execute(statement)
        with connection.cursor() as cursor, cursor.copy(target.copy("STDIN", header=False)) as copy:
            for _, piece in _csv_tables(exported, table, target):
                rows = BytesIO()
                pyarrow.csv.write_csv(piece, rows, _NO_HEADER)
                copy.write(rows.getvalue())
        exported.reporter.phase(f"index {target.name}", None, "row")
        for statement in target.complete():
            connection.execute(statement)
    for target in tables.values():
        for statement in target.replace():
            connection.execute(statement)


def _one_line(error: Exception) -> str:
    """Return the message of an error of PostgreSQL in one line, without its context."""
    message = getattr(getattr(error, "diag", None), "message_primary", None) or str(error)
    return " ".join(message.split())
