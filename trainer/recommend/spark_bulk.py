"""Recommend to all queries on Spark: each task opens the model and ranks for consecutive queries, as one process does.

    recommend_on_spark(model, RecommendToOptions.of(source="runs/plays", all=True, engine="spark", out="recs"))

A worker process of Spark opens the model once. Executors therefore reach the model, its dataset, and the files that
options name. A task reads the interactions once, for its queries, and ranks with the cores of a task of Spark. OUT is a
folder of Parquet files, whose rows, in the order of the files' names, are the rows of a single process.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numba
import pyarrow as pa
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from crossfade.base.errors import CrossfadeError, Option, OptionError
from crossfade.base.io.output import staged_folder
from crossfade.base.io.replacing import check_replaceable, replace_folder
from crossfade.trainer.config.schema import absolute
from crossfade.trainer.data.vocabulary import plain_strings
from crossfade.trainer.recommend.bulk import MAX_PART_QUERIES, Recommended, recommend_to_queries
from crossfade.trainer.recommend.model import Model, open_model
from crossfade.trainer.recommend.options import RecommendToOptions
from crossfade.trainer.recommend.queries import all_queries
from crossfade.trainer.recommend.trained_model import OpenModel

_TASKS_PER_CORE = 4
_WRITTEN = re.compile(r"\.?(part-.*|_SUCCESS)(\.crc)?")
_REASON = re.compile(r"^(?:crossfade|builtins)?[\w.]*(?:Error|Exception): (.+)$", re.MULTILINE)


def recommend_on_spark(model: Model, options: RecommendToOptions) -> Recommended:
    """Recommend to all queries of ``model``, into the folder ``out``, which is replaced once all rows are there.

    ``options`` have IDs in place of the files of ``allow`` and ``deny``.

    Raises:
        CrossfadeError: Spark failed.
        InputError: a filter is invalid, or the folder may not be replaced.
        OSError: a local folder cannot be written.
    """
    location = str(options.out)
    if "://" in location:
        if options.overwrite:
            problem = ("is a URI, at which ", Option("overwrite"), " replaces nothing")
            raise OptionError("out", found=location, problem=problem, fix="choose another, or delete what is there")
        return _write(model, options, location, "errorifexists")
    out = Path(location)
    check_replaceable(out, options.overwrite, "recommendations", lambda: _find_foreign(out))
    with staged_folder(out) as staging:
        found = _write(model, options, str(staging), "overwrite")
        replace_folder(out, staging)
    return found


def _write(model: Model, options: RecommendToOptions, out: str, mode: str) -> Recommended:
    """Let Spark write ``out``, which exists if ``mode`` is to overwrite it."""
    queries = all_queries(model, options.on_unknown)
    schema = _table(model, options, slice(0, 0)).schema  # rejects filters before Spark starts
    # A run that still trains writes further checkpoints: all tasks use the one that is open.
    used = {"source": model.trained.uri.removesuffix("/embeddings"), "data": model.trained.data.uri}
    used |= {name: location for name in ("metadata", "index") if (location := getattr(options, name)) is not None}
    pinned = options.model_copy(update={name: absolute(location) for name, location in used.items()})
    named = pinned.model_dump_json(include=set(RecommendToOptions.model_fields))
    total = len(queries.rows_Q)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    is_own = SparkSession.getActiveSession() is None
    spark = SparkSession.builder.appName("crossfade recommend").getOrCreate()
    try:
        step = max(1, min(MAX_PART_QUERIES, -(-total // (_TASKS_PER_CORE * spark.sparkContext.defaultParallelism))))
        starts = spark.range(0, max(total, 1), step, numPartitions=max(1, -(-total // step)))
        cores = int(spark.conf.get("spark.task.cpus", "1"))

        def rank(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for start in (start for batch in batches for start in batch.column("id").to_pylist()):
                yield from _rank(named, slice(start, start + step), cores)

        written = starts.mapInArrow(rank, from_arrow_schema(schema)).write
        written.mode(mode).parquet(out)
        return Recommended(total, spark.read.parquet(out).count())
    except (PySparkException, Py4JError) as error:
        reasons = _REASON.findall(str(error)) or str(error).strip().splitlines()
        raise CrossfadeError(f"recommending failed in Spark: {reasons[0]}") from error
    finally:
        if is_own:
            spark.stop()


@cache
def _opened(named: str) -> tuple[RecommendToOptions, OpenModel[Model]]:
    options = RecommendToOptions.model_validate_json(named)
    return options, open_model(options, lambda _: None)


def _rank(named: str, part: slice, cores: int) -> list[pa.RecordBatch]:
    """Rank for the queries ``part`` in a task, with the model that this worker process has opened."""
    numba.set_num_threads(min(cores, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    options, opened = _opened(named)
    batches: list[pa.RecordBatch] = opened.use(lambda model: _table(model, options, part)).to_batches()
    return batches


def _table(model: Model, options: RecommendToOptions, part: slice) -> pa.Table:
    return plain_strings(recommend_to_queries(model, all_queries(model, options.on_unknown).take(part), options))


def _find_foreign(folder: Path) -> str | None:
    return min((path.name for path in folder.iterdir() if not _WRITTEN.fullmatch(path.name)), default=None)
