"""Find the files of tables of Delta Lake and Apache Iceberg, which are read like other Parquet files.

    is_table(Folder("s3://lake/plays"))         # a folder with a log of Delta, or with metadata of Iceberg
    table_files("events", "s3://lake/plays")    # the files of its newest version, with their bytes

A table of Delta is named by its folder; one of Iceberg by a metadata file, or as ``iceberg://CATALOG/NAMESPACE.TABLE``
by a catalog that PyIceberg is configured for. Files are read by the names of their columns, and whole. So tables whose
files hold deleted rows or other names than the table are rejected. A column by which a table of Delta is partitioned is
in no file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from crossfade.base.errors import InputError, MissingExtraError, Text
from crossfade.base.io.folder import Folder
from crossfade.base.io.s3 import s3_endpoint

CATALOG = "iceberg://"
_METADATA, _DELTA_LOG, _ICEBERG_FOLDER = ".metadata.json", "_delta_log", "metadata"


def names_table(location: str) -> bool:
    """Return whether ``location`` names a table by a catalog, or by a metadata file."""
    return location.startswith(CATALOG) or location.endswith(_METADATA)


def is_table(folder: Folder) -> bool:
    """Return whether ``folder`` is that of a table of Delta, or of Iceberg, whose catalog names the newest metadata."""
    found = folder.entries()
    return _DELTA_LOG in found or (
        _ICEBERG_FOLDER in found and any(name.endswith(_METADATA) for name in folder.child(_ICEBERG_FOLDER).entries())
    )


def table_files(option: Text, location: str) -> list[tuple[str, int]]:
    """Return path or URI, and bytes, of the files of the newest version of the table at ``location``, in order.

    Messages begin with ``option``.

    Raises:
        InputError: the table cannot be read, or its files must not be read as they are.
        MissingExtraError: the package that plans them is not installed.
    """
    if names_table(location):
        files = _iceberg_files(option, location)
    elif _DELTA_LOG in Folder(location).entries():
        files = _delta_files(option, location.rstrip("/"))
    else:
        raise InputError(
            option,
            f": is a table of Iceberg; name it by its catalog, as {CATALOG}CATALOG/NAMESPACE.TABLE, or name its newest "
            f"{_ICEBERG_FOLDER}/…{_METADATA}",
        )
    if not files:
        raise InputError(option, ": the table has no files")
    return sorted(files)


def _delta_files(option: Text, location: str) -> list[tuple[str, int]]:
    with _errors(option, "deltalake"):
        from deltalake import DeltaTable

        table = DeltaTable(location, storage_options=_delta_storage() if location.startswith("s3://") else None)
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
    return [(f"{location}/{unquote(path)}", size) for path, size in zip(paths, sizes, strict=True)]


def _delta_storage() -> dict[str, str]:
    """Return the options of Delta's client, which by itself searches fewer places for credentials than AWS's tools."""
    import boto3

    endpoint, session = s3_endpoint(), boto3.Session()
    credentials = session.get_credentials()
    frozen = credentials.get_frozen_credentials() if credentials is not None else None
    options = {
        "aws_endpoint_url": endpoint,
        "aws_allow_http": str((endpoint or "").startswith("http://")).lower(),
        "aws_region": session.region_name,
        "aws_access_key_id": frozen and frozen.access_key,
        "aws_secret_access_key": frozen and frozen.secret_key,
        "aws_session_token": frozen and frozen.token,
    }
    return {name: value for name, value in options.items() if value}


def _iceberg_files(option: Text, location: str) -> list[tuple[str, int]]:
    with _errors(option, "pyiceberg"):
        from pyiceberg.catalog import load_catalog
        from pyiceberg.table import StaticTable, Table

        table: Table
        if location.startswith(CATALOG):
            catalog, _, name = location.removeprefix(CATALOG).partition("/")
            table = load_catalog(catalog).load_table(name)
        else:
            endpoint = s3_endpoint() if location.startswith("s3") else None
            table = StaticTable.from_metadata(location, {"s3.endpoint": endpoint} if endpoint else {})
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
