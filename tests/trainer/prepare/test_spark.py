"""Spark and DuckDB write the same dataset, byte for byte, and report the same faults."""

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dirty_plays import DirtyPlays
from error_table import documented
from needs import package
from preparing import prepare_files, random_events, write_parquet, write_text

from crossfade.base.errors import InputError, MissingExtraError, OptionError
from crossfade.base.io.folder import Folder
from crossfade.cli.main import _unneeded
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.prepare import hold_out, staging
from crossfade.trainer.prepare.faults import EventFaultsError

EVENTS = 3_000
SETTINGS = {
    "driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",  # half of the processor time of short runs
    "driver.host": "127.0.0.1",
    "log.level": "ERROR",
    "sql.shuffle.partitions": "3",
    "ui.enabled": "false",
    "ui.showConsoleProgress": "false",
}
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:distutils Version classes are deprecated:DeprecationWarning",
)
"""Py4J leaves its sockets open, and PySpark 3.5 compares versions by distutils."""


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    """Open a session, which all preparations of this module use."""
    if shutil.which("java") is None:
        pytest.skip(package("Java", "openjdk-17-jre-headless"))
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master("local[2]")
    for name, value in SETTINGS.items():
        builder = builder.config(f"spark.{name}", value)
    session = builder.getOrCreate()
    yield session
    session.stop()
    gateway = SparkContext._gateway
    gateway.shutdown()
    gateway.proc.stdin.close()  # which ends Java
    gateway.proc.wait()
    SparkContext._gateway = SparkContext._jvm = None
    gc.collect()


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide few rows between tasks and files as many rows are."""
    from crossfade.trainer.prepare import spark_engine

    monkeypatch.setattr(spark_engine, "_TASK_ROWS", EVENTS // 2)
    monkeypatch.setattr(spark_engine, "_FEW_BYTES", 1_000)
    for module in (spark_engine, staging):
        monkeypatch.setattr(module, "GROUPS_PER_FILE", 2)
    for module in (spark_engine, hold_out):
        monkeypatch.setattr(module, "DEFAULT_PAIRS", 60)


def files(out: Path) -> dict[str, bytes]:
    """Return all files of a dataset, the manifest too."""
    folder = Folder(out)
    return {name: folder.read(name) for name in folder.sizes()}


def prepare_twice(folder: Path, *train: Path, **options: Any) -> tuple[DatasetManifest, dict[str, bytes]]:
    """Prepare with both engines, and compare; return the manifest and the files."""
    manifest = prepare_files(folder / "duckdb", *train, **options)
    assert prepare_files(folder / "spark", *train, engine="spark", **options) == manifest
    written = files(folder / "duckdb")
    assert files(folder / "spark") == written
    return manifest, written


@pytest.mark.slow
@pytest.mark.usefixtures("spark", "small_tasks")
def test_spark_writes_the_bytes_of_duckdb(tmp_path: Path) -> None:
    """Files of two formats, faults, negative weights, names, last-N, and tasks and files that share the rows."""
    events = random_events(EVENTS)
    weights = [(1, 2.5, -1, 0)[number * 7 % 4] for number in range(EVENTS)]
    parquet = write_parquet(tmp_path / "one.parquet", **events, w=weights)
    others = [f"c{number % 70},{number % 130},{number},0.3" for number in range(900)]
    csv = write_text(
        tmp_path / "two.csv", "\n".join(["customer,item,when,w", *others, "c1,2", ",3,3,3", "c1,5,soon,1"])
    )
    names = write_text(tmp_path / "names.csv", "id,title\n7,Seven\n1005,'Five'\n9999,of none\n")
    valid = write_parquet(tmp_path / "valid.parquet", customer=["c1", "new"], item=[7, 8], when=[1, 2], w=[1.0, 1.0])
    options = {"timestamp": "when", "weight": "w", "on_bad_line": "skip", "on_missing": "drop"}
    options |= {"valid": [valid], "hold_out_test": "last-2", "names": {"item": f"{names}:id:title"}}
    manifest, written = prepare_twice(tmp_path, parquet, csv, **options)
    assert (manifest.source["dropped_bad_lines"], manifest.source["dropped_missing"]) == (2, 1)
    assert manifest.source["item_named"] == 2
    assert {"train/part-00001.parquet", "test/part-00000.parquet"} <= written.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("spark", "small_tasks")
def test_spark_sums_and_holds_out_as_duckdb(tmp_path: Path) -> None:
    """Inexact sums in the order of the events, a split by time with a gap, and a default that counts what is left."""
    events = random_events(EVENTS)
    parquet = write_parquet(tmp_path / "one.parquet", **events, w=[number % 7 / 10 for number in range(EVENTS)])
    options = {"hold_out_test": "after:40", "hold_out_gap": "3", "hold_out_valid": "default", "duplicates": "sum"}
    manifest, _ = prepare_twice(tmp_path, parquet, timestamp="when", weight="w", **options)
    assert manifest.splits["valid"].rows < 100
    assert manifest.source["merged_duplicates"]
    assert manifest.source["dropped_gap"]


@pytest.mark.slow
@pytest.mark.usefixtures("spark")
def test_spark_lists_the_faults_of_duckdb(tmp_path: Path) -> None:
    dirty = tmp_path / "dirty.csv"
    DirtyPlays(dirty, count=2000)
    text = write_text(tmp_path / "text.csv", "user,artist,title,plays,at\nu1,a,b,x,1\nu1,a,b,2,3\n")
    options = {"query": "customer=user", "item": "track=artist+title", "weight": "plays", "timestamp": "at"}
    found = []
    for engine in ("duckdb", "spark"):
        with pytest.raises(EventFaultsError) as error:
            prepare_files(tmp_path / "out", dirty, text, engine=engine, **options)
        found.append((str(error.value), error.value.details, error.value.count))
    assert found[0] == found[1]
    assert len(found[0][1]) > 8
    three = write_text(tmp_path / "three.csv", "customer,item,at\na,b,1\na,c,3\n")
    with pytest.raises(InputError, match=r"after:9: takes no interaction for test \(timestamps run from 1 to 3"):
        prepare_files(tmp_path / "out", three, engine="spark", timestamp="at", hold_out="after:9")
    assert not (tmp_path / "out").exists()


def test_options_that_spark_lacks_are_rejected(tmp_path: Path) -> None:
    events = write_parquet(tmp_path / "events.parquet", **random_events(10))
    with pytest.raises(OptionError) as error:
        prepare_files(tmp_path / "out", events, engine="spark", order="random", min_count={"item": 2})
    assert documented("an option that Spark lacks", str(error.value))


def test_missing_pyspark_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = write_parquet(tmp_path / "events.parquet", **random_events(10))
    monkeypatch.delitem(sys.modules, "crossfade.trainer.prepare.spark_engine", raising=False)
    for name in ("py4j.protocol", "pyspark.errors"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"needs the package .* pip install 'crossfade\[spark\]'"):
        prepare_files(tmp_path / "out", events, engine="spark")


def test_command_line_shows_pandas_to_spark_alone() -> None:
    """PySpark imports pandas, which other commands are spared."""
    assert "pandas" not in _unneeded(["prepare", "--events", "plays.csv", "--engine", "spark"])
    assert "pandas" not in _unneeded(["prepare", "--engine=spark"])
    assert "pandas" in _unneeded(["prepare", "--events", "plays.csv"])
