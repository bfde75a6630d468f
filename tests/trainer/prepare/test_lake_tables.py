"""Events from tables of Delta Lake and Apache Iceberg, on disk and on S3, are those of their Parquet files."""

import json
import struct
from base64 import b85encode
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyiceberg.catalog
import pytest
from command_here import crossfade_here, rejected_here
from deltalake import DeltaTable, write_deltalake
from object_store import running_object_store
from preparing import vocabulary_tuples
from pyiceberg.catalog import load_catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.types import LongType
from pyiceberg.utils.config import Config
from running_command import succeeded

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.trainer.prepare.input_files import find_arriving, find_files
from crossfade.trainer.prepare.lake_tables import table_files

pytestmark = pytest.mark.slow

DAYS = [
    pa.table({"customer": ["u", "v", "w"], "track": ["a", "b", "a"], "at": [100, 200, 300]}),
    pa.table({"customer": ["u", "x"], "track": ["c", "a"], "at": [400, 500]}),
]
COLUMNS = ("--query", "customer", "--item", "track", "--timestamp", "at", "--hold-out-valid", "none")


RFC_1924 = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
Z85 = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
"""The digits of base 85: of Python's, and of Delta's."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the same events as files, as a table of Delta, and as one of Iceberg in a catalog."""
    folder = tmp_path_factory.mktemp("tables")
    catalog = SqlCatalog("music", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/warehouse")
    catalog.create_namespace("lake")
    table = catalog.create_table("lake.plays", schema=DAYS[0].schema)
    for number, day in enumerate(DAYS):
        pq.write_table(day, folder / f"{number}.parquet")
        write_deltalake(folder / "delta", day, mode="append")
        table.append(day)
    # What was deleted since is in files that the newest version does not have.
    write_deltalake(folder / "delta", pa.table({"customer": ["z"], "track": ["a"], "at": [1]}), mode="append")
    DeltaTable(folder / "delta").delete("customer = 'z'")
    table.append(pa.table({"customer": ["z"], "track": ["a"], "at": [1]}))
    table.delete("customer == 'z'")
    catalog.close()
    return folder


def prepared(folder: Path, out: str, *events: object) -> list[object]:
    """Prepare ``events``, and return the vocabularies of the dataset and its interactions."""
    succeeded(crossfade_here("prepare", "--events", *events, *COLUMNS, "--out", out, "--overwrite", cwd=folder))
    data = folder / out
    train = pq.read_table(data / "train").sort_by([("timestamp", "ascending")]).to_pylist()
    return [vocabulary_tuples(data, "customer"), vocabulary_tuples(data, "track"), train]


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[object]:
    return prepared(folder, "of-files", "0.parquet", "1.parquet")


def configure(monkeypatch: pytest.MonkeyPatch, uri: str, **settings: str) -> None:
    """Configure the catalog ``music`` of PyIceberg."""
    for name, value in {"type": "sql", "uri": uri, **settings}.items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__MUSIC__{name.upper()}", value)
    monkeypatch.setattr(pyiceberg.catalog, "_ENV_CONFIG", Config())  # which is read once


def test_tables_have_the_events_of_their_newest_version(
    folder: Path, expected: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(monkeypatch, f"sqlite:///{folder}/catalog.db")
    assert prepared(folder, "of-delta", "delta") == expected
    assert prepared(folder, "of-iceberg", "iceberg://music/lake.plays") == expected


def test_tables_on_s3_are_read_with_the_credentials_of_aws(
    folder: Path, tmp_path: Path, expected: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_object_store(tmp_path) as store:
        for name, value in store.variables.items():
            monkeypatch.setenv(name, value)
        for path in (folder / "delta").rglob("*.*"):
            Folder(store.uri("lake")).write(str(path.relative_to(folder)), path.read_bytes())
        assert prepared(folder, "of-s3", store.uri("lake/delta")) == expected
        configure(
            monkeypatch,
            f"sqlite:///{tmp_path}/s3.db",
            warehouse=store.uri("warehouse"),
            s3__endpoint=store.variables["AWS_ENDPOINT_URL"],
        )
        with load_catalog("music") as catalog:
            catalog.create_namespace("lake")
            table = catalog.create_table("lake.plays", schema=DAYS[0].schema)
            for day in DAYS:
                table.append(day)
        assert prepared(folder, "of-s3", "iceberg://music/lake.plays") == expected


def test_names_of_folders_and_partitions_are_decoded_once(tmp_path: Path) -> None:
    plays = DAYS[0].append_column("genre", pa.array(["a b", "100%", "ü/x"]))
    write_deltalake(tmp_path / "my läke.v2", plays, partition_by=["genre"])
    files = find_files("events", [(tmp_path / "my läke.v2").as_uri()], None)
    assert [pq.read_table(file.path).num_rows for file in files] == [1, 1, 1]  # type: ignore[union-attr]


def delta_log(folder: Path, *entries: dict[str, object]) -> Path:
    """Write a table of Delta whose log has ``entries``, and a file."""
    pq.write_table(DAYS[0], folder / "part.parquet")
    (folder / "_delta_log").mkdir()
    schema = {"type": "struct", "fields": [{"name": "customer", "type": "string", "nullable": True, "metadata": {}}]}
    metadata = {
        "id": "1",
        "format": {"provider": "parquet", "options": {}},
        "schemaString": json.dumps(schema),
        "partitionColumns": [],
        "configuration": {},
    }
    added = {"path": "part.parquet", "partitionValues": {}, "size": 9, "modificationTime": 1, "dataChange": True}
    added["stats"] = json.dumps({"numRecords": 3})
    lines = [{"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}, {"metaData": metadata}, {"add": added}]
    for entry in entries:
        [(name, values)] = entry.items()
        [line] = [line for line in lines if name in line]
        line[name] = {**line[name], **values}  # type: ignore[dict-item]
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "_delta_log" / f"{0:020}.json").write_text(text)
    return folder


def test_deleted_rows_and_mapped_columns_of_delta_are_rejected(tmp_path: Path) -> None:
    features = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": ["deletionVectors"]}
    # Row 0, as Delta's protocol stores it: a magic number, and a bitmap of RoaringBitmap's portable format.
    bitmap = struct.pack("<IQIIIHHIH", 1681511377, 1, 0, 12346, 1, 0, 0, 16, 0)
    text = b85encode(bitmap + bytes(2)).translate(bytes.maketrans(RFC_1924, Z85)).decode()
    vector = {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": len(bitmap), "cardinality": 1}
    (tmp_path / "deleted").mkdir()
    deleted = delta_log(
        tmp_path / "deleted",
        {"protocol": {**features, "writerFeatures": ["deletionVectors"]}},
        {"add": {"deletionVector": vector}},
    )
    cause = "which its files do not show"
    rejected_here(cause, "prepare", "--events", deleted, *COLUMNS, "--out", tmp_path / "out")
    (tmp_path / "mapped").mkdir()
    mapped = delta_log(tmp_path / "mapped", {"metaData": {"configuration": {"delta.columnMapping.mode": "name"}}})
    with pytest.raises(InputError, match="columns mapped by name, which its files do not show"):
        table_files("events", str(mapped))


def test_renamed_columns_of_iceberg_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}")
    with load_catalog("music") as catalog:
        catalog.create_namespace("lake")
        table = catalog.create_table("lake.plays", schema=DAYS[0].schema)
        table.append(DAYS[0])
        with table.update_schema() as update:
            update.rename_column("customer", "listener")
        again = catalog.create_table("lake.again", schema=DAYS[0].schema)
        again.append(DAYS[0])
        with again.update_schema(allow_incompatible_changes=True) as update:
            update.delete_column("at")
        with again.update_schema() as update:
            update.add_column("at", LongType())
    for name in ("plays", "again"):
        with pytest.raises(InputError, match="columns that were renamed, or dropped and added again"):
            table_files("events", f"iceberg://music/lake.{name}")


def test_unknown_and_streamed_tables_are_rejected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, f"sqlite:///{folder}/catalog.db")
    cause = "cannot be read as a table by pyiceberg"
    rejected_here(cause, "prepare", "--events", "iceberg://music/lake.none", *COLUMNS, "--out", "no", cwd=folder)
    with pytest.raises(InputError, match="replaced when it is compacted"):
        find_arriving("events", str(folder / "delta"), None)
