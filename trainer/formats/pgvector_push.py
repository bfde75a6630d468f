"""Replace tables of vectors in PostgreSQL with pgvector, in one transaction, without files.

    check_connection("postgresql://recommender@db.example.com/music")
    server = push(exported, "postgresql://recommender@db.example.com/music")

The connection is that of a URI, and of libpq's environment for what the URI leaves out (PGHOST, PGUSER, PGPASSWORD,
~/.pgpass, PGSSLMODE and so on). A password is only taken from there: others can list the arguments of a process. Rows
are sent by COPY in its binary format.

Only this module imports psycopg.

Shapes: N rows of a block, D columns.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from crossfade.base.errors import CrossfadeError, InputError, MissingExtraError
from crossfade.trainer.formats.exported_model import Block, ExportedModel
from crossfade.trainer.formats.pgvector import vector_tables
from crossfade.trainer.formats.pgvector_sql import VectorTable, prepare

_COPY_HEADER = b"PGCOPY\n\xff\r\n\x00" + struct.pack(">ii", 0, 0)
_COPY_TRAILER = struct.pack(">h", -1)
_NULL = struct.pack(">i", -1)


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
        raise InputError("--push: not a URI of PostgreSQL; expected postgresql://USER@HOST:PORT/DATABASE") from error
    if {"password", "sslpassword"} & options.keys():
        raise InputError(
            "--push: the URI has a password, which others can see in the list of processes; leave it out, and set "
            "PGPASSWORD or write it to ~/.pgpass"
        )


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
        raise InputError(
            f"--push: cannot connect to PostgreSQL: {_one_line(error)}; check the URI, or PGHOST, PGPORT, PGDATABASE, "
            "PGUSER and PGPASSWORD"
        ) from error
    try:
        _replace_tables(connection, exported)
        connection.commit()
        info = connection.info
        return f"{info.host}:{info.port}/{info.dbname}"
    except psycopg.OperationalError as error:
        raise CrossfadeError(f"--push: {_one_line(error)}; tables are replaced completely or not at all") from error
    except psycopg.Error as error:
        raise InputError(f"--push: {_one_line(error)}; the previous tables are unchanged") from error
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
        raise MissingExtraError("psycopg", extra="export", purpose="crossfade export --push") from error
    return psycopg


def _replace_tables(connection: Any, exported: ExportedModel) -> None:
    tables = vector_tables(exported)
    for statement in prepare():
        connection.execute(statement)
    for table in exported.tables:
        target = tables[table.name]
        for statement in target.create():
            connection.execute(statement)
        columns = ", ".join(target.columns)
        with (
            connection.cursor() as cursor,
            cursor.copy(f"COPY {target.staging} ({columns}) FROM STDIN (FORMAT binary)") as copy,
        ):
            copy.write(_COPY_HEADER)
            for block in exported.trained_blocks(table):
                for piece in block.pieces():
                    copy.write(b"".join(_copy_rows(piece, target)))
            copy.write(_COPY_TRAILER)
        exported.reporter.phase(f"index {target.name}", None, "row")
        for statement in target.complete():
            connection.execute(statement)
    for target in tables.values():
        for statement in target.replace():
            connection.execute(statement)


def _copy_rows(block: Block, target: VectorTable) -> Iterator[bytes]:
    """Yield each row in the binary format of COPY: the number of fields, then each with its length."""
    ids = block.rows.column("id").to_pylist()
    names = block.rows.column("name").to_pylist() if target.has_names else [None] * len(ids)
    fields = struct.pack(">h", len(target.columns))
    # A vector is its columns and an unused number, both int16, and its values as float32.
    vector_head = struct.pack(">ihh", 4 + 4 * target.dim, target.dim, 0)
    big_endian_ND = block.vectors_ND.astype(">f4")
    for row_id, name, vector_D in zip(ids, names, big_endian_ND, strict=True):
        name_field = b"" if not target.has_names else _NULL if name is None else _text_field(name)
        id_field = struct.pack(">iq", 8, row_id) if target.id_type == "bigint" else _text_field(row_id)
        yield fields + id_field + name_field + vector_head + vector_D.tobytes()


def _text_field(text: str) -> bytes:
    content = text.encode()
    return struct.pack(">i", len(content)) + content


def _one_line(error: Exception) -> str:
    """Return the message of an error of PostgreSQL in one line, without its context."""
    message = getattr(getattr(error, "diag", None), "message_primary", None) or str(error)
    return " ".join(message.split())
