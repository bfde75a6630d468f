"""Write tables to a file whose name says the format: Parquet, CSV, or JSON lines.

    check_output(Path("recs.csv"), overwrite=False)
    rows = write_tables(Path("recs.csv"), tables)

CSV has a header, and quotes texts where that is needed; a missing value is empty. JSON lines have an object a row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from crossfade.base.errors import Option, OptionError
from crossfade.base.io.disk_errors import write_error
from crossfade.base.io.output import staged_file

Write = Callable[[pa.Table], Any]


def check_output(out: Path | None, *, overwrite: bool) -> None:
    """Reject an output file that is a folder, exists, or whose name says no format; a device or pipe gets Parquet.

    Raises:
        OptionError: it does.
    """
    if out is None:
        return
    if out.is_dir():
        raise OptionError("out", found=out, problem=f"is a folder; name a file in it, such as {out / 'rows.parquet'}")
    if out.suffix.lower() not in _WRITERS and not (out.exists() and not out.is_file()):
        raise OptionError("out", found=out, expected=f"a name that ends in {', '.join(_WRITERS)}")
    if out.exists() and not overwrite:
        fix = ("choose another, or replace it with ", Option("overwrite"))
        raise OptionError("out", found=out, problem="already exists", fix=fix)


def write_output(out: Path, tables: Iterable[pa.Table]) -> int:
    """Write ``tables`` to the user's file ``out``, as ``write_tables``; its folder is created.

    Raises:
        CrossfadeError: it cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return write_tables(out, tables)
    except OSError as error:
        raise write_error(Option("out", out), error, out) from error


def write_tables(path: Path, tables: Iterable[pa.Table]) -> int:
    """Write ``tables``, at least one, to ``path``, which appears when it is complete; return the number of rows.

    Raises:
        InputError: another process writes it.
        OSError: it cannot be written.
    """
    rows = 0
    with staged_file(path) as partial, ExitStack() as opened:
        write: Write | None = None
        for table in tables:
            if write is None:
                write = opened.enter_context(_WRITERS.get(path.suffix.lower(), _parquet)(partial, table.schema))
            write(table)
            rows += table.num_rows
        opened.close()
    return rows


@contextmanager
def _parquet(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        yield writer.write_table


@contextmanager
def _csv(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with pa.csv.CSVWriter(path, schema, write_options=pa.csv.WriteOptions(quoting_style="needed")) as writer:
        yield writer.write_table


@contextmanager
def _json_lines(path: Path, _: pa.Schema) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda table: file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in table.to_pylist())


_WRITERS: dict[str, Callable[[Path, pa.Schema], AbstractContextManager[Write]]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".jsonl": _json_lines,
}
