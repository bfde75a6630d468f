"""Find the files of tables of Delta Lake and Apache Iceberg, which are read like other Parquet files.

    is_table("s3://lake/plays")                 # a folder with a log of Delta, or with metadata of Iceberg
    table_files("events", "s3://lake/plays")    # the files of its newest version, with their sizes

A table is named by its folder (of Iceberg, only if that has ``version-hint.text``), by a metadata file of Iceberg, or
as ``iceberg://CATALOG/NAMESPACE.TABLE`` by a catalog that PyIceberg is configured for. Files are read by the names of
their columns, and whole. So tables whose files hold deleted rows or other names than the table are rejected. A column
by which a table of Delta is partitioned is in no file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from crossfade.base.errors import InputError, MissingExtraError, Text
from crossfade.base.io.folder import Folder
from crossfade.base.io.s3 import s3_endpoint

if TYPE_CHECKING:
    from pyiceberg.table import Table

CATALOG = "iceberg://"
_METADATA, _HINT, _DELTA_LOG = ".metadata.json", "version-hint.text", "_delta_log"
_S3 = "s3://"


@dataclass(frozen=True)
class TableFile:
    """A file of a table: its path or URI, and bytes."""

    uri: str
    bytes: int


def names_table(location: str) -> bool:
    """Return whether ``location`` names a table by a catalog, or by a metadata file."""
    return location.startswith(CATALOG) or location.endswith(_METADATA)


def is_table(folder: Folder) -> bool:
    """Return whether ``folder`` is that of a table."""
    names = folder.entries().keys()
    return _DELTA_LOG in names or ("metadata" in names and bool(_metadata_files(folder)))


def _metadata_files(folder: Folder) -> list[str]:
    return sorted(name for name in folder.child("metadata").entries() if name.endswith(_METADATA))


def table_files(option: Text, location: str) -> list[TableFile]:
    """Return the files of the newest version of the table at ``location``, in order of their URIs.

    Messages begin with ``option``.

    Raises:
        InputError: the table cannot be read, or its files must not be read as they are.
        MissingExtraError: the package that plans them is not installed.
    """
    if names_table(location):
        files = _iceberg_files(option, location)
    elif _DELTA_LOG in (folder := Folder(location)).entries():
        files = _delta_files(option, location)
    elif _HINT in folder.child("metadata").entries():
        files = _iceberg_files(option, location)
    else:
        raise InputError(
            option,
            ": is a table of Iceberg, whose catalog decides which metadata is the newest: name it by the "
            f"catalog, as {CATALOG}CATALOG/NAMESPACE.TABLE, or name the file, such as "
            f"{folder.uri}/metadata/{_metadata_files(folder)[-1]}",
        )
    if not files:
        raise InputError(option, ": the table has no files")
    return sorted(files, key=lambda file: file.uri)


def _delta_files(option: Text, location: str) -> list[TableFile]:
    with _extra("deltalake", option):
        from deltalake import DeltaTable
    with _errors(option, "Delta"):
        if "%" in location:
            raise ValueError("the package deltalake reads % in an address as an escape; rename the folder")
        table = DeltaTable(location, storage_options=_delta_storage(location))
        features = table.protocol().reader_features or []
        mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
        added = table.get_add_actions(flatten=True)
        paths, sizes = (added.column(name).to_pylist() for name in ("path", "size_bytes"))
        has_deleted = "deletionVectors" in features and any(part.num_rows for part in table.deletion_vectors())
    if has_deleted:
        raise _rewrite(option, "deletion vectors", "REORG TABLE … APPLY (PURGE)")
    if mapping != "none":
        raise _rewrite(option, f"columns mapped by {mapping}", "a copy of the table without delta.columnMapping.mode")
    if absolute := next((path for path in paths if "://" in path or path.startswith("/")), None):
        raise InputError(
            option, f": the table has files of another one, such as {absolute}; expected one with files of its own"
        )
    # The log has paths as parts of URIs.
    root = location.rstrip("/")
    return [TableFile(f"{root}/{unquote(path)}", size) for path, size in zip(paths, sizes, strict=True)]


def _iceberg_files(option: Text, location: str) -> list[TableFile]:
    with _extra("pyiceberg", option):
        from pyiceberg.catalog import load_catalog
        from pyiceberg.table import StaticTable
    with _errors(option, "Iceberg"):
        if location.startswith(CATALOG):
            catalog, _, name = location.removeprefix(CATALOG).partition("/")
            table: Table = load_catalog(catalog).load_table(name)
        else:
            table = StaticTable.from_metadata(location, _iceberg_storage(location))
        tasks = list(table.scan().plan_files())
        columns = {(field.field_id, field.name) for schema in table.schemas().values() for field in schema.fields}
    if any(task.delete_files for task in tasks):
        raise _rewrite(option, "deleted rows in files of their own", "rewrite_data_files")
    if len(columns) > min(len(set(part)) for part in zip(*columns, strict=True)):
        raise _rewrite(option, "columns that were renamed, or dropped and added again", "a copy as a new table")
    if formats := {task.file.file_format for task in tasks} - {"PARQUET"}:
        raise InputError(option, f": the table has files of {', '.join(map(str, formats))}; expected Parquet")
    return [TableFile(_location(option, task.file.file_path), task.file.file_size_in_bytes) for task in tasks]


def _location(option: Text, uri: str) -> str:
    """Return a path, or an address as other files have it: Hadoop and Spark call it s3a, and write one / for a file."""
    scheme, separator, rest = uri.partition(":")
    if not separator or uri.startswith("/"):
        return uri
    if scheme == "file":
        return "/" + rest.lstrip("/")
    if scheme not in ("s3", "s3a", "s3n"):
        raise InputError(option, f": the table has files at {scheme}://; expected local files or s3://")
    return f"s3:{rest}"


def _rewrite(option: Text, what: str, how: str) -> InputError:
    return InputError(option, f": the table has {what}, which its files do not show; rewrite them first: {how}")


@contextmanager
def _extra(package: str, option: Text) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(package, extra="lake", purpose=option) from error


@contextmanager
def _errors(option: Text, kind: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the packages' errors have no common base
        raise InputError(option, f": cannot be read as a table of {kind}: {error}") from error


def _delta_storage(location: str) -> dict[str, str] | None:
    """Return the options of Delta's client, which by itself searches fewer places for credentials than AWS's tools."""
    if not location.startswith(_S3):
        return None
    options: dict[str, str | None] = {"aws_endpoint_url": s3_endpoint()}
    options["aws_allow_http"] = str((s3_endpoint() or "").startswith("http://")).lower()
    with suppress(ImportError):
        import boto3

        session: Any = boto3.Session()
        options["aws_region"] = session.region_name
        if (credentials := session.get_credentials()) is not None:
            frozen = credentials.get_frozen_credentials()
            options |= {"aws_access_key_id": frozen.access_key, "aws_secret_access_key": frozen.secret_key}
            options["aws_session_token"] = frozen.token
    return {name: value for name, value in options.items() if value}


def _iceberg_storage(location: str) -> dict[str, str]:
    endpoint = s3_endpoint() if location.startswith(("s3:", "s3a:", "s3n:")) else None
    return {"s3.endpoint": endpoint} if endpoint else {}
