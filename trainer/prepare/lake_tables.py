"""Find the files of tables of Delta Lake and Apache Iceberg, which are read like other Parquet files.

    is_delta(Folder("s3://lake/plays"))                             # a folder with a log of Delta
    table_files("events", "s3://lake/plays")                        # the files of its newest version, with their bytes
    table_files("events", "iceberg://CATALOG/NAMESPACE.TABLE")      # of a catalog that PyIceberg is configured for

Files are read by the names of their columns, and whole. So tables whose files
hold deleted rows or other names than the table are rejected. A column by which a table of Delta is partitioned is in no
file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from crossfade.base.errors import InputError, MissingExtraError, Text
from crossfade.base.io.folder import Folder
from crossfade.base.io.s3 import s3_endpoint

CATALOG = "iceberg://"


def is_delta(folder: Folder) -> bool:
    """Return whether ``folder`` is a table of Delta."""
    return "_delta_log" in folder.entries()


def table_files(option: Text, location: str) -> list[tuple[str, int]]:
    """Return path or URI, and bytes, of the files of the newest version of the table at ``location``, in order.

    Messages begin with ``option``.

    Raises:
        InputError: the table cannot be read, or its files must not be read as they are.
        MissingExtraError: the package that plans them is not installed.
    """
    files = _iceberg_files(option, location) if location.startswith(CATALOG) else _delta_files(option, location)
    if not files:
        raise InputError(option, ": the table has no files")
    return sorted(files)


def _delta_files(option: Text, location: str) -> list[tuple[str, int]]:
    endpoint = s3_endpoint() or ""
    allowed = {"aws_endpoint_url": endpoint, "aws_allow_http": str(endpoint.startswith("http://")).lower()}
    with _errors(option, "deltalake"):
        from deltalake import DeltaTable

        table = DeltaTable(location, storage_options=allowed if location.startswith("s3://") and endpoint else None)
        features = table.protocol().reader_features or []
        mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
        added = table.get_add_actions(flatten=True)
        paths, sizes = (added.column(name).to_pylist() for name in ("path", "size_bytes"))
        has_deleted = "deletionVectors" in features and any(part.num_rows for part in table.deletion_vectors())
    if has_deleted:
        raise _rewrite(option, "deletion vectors", "REORG TABLE … APPLY (PURGE)")
    if mapping != "none":
        raise _rewrite(option, f"columns mapped by {mapping}", "a copy of the table without delta.columnMapping.mode")
    # The log has paths as parts of URIs.
    return [(f"{location.rstrip('/')}/{unquote(path)}", size) for path, size in zip(paths, sizes, strict=True)]


def _iceberg_files(option: Text, location: str) -> list[tuple[str, int]]:
    with _errors(option, "pyiceberg"):
        from pyiceberg.catalog import load_catalog

        catalog, _, name = location.removeprefix(CATALOG).partition("/")
        table = load_catalog(catalog).load_table(name)
        tasks = list(table.scan().plan_files())
        columns = {(field.field_id, field.name) for schema in table.schemas().values() for field in schema.fields}
    if any(task.delete_files for task in tasks):
        raise _rewrite(option, "deleted rows in files of their own", "rewrite_data_files")
    if len(columns) > min(len(set(part)) for part in zip(*columns, strict=True)):
        raise _rewrite(option, "columns that were renamed, or dropped and added again", "a copy as a new table")
    return [(_location(task.file.file_path), task.file.file_size_in_bytes) for task in tasks]


def _location(uri: str) -> str:
    """Return a path, or an address as other files have it: Hadoop and Spark call it s3a, and write one / for a file."""
    scheme, separator, rest = uri.partition(":")
    if scheme == "file":
        return "/" + rest.lstrip("/")
    return f"s3:{rest}" if separator and scheme in ("s3a", "s3n") else uri


def _rewrite(option: Text, what: str, how: str) -> InputError:
    return InputError(option, f": the table has {what}, which its files do not show; rewrite them first: {how}")


@contextmanager
def _errors(option: Text, package: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(package, extra="lake", purpose=option) from error
    except Exception as error:  # the packages' errors have no common base
        raise InputError(option, f": cannot be read as a table by {package}: {error}") from error
