"""Recommendations on Spark: the rows of one process, in a folder that nothing else is in."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here, rejected_here
from needs import require_spark
from running_command import crossfade, succeeded

require_spark()

SETTINGS = """\
spark.master local[2]
spark.driver.extraJavaOptions -XX:TieredStopAtLevel=1
spark.driver.host 127.0.0.1
spark.ui.enabled false
"""


@pytest.mark.slow
def test_rows_are_those_of_one_process(tmp_path: Path) -> None:
    """In a process of its own: ``main`` hides pandas, which PySpark needs, from other commands."""
    data = write_planted(tmp_path / "data", named=True)
    write_job(tmp_path / "job.yaml", data, train={"epochs": 1})
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=tmp_path))
    command = ("recommend", "run", "--all", "-k", 4, "--where", "id > 5003", "--on-unknown", "popular", "--out")
    succeeded(crossfade_here(*command, tmp_path / "one.parquet", cwd=tmp_path))
    on_spark = (*command, "many", "--engine", "spark")
    (tmp_path / "spark-defaults.conf").write_text(SETTINGS)
    variables = {"SPARK_CONF_DIR": str(tmp_path), "SPARK_LOCAL_IP": "127.0.0.1"}
    printed = succeeded(crossfade(*on_spark, cwd=tmp_path, variables=variables)).stdout
    rows = pq.read_table(tmp_path / "one.parquet").to_pylist()
    files = sorted((tmp_path / "many").glob("part-*.parquet"))
    assert len(files) == 8, "four tasks for each core"
    assert [row for file in files for row in pq.read_table(file).to_pylist()] == rows
    assert printed.startswith(f"{len(rows):,} recommendations to 300 of customer")
    succeeded(crossfade(*on_spark, "--overwrite", cwd=tmp_path, variables=variables))
    assert [path.name for path in tmp_path.glob("*many*")] == ["many"]
    (tmp_path / "many" / "notes.txt").touch()
    for options, problem in (
        ((), "already exists; choose another"),
        (("--overwrite",), "holds 'notes.txt', which is not part of recommendations"),
        (("--overwrite", "--out", "s3a://music/recs"), "is a URI, at which --overwrite replaces nothing"),
    ):
        result = crossfade_here(*on_spark, *options, cwd=tmp_path)
        assert (result.returncode, problem in result.stderr) == (2, True), result.stderr
    one = ("recommend", "run", "--customer", "c001", "--engine", "spark", "--out", "new")
    rejected_here("spark: ranks for many; expected --all", *one, cwd=tmp_path)
