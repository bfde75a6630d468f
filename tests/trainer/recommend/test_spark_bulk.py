"""Recommendations on Spark: the rows of one process, in a folder that nothing else is in."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here, rejected_here
from needs import require_spark
from running_command import succeeded

require_spark()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore::ResourceWarning",
        "ignore::pytest.PytestUnraisableExceptionWarning",
        "ignore:distutils Version classes are deprecated:DeprecationWarning",
        "ignore:PySpark does not yet fully support pandas:FutureWarning",
    ),
]
SETTINGS = {
    "driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
    "driver.host": "127.0.0.1",
    "log.level": "ERROR",
    "ui.enabled": "false",
    "ui.showConsoleProgress": "false",
}


@pytest.fixture
def spark() -> Iterator[None]:
    """Open a session on two cores, which the commands use."""
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master("local[2]")
    for name, value in SETTINGS.items():
        builder = builder.config(f"spark.{name}", value)
    session = builder.getOrCreate()
    yield
    session.stop()
    gateway = SparkContext._gateway
    gateway.shutdown()
    gateway.proc.stdin.close()  # which ends Java
    gateway.proc.wait()
    SparkContext._gateway = SparkContext._jvm = None
    gc.collect()


@pytest.mark.usefixtures("spark")
def test_rows_are_those_of_one_process(tmp_path: Path) -> None:
    data = write_planted(tmp_path / "data", named=True)
    write_job(tmp_path / "job.yaml", data, train={"epochs": 1})
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=tmp_path))
    command = ("recommend", "run", "--all", "-k", 4, "--where", "id > 5003", "--on-unknown", "popular", "--out")
    succeeded(crossfade_here(*command, tmp_path / "one.parquet", cwd=tmp_path))
    on_spark = (*command, tmp_path / "many", "--engine", "spark")
    printed = succeeded(crossfade_here(*on_spark, cwd=tmp_path)).stdout
    rows = pq.read_table(tmp_path / "one.parquet").to_pylist()
    files = sorted((tmp_path / "many").glob("part-*.parquet"))
    assert len(files) == 8, "four tasks for each core"
    assert [row for file in files for row in pq.read_table(file).to_pylist()] == rows
    assert printed.startswith(f"{len(rows):,} recommendations to 300 of customer")
    rejected_here("already exists; choose another", *on_spark, cwd=tmp_path)
    (tmp_path / "many" / "notes.txt").touch()
    rejected_here("holds 'notes.txt', which is not part of recommendations", *on_spark, "--overwrite", cwd=tmp_path)
    one = ("recommend", "run", "--customer", "c001", "--engine", "spark", "--out", tmp_path / "new")
    rejected_here("spark: ranks for many; expected --all", *one, cwd=tmp_path)
