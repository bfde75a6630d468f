"""Spark and DuckDB write the same dataset, byte for byte, and report the same faults."""

import gc
import os
import re
import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from dirty_plays import DirtyPlays
from needs import require_spark
from preparing import forget_dataset, prepare_files, random_events, write_parquet, write_text

from crossfade.base.errors import CrossfadeError, InputError, OptionError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.prepare import hold_out, preparation, staging
from crossfade.trainer.prepare.event_groups import Report
from crossfade.trainer.prepare.faults import FaultyFilesError

require_spark()

PAGE = Path(__file__).parents[3] / "docs" / "preparing-data.md"
EVENTS = 3_000
SETTINGS = {
    "driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",  # half of the processor time of short runs
    "driver.host": "127.0.0.1",
    "log.level": "ERROR",
    "ui.enabled": "false",
    "ui.showConsoleProgress": "false",
}
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:distutils Version classes are deprecated:DeprecationWarning",
)
"""Py4J leaves its sockets open; PySpark 3.5 compares versions by distutils."""


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    """Open a context, which all preparations of this module use."""
    from pyspark import SparkConf, SparkContext

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    settings = SparkConf().setMaster("local[2,2]")  # with a second try of each task
    for name, value in SETTINGS.items():
        settings = settings.set(f"spark.{name}", value)
    context = SparkContext.getOrCreate(settings)
    yield context
    context.stop()
    gateway = SparkContext._gateway
    gateway.shutdown()
    gateway.proc.stdin.close()  # which ends Java
    gateway.proc.wait()
    SparkContext._gateway = SparkContext._jvm = None
    gc.collect()


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide few rows between tasks and files as many rows are, and bound the default of what is held out."""
    from crossfade.trainer.prepare import spark_events

    monkeypatch.setattr(spark_events, "_FEW_BYTES", 1_000)
    for module in (spark_events, staging):
        monkeypatch.setattr(module, "GROUPS_PER_FILE", 2)
    monkeypatch.setattr(hold_out, "DEFAULT_PAIRS", 60)


def files(out: Path) -> dict[str, bytes]:
    """Return all files of a dataset, the manifest too."""
    folder = Folder(out)
    return {name: folder.read(name) for name in folder.sizes()}


def prepare_twice(folder: Path, *train: Path, **options: Any) -> tuple[DatasetManifest, dict[str, bytes]]:
    """Prepare with both engines, and compare all files; return the manifest and the files."""
    manifest = prepare_files(folder / "duckdb", *train, **options)
    assert prepare_files(folder / "spark", *train, engine="spark", overwrite=True, **options) == manifest
    written = files(folder / "duckdb")
    assert files(folder / "spark") == written
    return manifest, written


def write_events(folder: Path) -> tuple[Path, Path]:
    """Write events to a file of Parquet, and others to a text file with faults."""
    weights = [(1, 2.5, -1, 0, 0.3)[number * 7 % 5] for number in range(EVENTS)]
    rooms = [(None, 3, 20, 100)[number % 4] for number in range(EVENTS)]
    parquet = write_parquet(folder / "one.parquet", **random_events(EVENTS), w=weights, room=rooms)
    others = [f"c{number % 70},{number % 130},{number},0.3,3" for number in range(900)]
    bad = ["c1,2", ",3,3,3,3", "c1,5,soon,1,20"]
    return parquet, write_text(folder / "two.csv", "\n".join(["customer,item,when,w,room", *others, *bad]))


def attributes(folder: Path) -> dict[str, Any]:
    """Write files of features, content, and names; return the options that name them, and context."""
    tags = [["new", "old"], ["old", None], [], None, ["old", "old"]]
    write_parquet(folder / "tags-1.parquet", id=range(990, 1050), tag=tags * 12)
    write_parquet(folder / "tags-2.parquet", id=["1000", "1001", "x"], tag=["mid", "old", "of none"])
    lands = "\n".join(f"c{number},{number % 7}" for number in range(1, 90))
    text = write_text(folder / "lands.csv", f"who,land\n{lands}\nc3,5\n,9\n")
    sound = [[number / 7, -number / 3, 0.0] for number in range(2500)]
    audio = write_parquet(folder / "audio.parquet", id=range(1000, 3500), sound=sound)
    names = write_text(folder / "rooms.csv", "id,title\n3,Three\n4,of none\n")
    return {
        "context": {"file": "room", "hour": "timestamp:hour", "before": "timestamp:previous"},
        "features": [f"item={folder}/tags-*.parquet:id:tag", f"customer={text}:who:land"],
        "content": [f"item={audio}:id:sound"],
        "names": {"file": f"{names}:id:title"},
    }


def prepare_base(folder: Path, **options: Any) -> Path:
    """Prepare a day and another one that extends it, forget an ID of each kind there, and return it.

    A customer waits to be admitted since each of the days, and of the items that no later event has, one expires.
    """
    names = write_text(folder / "base.csv", "id,title\n1005,Old\n1006,Six\n3000,Expired\n3001,Kept\n")
    options |= {"timestamp": "when", "hold_out_valid": "none", "admit": {"customer": 3}, "expire_after": "item=1000"}
    events = random_events(EVENTS // 2, seed=1)
    waiting = {"customer": ["wait", "c1", "c1"], "item": [1001, 3000, 3001], "when": [50, 5, 40]}
    columns = {name: events[name] + waiting[name] for name in events}
    one = write_parquet(folder / "day1.parquet", **columns, room=[3] * len(columns["item"]))
    of_items = {"item": f"{names}:id:title", **options.pop("names", {})}
    prepare_files(folder / "day1", one, **options, names=of_items)
    customers = ["c1", "c69", "old", "old", "old"]
    days = {"customer": customers, "item": [1001, 2000, 2000, 2000, 2000], "when": [60] * 5, "room": [3] * 5}
    two = write_parquet(folder / "day2.parquet", **days)
    later = {name: value for name, value in options.items() if name not in ("features", "content")}
    prepare_files(folder / "day2", two, **later, base=folder / "day1")
    for entity, id in (("customer", "c5"), ("item", "1007")):
        forget_dataset(Folder(folder / "day2"), pa.array([id]), entity, NullReporter())
    return folder / "day2"


COLUMNS: dict[str, Any] = {"timestamp": "when", "weight": "w"}
SKIPPING: dict[str, Any] = {"on_bad_line": "skip"}


@pytest.mark.slow
@pytest.mark.usefixtures("spark", "small_tasks")
@pytest.mark.parametrize(
    "options",
    [
        {"timestamp": None, "weight": None, **SKIPPING, "seed": 3},
        {"hold_out_test": "last-2", "valid": "v.parquet", **SKIPPING},
        {"hold_out": "random:0.1", "min_count": {"customer": 20}, "threads": 1, **SKIPPING},
    ],
    ids=["nothing", "last and faults", "random and rare customers"],
)
def test_spark_writes_the_bytes_of_duckdb(tmp_path: Path, options: dict[str, Any]) -> None:
    """Files of two formats, negative weights, weights of 0, and a default that is bounded by what is left."""
    parquet, text = write_events(tmp_path)
    if "valid" in options:
        valid = write_parquet(tmp_path / "v.parquet", customer=["c1", "n"], item=[7, 8], when=[1, 2], w=[1.0, 1.0])
        options = {**options, "valid": [valid]}
    manifest, written = prepare_twice(tmp_path, parquet, text, **{**COLUMNS, **options})
    assert manifest.source["dropped_bad_lines"] in (2, 3)
    assert "train/part-00001.parquet" in written


@pytest.mark.slow
@pytest.mark.usefixtures("spark", "small_tasks")
def test_spark_sums_and_holds_out_as_duckdb(tmp_path: Path) -> None:
    """Inexact sums in the order of events, rounds of rare IDs, a split by time with a gap, and a default of the rest.

    Also: only a cancelled event is later than seconds are, and entities have names of columns of tasks.
    """
    events = random_events(EVENTS)
    parquet = write_parquet(tmp_path / "one.parquet", **events, w=[number % 7 / 10 for number in range(EVENTS)])
    times = {"customer": ["c1", "c1"], "item": [1, 1], "when": [1704067200000] * 2, "w": [1.0, -1.0]}
    late = write_parquet(tmp_path / "late.parquet", **times)
    options = {"query": "Part=customer", "item": "place=item", **COLUMNS}
    options |= {"hold_out_test": "after:1970-01-01T00:00:40", "hold_out_gap": "3", "hold_out_valid": "default"}
    options |= {"duplicates": "sum", "min_count": {"Part": 26, "place": 14}}
    options |= {"admit": {"place": 18}, "expire_after": "Part=9"}
    manifest, _ = prepare_twice(tmp_path, parquet, late, **options)
    assert manifest.splits["valid"].rows < 100
    assert manifest.source["merged_duplicates"]
    assert manifest.source["dropped_gap"]


@pytest.mark.slow
@pytest.mark.usefixtures("spark", "small_tasks")
def test_spark_reads_text_and_nested_values_as_duckdb(tmp_path: Path) -> None:
    """Structs and objects, decimal commas, Latin-1, lines at fault, and IDs that differ by case only."""
    events = random_events(EVENTS)
    users, weights = [{"id": f"É{id}"} for id in events["customer"]], [f"{n % 7},5" for n in range(EVENTS)]
    parquet = write_parquet(tmp_path / "one.parquet", user=users, item=events["item"], w=weights)
    rows = [f'{{"user": {{"id": "éc{n}"}}, "item": {n}, "w": "0,{n}"}}' for n in range(90)]
    lines = "\n".join([*rows, '{"user": 7, "item": 7, "w": "1"}', '{"user": {"id": "C7"}, "item": 7, "w": "1.5"}'])
    text = write_text(tmp_path / "two.jsonl", lines.encode("latin-1"))
    options = {"query": "customer=user.id", "weight": "w", "decimal": ",", "encoding": "latin-1", **SKIPPING}
    manifest, _ = prepare_twice(tmp_path, parquet, text, **options)
    assert manifest.source["dropped_bad_lines"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("spark", "small_tasks")
def test_spark_keeps_columns_as_duckdb(tmp_path: Path) -> None:
    """Context, features, content, and the catalog, whose IDs come after those without positive events."""
    parquet, _ = write_events(tmp_path)
    disliked = write_parquet(tmp_path / "two.parquet", customer=["c99"], item=[9999], when=[3], w=[-1.0], room=[3])
    options = {**COLUMNS, **attributes(tmp_path), "catalog": ["customer", "item"], "hold_out_test": "last-2"}
    manifest, written = prepare_twice(tmp_path, parquet, disliked, **options)
    assert {"test/part-00000.parquet", "content/item/sound/part-00001.parquet"} <= written.keys()
    assert (manifest.source["tag_ids_ignored"], manifest.source["land_filled"]) == (1, 89)


@pytest.mark.slow
@pytest.mark.usefixtures("spark", "small_tasks")
@pytest.mark.parametrize("has_attributes", [False, True], ids=["ids", "features, content, context, and replay"])
def test_spark_extends_as_duckdb(tmp_path: Path, has_attributes: bool) -> None:
    """IDs that keep their rows, expire, or wait, new ones that take vacant rows, and what a base has of them."""
    given = attributes(tmp_path) if has_attributes else {}
    base = prepare_base(tmp_path, **given)
    parquet, text = write_events(tmp_path)
    options = {**COLUMNS, **SKIPPING, "base": base, "admit": {"customer": 13}, "expire_after": "item=870"}
    options |= {name: given[name] for name in given if name in ("context", "features")}
    manifest, _ = prepare_twice(tmp_path, parquet, text, **options, **({"replay": 0.3} if has_attributes else {}))
    assert manifest.entities["customer"].pending[0].rows
    new = [manifest.source[name] for name in ("customer_new", "item_expired", "item_reused")]
    assert new == [len(["c5", "c69"]), 1, 2]
    assert bool(manifest.replay) == has_attributes


@pytest.mark.slow
@pytest.mark.usefixtures("spark")
def test_spark_lists_the_faults_of_duckdb(tmp_path: Path) -> None:
    dirty = tmp_path / "dirty.csv"
    DirtyPlays(dirty, count=2000)
    text = write_text(tmp_path / "text.csv", "user,artist,title,plays,at\nu1,a,b,x,1\nu1,a,b,2,3\n")
    options = {"query": "customer=user", "item": "track=title", "weight": "plays", "timestamp": "at"}
    found = []
    for engine in ("duckdb", "spark"):
        with pytest.raises(FaultyFilesError) as error:
            prepare_files(tmp_path / "out", dirty, text, engine=engine, **options)
        found.append((str(error.value), error.value.details, error.value.count, error.value.files))
    assert found[0] == found[1]
    assert len(found[0][1]) > 8
    three = write_text(tmp_path / "three.csv", "customer,item,at\na,b,1\na,c,3\n")
    with pytest.raises(InputError, match=r"after:9: takes no interaction for test \(timestamps run from 1 to 3"):
        prepare_files(tmp_path / "out", three, engine="spark", timestamp="at", hold_out="after:9")
    huge = write_text(tmp_path / "huge.csv", "customer,item,at\na,b,3e38\na,b,3e38\n")
    with pytest.raises(OptionError) as failed:  # in a task
        prepare_files(tmp_path / "out", huge, engine="spark", weight="at", duplicates="sum")
    assert (failed.value.field, failed.value.found) == (("duplicates",), "sum")
    assert not (tmp_path / "out").exists()


MARKER = ""


def die_once(connection: duckdb.DuckDBPyConnection) -> Report:
    """Kill the process of the task, unless another one was killed."""
    marker = Path(MARKER)
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return dict(hold_out.describe_interactions(connection))


@pytest.mark.slow
@pytest.mark.usefixtures("spark")
def test_a_killed_task_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyspark import cloudpickle

    events = write_parquet(tmp_path / "one.parquet", **random_events(EVENTS))
    prepare_files(tmp_path / "duckdb", events)
    monkeypatch.setattr(sys.modules[__name__], "MARKER", str(tmp_path / "killed"))
    monkeypatch.setattr(preparation, "describe_interactions", die_once)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        prepare_files(tmp_path / "spark", events, engine="spark")
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert (tmp_path / "killed").exists()
    assert files(tmp_path / "spark") == files(tmp_path / "duckdb")


@pytest.mark.slow
def test_error_of_spark_is_one_line(spark: Any) -> None:
    from crossfade.trainer.prepare.spark_events import spark_context

    with pytest.raises(CrossfadeError) as error, spark_context() as context:
        context.parallelize([0]).map(lambda number: 1 // number).collect()
    assert str(error.value).endswith("modulo by zero")
    assert "\n" not in str(error.value)


def test_file_of_another_attempt_stays(tmp_path: Path) -> None:
    """A second attempt of a task touches the file of the first one only once it has its own."""
    from crossfade.trainer.prepare import spark_tasks

    schema, place = pa.schema([("u", pa.int64())]), spark_tasks.Workplace(str(tmp_path), "", 64 << 20, 1, tmp_path)
    with place.writer() as writer:
        for start in range(0, 15, 5):
            places = list(range(start, start + 5))[::-1]
            writer.add("7", pa.RecordBatch.from_pydict({"place": places, "#0": places}))
    placed, part = writer.file, (7, spark_tasks.Part("train", 1, 10, 20))
    written = tmp_path / "train/part-00001.parquet"
    file = spark_tasks.write_part(schema, [placed], place, part)
    assert (file.path, file.row_groups) == ("train/part-00001.parquet", [10, 5])
    first = written.read_bytes()
    cut = spark_tasks.SectionFile(placed.path, {"7": [(0, 9)]})
    with pytest.raises((OSError, ValueError, pa.ArrowException)):
        spark_tasks.write_part(schema, [placed, cut], place, part)
    assert written.read_bytes() == first


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
