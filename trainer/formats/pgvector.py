r"""Write a table for PostgreSQL with pgvector for each entity, as CSV files, and the scripts that load them.

FOLDER/load.sh                              runs the three scripts with psql in one transaction
FOLDER/schema.sql                           the extension, and tables with id, name, and vector
FOLDER/copy.sql                             \copy of each file
FOLDER/replace.sql                          primary keys and HNSW indexes; then the tables replace the previous ones
FOLDER/ENTITY/rows-000000000000.csv         id, name if the dataset has names, and vector; the first row in the name
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from crossfade.kvstore.store import TableSpec
from crossfade.trainer.data.manifest import data_fingerprint
from crossfade.trainer.embeddings.files import FILE_ROWS
from crossfade.trainer.formats.exported_model import Block, ExportedModel
from crossfade.trainer.formats.pgvector_sql import MAX_INDEXED_COLUMNS, OPERATORS, VectorTable, prepare
from crossfade.trainer.formats.scripts import write_script

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


def vector_tables(exported: ExportedModel) -> dict[str, VectorTable]:
    """Return the table in PostgreSQL of each exported table."""
    model = exported.model
    origin = model.uri.rpartition("/")[2] if model.step is None else f"step {model.step:,}"
    comment = (
        f"{origin} of job {model.job.name}, score {model.job.model.score}, dataset fingerprint "
        f"{data_fingerprint(model.data):08x}, exported {exported.date.isoformat(timespec='seconds')}"
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
        )
    return tables


def write_pgvector(exported: ExportedModel, folder: Path) -> None:
    """Write the files.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        InputError: the model has no vectors of a table, or the dataset is corrupt.
        OSError: a file cannot be written.
    """
    tables = vector_tables(exported)
    copies = []
    for table in exported.tables:
        target = tables[table.name]
        for path in _write_rows(exported, table, target, folder / table.name):
            copies.append(
                f"\\copy {target.staging} ({', '.join(target.columns)}) FROM '{table.name}/{path.name}' "
                "WITH (FORMAT csv, HEADER, ENCODING 'UTF8')"
            )
    creations = [statement for target in tables.values() for statement in target.create()]
    completions = [statement for target in tables.values() for statement in target.complete()]
    replacements = [statement for target in tables.values() for statement in target.replace()]
    _write_sql(folder / "schema.sql", [*prepare(), *creations])
    _write_sql(folder / "copy.sql", copies)
    _write_sql(folder / "replace.sql", [*completions, *replacements])
    write_script(folder / "load.sh", _SCRIPT)


def pgvector_loading(exported: ExportedModel) -> str:
    """Return Markdown on how to load the files."""
    table, spec = exported.example_table(), exported.model.spec
    name = exported.names[table.name]
    query = spec.query if table == spec.item and spec.query in exported.tables else table
    example = exported.example_ids[query.name]
    literal = str(example) if isinstance(example, int) else "'" + example.replace("'", "''") + "'"
    label = "id, name" if exported.model.manifest.entities[table.name].has_names else "id"
    operator = OPERATORS[exported.model.job.model.score]
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
        for block in exported.trained_blocks(table):
            first = block.rows.column("row")[0].as_py()
            if writer is None or first // FILE_ROWS > int(paths[-1].stem.rpartition("-")[2]) // FILE_ROWS:
                if writer is not None:
                    writer.close()
                paths.append(folder / f"rows-{first:012d}.csv")
                writer = pyarrow.csv.CSVWriter(paths[-1], _csv_table(block, target).schema)
            for piece in block.pieces():
                writer.write_table(_csv_table(piece, target))
    finally:
        if writer is not None:
            writer.close()
    return paths


def _csv_table(block: Block, target: VectorTable) -> pa.Table:
    columns = {name: block.rows.column(name) for name in target.columns if name != "vector"}
    return pa.table({**columns, "vector": block.vector_texts()})


def _write_sql(path: Path, statements: list[str]) -> None:
    path.write_text("\n".join(statements) + "\n", encoding="utf-8")
