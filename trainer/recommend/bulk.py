"""Recommend to millions of queries, into one file: in parts of bounded memory, resumable.

    recommend_in_bulk(model, options, queries_Q, Path("recs.parquet"), reporter)

    QUERY, rank int32 (from 1), ITEM, score float32, and ITEM_name if the dataset has names of items

Parts are written next to the file, in ``.NAME.partial/``, with the request that they belong to. The same request
continues with the first missing part. Histories are first divided among the parts, in one pass over the interactions.

Shapes: Q queries, K ranks, R rows, P parts, N elements of anything else.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zlib
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.arrays import IntArray
from crossfade.base.errors import CrossfadeError, InputError
from crossfade.base.io.disk_errors import write_error, write_failure
from crossfade.base.io.durable_file import sync_folder
from crossfade.base.io.output import output_lock, staged_file
from crossfade.trainer.data.manifest import data_fingerprint
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.recommend.history import DividedHistories, divide_histories
from crossfade.trainer.recommend.recommender import Recommendations, Recommender, RecommendOptions
from crossfade.trainer.recommend.table_files import write_tables
from crossfade.trainer.recommend.trained_model import TrainedModel

MAX_PART_QUERIES = 1 << 16
_MAX_PART_INTERACTIONS = 1 << 25
"""Interactions in train of a part's queries, unless a single query has more."""
_MAX_PART_RANKS = 1 << 24
"""Ranks of a part's queries, unless a single query has more."""
_REQUEST_FILE = "request.json"


def recommend_in_bulk(
    model: TrainedModel, options: RecommendOptions, queries_Q: IntArray, out: Path, reporter: ProgressReporter
) -> int:
    """Recommend to ``queries_Q``, int64, sorted and unique, and write ``out``; return the number of its rows.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        CrossfadeError: ``out`` cannot be written; complete parts are kept.
        InputError: the folder of ``out`` cannot be written, another process writes it, parts of another request are in
            its way, or a filter is invalid.
    """
    recommender = Recommender(model, options, reporter)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written: {error.strerror}") from error
    with output_lock(out):
        try:
            return _recommend_in_parts(model, recommender, options, queries_Q, out, reporter)
        except OSError as error:
            complete = len(list(_parts_folder(out).glob("part-*.parquet")))
            raise CrossfadeError(
                f"--out {out}: could not be written: {write_failure(error, out)}; complete are {complete} parts in "
                f"{_parts_folder(out)}, with which the same command continues"
            ) from error


def _recommend_in_parts(
    model: TrainedModel,
    recommender: Recommender,
    options: RecommendOptions,
    queries_Q: IntArray,
    out: Path,
    reporter: ProgressReporter,
) -> int:
    folder = _open_parts(out, _request(model, recommender, options, queries_Q))
    counts_Q = model.counts(model.spec.query.name)[queries_Q]
    starts_P1 = part_starts(counts_Q, part_queries(model, options.count))
    paths = [folder / f"part-{number:06d}.parquet" for number in range(len(starts_P1) - 1)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    with tempfile.TemporaryDirectory(prefix="histories-", dir=folder) as work:
        if missing:
            with closing(model.open_lineage()) as lineage:
                histories = divide_histories(lineage, options.exclude, queries_Q, starts_P1, Path(work), reporter)
            _write_parts(model, recommender, queries_Q, histories, missing, paths, reporter)
    finished = folder / f"finished{out.suffix}"
    rows = write_tables(finished, map(_read_part, paths))
    finished.replace(out)
    sync_folder(out.parent)
    shutil.rmtree(folder)
    return rows


def _read_part(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path}: is damaged: {' '.join(str(error).split()).rstrip('.')}; delete it, and repeat the command"
        ) from error


def write_recommendations(model: TrainedModel, ids: pa.Array, recommended: Recommendations, out: Path) -> int:
    """Write recommendations to queries with ``ids`` to ``out``, in the same form; return the number of its rows.

    Raises:
        InputError: ``out`` cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return write_tables(out, [RecommendationColumns(model).table(ids, recommended)])
    except OSError as error:
        raise write_error(f"--out {out}", error, out) from error


def part_queries(model: TrainedModel, count: int) -> int:
    """Return how many queries of ``model`` are ranked at a time, ``count`` items or all there are for each."""
    return max(1, min(MAX_PART_QUERIES, _MAX_PART_RANKS // min(count, model.spec.item.rows)))


def part_starts(counts_Q: IntArray, max_queries: int | None = None) -> IntArray:
    """Divide queries with ``counts_Q`` interactions into parts; return where each starts, int64 (P + 1,)."""
    before_Q1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts_Q)])
    starts = [0]
    while starts[-1] < len(counts_Q):
        start = starts[-1]
        fitting = int(np.searchsorted(before_Q1, before_Q1[start] + _MAX_PART_INTERACTIONS, side="right")) - 1
        starts.append(min(max(fitting, start + 1), start + (max_queries or MAX_PART_QUERIES), len(counts_Q)))
    return np.array(starts)


def _write_parts(
    model: TrainedModel,
    recommender: Recommender,
    queries_Q: IntArray,
    histories: DividedHistories,
    missing: list[int],
    paths: list[Path],
    reporter: ProgressReporter,
) -> None:
    columns = RecommendationColumns(model)
    query = model.spec.query.name
    starts_P1 = histories.starts_P1
    reporter.phase("recommend", len(queries_Q), query)
    reporter.advance(len(queries_Q) - sum(int(starts_P1[number + 1] - starts_P1[number]) for number in missing))
    for number in missing:
        part_Q = queries_Q[starts_P1[number] : starts_P1[number + 1]]
        excluded = histories.load(number)
        recommended = recommender.rank(recommender.query_vectors(part_Q), excluded, excluded)
        ids = model.vocabulary(query).take(part_Q, ["id"]).column("id").combine_chunks()
        write_tables(paths[number], [columns.table(ids, recommended)])
        reporter.advance(len(part_Q))


class RecommendationColumns:
    """Builds the table of recommendations; the IDs and names of all items stay in memory."""

    def __init__(self, model: TrainedModel) -> None:
        self._query, self._item = model.spec.query.name, model.spec.item.name
        items: Vocabulary = model.vocabulary(self._item)
        table = items.read(0, items.rows, [name for name in items.columns if name != "row"])
        self._items = {name: table.column(name).combine_chunks() for name in table.column_names}

    def table(self, ids: pa.Array, recommended: Recommendations) -> pa.Table:
        """Return a row for each item recommended to the queries with ``ids``, by query, then by rank."""
        count = recommended.item_QK.shape[1]
        kept_N = recommended.item_QK.ravel() >= 0
        item_N = pa.array(recommended.item_QK.ravel()[kept_N])
        number_N = pa.array(np.repeat(np.arange(len(ids)), count)[kept_N])
        rank_N = np.tile(np.arange(1, count + 1, dtype=np.int32), len(ids))[kept_N]
        columns = {
            self._query: ids.take(number_N),
            "rank": rank_N,
            self._item: self._items["id"].take(item_N),
            "score": recommended.score_QK.ravel()[kept_N],
        }
        if "name" in self._items:
            columns[f"{self._item}_name"] = self._items["name"].take(item_N)
        return pa.table(columns)


def _request(
    model: TrainedModel, recommender: Recommender, options: RecommendOptions, queries_Q: IntArray
) -> dict[str, Any]:
    """Return what parts depend on, as JSON: the parts of another request are not continued."""
    with closing(model.open_lineage()) as lineage:
        base_datasets = lineage.fingerprints()
    request = {
        "model": model.uri,
        "vectors": model.fingerprint,
        "data": data_fingerprint(model.data),
        "base_datasets": base_datasets,
        "options": asdict(options),
        "candidates": recommender.ranker.fingerprint,
        "queries": [len(queries_Q), zlib.crc32(queries_Q.tobytes())],
        "part_queries": part_queries(model, options.count),
    }
    plain: dict[str, Any] = json.loads(json.dumps(request))
    return plain


def _parts_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


def _open_parts(out: Path, request: dict[str, Any]) -> Path:
    """Open or create the folder of the parts of ``out``.

    Raises:
        InputError: it holds the parts of another request, or cannot be created.
    """
    folder = _parts_folder(out)
    path = folder / _REQUEST_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with staged_file(path) as partial:
                partial.write_text(json.dumps(request), encoding="utf-8")
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise write_error(f"--out {out}", error, out) from error
    if earlier != request:
        changed = ", ".join(key for key in request if earlier.get(key) != request[key])
        raise InputError(
            f"--out {out}: {folder} holds an unfinished result of another request (different: {changed}); repeat that "
            "request, delete the folder, or choose another --out"
        )
    return folder
