"""Spark and DuckDB write the same dataset, byte for byte, and report the same faults."""

import gc
import json
import os
import re
import runpy
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from dirty_plays import DirtyPlays
from needs import require_spark
from preparing import forget_dataset, prepare_files, random_events, write_parquet, write_text

from crossfade.base.errors import CrossfadeError, InputError, OptionError, parts
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.prepare import hold_out, staging
from crossfade.trainer.prepare.faults import EventFaultsError

require_spark()

PAGE = Path(__file__).parents[3] / "docs" / "preparing-data.md"
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
    "ignore:PySpark does not yet fully support pandas:FutureWarning",
)
"""Py4J leaves its sockets open; PySpark 3.5 compares versions by distutils, and 4 warns of pandas 3."""


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    """Open a session, which all preparations of this module use."""
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
    """Divide few rows between tasks and files as many rows are.

    That is what the driver does. Tasks run in processes that are not patched: they read and write batches, blocks, and
    row groups of the usual sizes, which these rows do not fill; ``test_parts_of_another_attempt_stay`` fills groups.
    """
    from crossfade.trainer.prepare import spark_columns, spark_engine, spark_tables

    monkeypatch.setattr(spark_tables, "_TASK_ROWS", EVENTS // 2)
    monkeypatch.setattr(spark_engine, "_FEW_BYTES", 1_000)
    for module in (spark_columns, spark_engine, spark_tables, staging):
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


def prepare_base(folder: Path) -> Path:
    """Prepare a day and another one that takes its files over, forget an ID of each kind there, and return it.

    A customer waits to be admitted since each of the days, and of the items that no later event has, one expires.
    """
    names = write_text(folder / "base.csv", "id,title\n1005,Old\n1006,Six\n3000,Expired\n3001,Kept\n")
    options = {"timestamp": "when", "hold_out_valid": "none", "admit": {"customer": 3}, "expire_after": "item=1000"}
    events = random_events(EVENTS // 2, seed=1)
    waiting = {"customer": ["wait", "c1", "c1"], "item": [1001, 3000, 3001], "when": [50, 5, 40]}
    one = write_parquet(folder / "day1.parquet", **{name: events[name] + waiting[name] for name in events})
    prepare_files(folder / "day1", one, **options, names={"item": f"{names}:id:title"})
    customers = ["c1", "c69", "old", "old", "old"]
    two = write_parquet(folder / "day2.parquet", customer=customers, item=[1001, 2000, 2000, 2000, 2000], when=[60] * 5)
    prepare_files(folder / "day2", two, **options, base=folder / "day1")
    for entity, id in (("customer", "c5"), ("item", "1007")):
        forget_dataset(Folder(folder / "day2"), pa.array([id]), entity, NullReporter())
    return folder / "day2"


@pytest.mark.slow
@pytest.mark.usefixtures("spark", "small_tasks")
def test_spark_writes_the_bytes_of_duckdb(tmp_path: Path) -> None:
    """Files of two formats, faults, negative weights, names, last-N, and tasks and files that share the rows.

    Also: of the base dataset, one vocabulary has names and IDs that expire, and the other IDs that wait.
    """
    base = prepare_base(tmp_path)
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
    options |= {"base": base, "admit": {"customer": 13}, "expire_after": "item=870"}
    manifest, written = prepare_twice(tmp_path, parquet, csv, **options)
    customers = manifest.entities["customer"]
    assert len(customers.vacant_rows) == 1
    assert customers.pending[0].rows == len(["wait", "new", *range(60, 69)])
    new = [manifest.source[name] for name in ("customer_new", "item_expired", "item_reused")]
    assert new == [len(["c5", "c69"]), 1, 2]
    assert (manifest.source["dropped_bad_lines"], manifest.source["dropped_missing"]) == (2, 1)
    assert manifest.source["item_named"] == 2
    assert {"train/part-00001.parquet", "test/part-00000.parquet"} <= written.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("spark", "small_tasks")
def test_spark_sums_and_holds_out_as_duckdb(tmp_path: Path, spark: Any) -> None:
    """Inexact sums in the order of events, rounds of rare IDs, a split by time with a gap, and a default of the rest.

    Also: only a cancelled event is later than seconds are, entities have names of columns of Spark's, and the session
    of another thread stays.
    """
    events = random_events(EVENTS)
    parquet = write_parquet(tmp_path / "one.parquet", **events, w=[number % 7 / 10 for number in range(EVENTS)])
    times = {"customer": ["c1", "c1"], "item": [1, 1], "when": [1704067200000] * 2, "w": [1.0, -1.0]}
    late = write_parquet(tmp_path / "late.parquet", **times)
    options = {"query": "Part=customer", "item": "place=item", "timestamp": "when", "weight": "w"}
    options |= {"hold_out_test": "after:1970-01-01T00:00:40", "hold_out_gap": "3", "hold_out_valid": "default"}
    options |= {"duplicates": "sum", "min_count": {"Part": 26, "place": 14}}
    options |= {"admit": {"place": 18}, "expire_after": "Part=9"}
    with ThreadPoolExecutor(1) as threads:
        prepared = threads.submit(prepare_twice, tmp_path, parquet, late, **options)
    manifest, _ = prepared.result()
    assert spark.range(3).count() == 3
    assert manifest.splits["valid"].rows < 100
    assert manifest.source["merged_duplicates"]
    assert manifest.source["dropped_gap"]


@pytest.mark.slow
@pytest.mark.usefixtures("small_tasks")
def test_spark_holds_out_and_keeps_columns_as_duckdb(tmp_path: Path, spark: Any) -> None:
    """Last-N with negative weights, a default that counts what is left, context, features, content, and the catalog.

    Also: tasks and files share the rows, IDs without positive events come before those of the catalog, entities have
    names of columns of Spark's, and the session of another thread stays.
    """
    rooms = [(None, 3, 20, 100)[number % 4] for number in range(EVENTS)]
    weights = [(1, 2.5, -1, 0.3)[number * 7 % 4] for number in range(EVENTS)]
    parquet = write_parquet(tmp_path / "one.parquet", **random_events(EVENTS), w=weights, room=rooms)
    disliked = write_parquet(tmp_path / "two.parquet", customer=["c99"], item=[9999], when=[3], w=[-1.0], room=[3])
    names = write_text(tmp_path / "rooms.csv", "id,title\n3,Three\n4,of none\n")
    tags = [["new", "old"], ["old", None], [], None, ["old", "old"]]
    lists = write_parquet(tmp_path / "tags-1.parquet", id=range(990, 1050), tag=tags * 12)
    write_parquet(tmp_path / "tags-2.parquet", id=["1000", "1001", "x"], tag=["mid", "old", "of none"])
    lands = "\n".join(f"c{number},{number % 7}" for number in range(1, 90))
    text = write_text(tmp_path / "lands.csv", f"who,land\n{lands}\nc3,5\n,9\n")
    options = {"query": "Part=customer", "item": "place=item", "timestamp": "when", "weight": "w"}
    options |= {"hold_out_test": "last-2", "hold_out_valid": "default", "names": {"file": f"{names}:id:title"}}
    options |= {"context": {"file": "room", "hour": "timestamp:hour", "before": "timestamp:previous"}}
    options |= {"features": [f"place={lists.parent}/tags-*.parquet:id:tag", f"Part={text}:who:land"]}
    sound = [[number / 7, -number / 3, 0.0] for number in range(2500)]
    audio = write_parquet(tmp_path / "audio.parquet", id=range(1000, 3500), sound=sound)
    options |= {"content": [f"place={audio}:id:sound"], "catalog": ["Part", "place"], "min_count": {"Part": 20}}
    with ThreadPoolExecutor(1) as threads:
        prepared = threads.submit(prepare_twice, tmp_path, parquet, disliked, **options)
    manifest, written = prepared.result()
    assert spark.range(3).count() == 3
    assert manifest.splits["valid"].rows < 100
    assert {"train/part-00001.parquet", "test/part-00000.parquet", "content/place/sound/part-00001.parquet"} <= (
        written.keys()
    )
    assert (manifest.source["tag_ids_ignored"], manifest.source["land_filled"]) == (1, 89)


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
    prepare_files(tmp_path / "base", three)
    (tmp_path / "base/vocabulary/item/part-00000.parquet").unlink()
    messages = []
    for engine in ("duckdb", "spark"):
        with pytest.raises(InputError, match="no such file") as missing:
            prepare_files(tmp_path / "out", three, engine=engine, base=tmp_path / "base")
        messages.append(str(missing.value))
    assert messages[0] == messages[1]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_failures_of_spark(tmp_path: Path, spark: Any) -> None:
    from crossfade.trainer.prepare.spark_tables import SparkTables, spark_session

    from crossfade.trainer.prepare.spark_tasks import Part

    with pytest.raises(CrossfadeError) as error, spark_session():
        spark.sql("SELECT raise_error('no disk is left')").collect()
    assert "no disk is left" in str(error.value)
    folder = Folder(tmp_path)
    staged = staging.Staged(folder, overwrite=False, folder=folder, work=tmp_path, lock=None)
    table = spark.range(5).selectExpr("id", "0", "id")
    with pytest.raises(CrossfadeError) as error:
        SparkTables(spark, staged).write(table, pa.schema([("place", pa.int64())]), [Part("train", 0, 9)], 6)
    assert "hold 5 rows, but 6 were" in str(error.value)


def test_parts_of_another_attempt_stay(tmp_path: Path) -> None:
    """A second attempt of a task touches the files of the first one only once it has its own."""
    from crossfade.trainer.prepare.spark_tasks import Output, Part, column_names, write_parts

    schema = pa.schema([("u", pa.int64())])
    output = Output(str(tmp_path), "", schema, [Part("train", 0, 10), Part("train", 1, 10)])

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, 35, 7):
            numbers = list(range(start, start + 7))
            columns = [pa.array(numbers), pa.array([number // 20 for number in numbers])]
            yield pa.RecordBatch.from_arrays(columns, names=[*column_names(schema), "part"])

    first = [json.loads(batch.column("file")[0].as_py()) for batch in write_parts(output, batches())]
    groups = {"train/part-00000.parquet": [10, 10], "train/part-00001.parquet": [10, 5]}
    assert {file["path"]: file["row_groups"] for file in first} == groups
    written = {name: (tmp_path / name).read_bytes() for name in groups}

    def stopped() -> Iterator[pa.RecordBatch]:
        for batch in batches():
            yield batch
            assert {name: (tmp_path / name).read_bytes() for name in groups} == written
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(write_parts(output, stopped()))
    assert {name: (tmp_path / name).read_bytes() for name in groups} == written


@pytest.mark.slow
@pytest.mark.usefixtures("spark")
def test_documented_script_prepares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = write_text(tmp_path / "plays.csv", "customer,item\n" + "".join(f"{n % 7},{n % 5}\n" for n in range(60)))
    # No ID waits for admission.
    words = ["prepare", "--events", str(events), "--hold-out-valid", "none", "--admit", "item=2", "--engine", "spark"]
    [line] = re.findall(r"^printf '(.*)' > crossfade_on_spark.py$", PAGE.read_text(), re.MULTILINE)
    script = write_text(tmp_path / "script.py", line.replace("\\n", "\n"))
    monkeypatch.setattr(sys, "argv", ["script.py", *words, "--out", str(tmp_path / "spark")])
    runpy.run_path(str(script), run_name="__main__")
    prepare_files(tmp_path / "duckdb", events, hold_out_valid="none", admit={"item": 2})
    assert files(tmp_path / "spark") == files(tmp_path / "duckdb")


def test_error_of_a_task_keeps_its_message() -> None:
    from crossfade.trainer.prepare.spark_tasks import _failure, to_error

    for error in (InputError("a.csv: wrong"), OptionError("duplicates", found="sum", problem="too large", fix="scale")):
        same = to_error(json.loads(json.dumps(_failure(error))))
        assert same.args == parts(error.args)


def test_options_that_spark_lacks_are_rejected(tmp_path: Path) -> None:
    events = write_parquet(tmp_path / "events.parquet", **random_events(10))
    with pytest.raises(OptionError) as error:
        prepare_files(tmp_path / "out", events, engine="spark", order="random")
    assert "spark: does not support" in str(error.value)
    prepare_files(tmp_path / "base", events, features=f"item={events}:item:hour=when")
    with pytest.raises(OptionError, match="base of a dataset with features"):
        prepare_files(tmp_path / "out", events, engine="spark", base=tmp_path / "base")
