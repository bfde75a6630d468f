"""Recommend to queries that options name and, into one file, to millions: in parts of bounded memory, resumable.

    recommend_to(model, RecommendToOptions.of(source="runs/lastfm", customer=["2"]), reporter, print)
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
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.arrays import IntArray
from crossfade.base.errors import CrossfadeError, InputError, OptionError, format_names, option_named
from crossfade.base.io.disk_errors import write_error, write_failure
from crossfade.base.io.durable_file import sync_folder
from crossfade.base.io.output import output_lock, staged_file
from crossfade.base.text import counted
from crossfade.trainer.data.manifest import data_fingerprint
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.embeddings.checkpoint_source import Log
from crossfade.trainer.recommend.candidates import read_lists
from crossfade.trainer.recommend.history import DividedHistories, Histories, divide_histories
from crossfade.trainer.recommend.model import Model, Rankings, Selection
from crossfade.trainer.recommend.options import RecommendOptions, RecommendToOptions
from crossfade.trainer.recommend.row_names import RowLabel
from crossfade.trainer.recommend.table_files import write_output, write_tables

MAX_PART_QUERIES = 1 << 16
_MAX_PART_INTERACTIONS = 1 << 25
"""Interactions in train of a part's queries, unless a single query has more."""
_MAX_PART_RANKS = 1 << 24
"""Ranks of a part's queries, unless a single query has more."""
_REQUEST_FILE = "request.json"
_OPTIONS = set(RecommendOptions.model_fields) - {"allow", "deny"}
"""What parts depend on; the rows that lists of IDs have count as candidates."""


@dataclass(frozen=True)
class Recommended:
    """What was recommended.

    Attributes:
        queries: to how many.
        rows: recommendations that were written; the following are empty then.
        labels: ID and name of each query; the ID of somebody new may be empty.
        rankings: the items.
        histories: what each query has interacted with.
    """

    queries: int
    rows: int = 0
    labels: Sequence[RowLabel] = ()
    rankings: Rankings | None = None
    histories: Histories | None = None


def recommend_to(model: Model, options: RecommendToOptions, reporter: ProgressReporter, log: Log) -> Recommended:
    """Recommend to the queries that ``options`` name; ``log`` gets a line for those that are left out.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        CrossfadeError: the file cannot be written; complete parts are kept.
        InputError: a query or item is unknown, an option is invalid, or the file cannot be written.
    """
    options = read_lists(options, model.files.names(model.item), model.item)
    if options.is_new:
        ids, histories = _new_histories(model, options, log)
        rankings = model.recommend_to_histories(histories, options, reporter)
        if options.out is not None:
            tables = [recommendation_table(model, pa.array(ids), rankings)]
            return Recommended(len(ids), write_output(options.out, tables))
        return Recommended(len(ids), 0, [RowLabel(id, None) for id in ids], rankings, histories)
    rows_Q = _find_queries(model, options, log)
    if options.out is not None:
        return Recommended(len(rows_Q), recommend_in_bulk(model, options, np.sort(rows_Q), options.out, reporter))
    rankings, histories = model.recommend(rows_Q, options, reporter), model.histories(rows_Q, reporter=reporter)
    labels = model.labels(model.query, rows_Q.tolist())
    return Recommended(len(rows_Q), 0, [labels[row] for row in rows_Q.tolist()], rankings, histories)


def _new_histories(model: Model, options: RecommendToOptions, log: Log) -> tuple[list[str], Histories]:
    if options.history_file is None:
        rows_N = model.find(model.item, options.history, trained=False)
        return [""], model.make_histories([rows_N], [np.ones(len(rows_N), np.float32)])
    from crossfade.trainer.recommend.history_file import read_histories  # by DuckDB, which takes time to import

    found = read_histories(options.history_file, model.trained)
    if found.unknown:
        log(f"{counted(found.unknown, 'line')} of {options.history_file} with no known {model.item}; left out")
    return found.ids, found.histories


def _find_queries(model: Model, options: RecommendToOptions, log: Log) -> IntArray:
    """Return the rows of the queries that have a trained vector: as named or, from a file or of all, sorted."""
    trained_R = model.trained_rows(model.query)
    if options.all:
        return np.flatnonzero(trained_R)
    if options.customers is None:
        return np.array(list(dict.fromkeys(model.find(model.query, options.customer).tolist())), np.int64)
    from crossfade.trainer.prepare.id_list import read_ids  # by DuckDB, too

    ids = read_ids(options.customers, None, model.query).to_pylist()
    found_Q, missing = model.files.names(model.query).rows_of(ids)
    queries_Q: IntArray = found_Q[trained_R[found_Q]]
    if not len(queries_Q):
        problem = f"none of its {len(ids)} IDs has a trained vector"
        raise OptionError("customers", found=options.customers, problem=problem)
    if missing:
        log(f"{len(missing):,} of {len(ids):,} customers have no row: {format_names(missing[:5])}")
    if len(found_Q) > len(queries_Q):
        left_out = counted(len(found_Q) - len(queries_Q), "customer")
        log(f"{left_out} without an interaction of positive weight in train; left out")
    return queries_Q


def recommend_in_bulk(
    model: Model, options: RecommendOptions, queries_Q: IntArray, out: Path, reporter: ProgressReporter
) -> int:
    """Recommend to ``queries_Q``, int64, sorted and unique, and write ``out``; return the number of its rows.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        CrossfadeError: ``out`` cannot be written; complete parts are kept.
        InputError: the folder of ``out`` cannot be written, another process writes it, parts of another request are in
            its way, or a filter is invalid.
    """
    selection = model.select_items(options)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError("out", found=out, problem=f"cannot be written: {error.strerror}") from error
    with output_lock(out):
        try:
            return _recommend_in_parts(model, selection, options, queries_Q, out, reporter)
        except OSError as error:
            complete = len(list(_parts_folder(out).glob("part-*.parquet")))
            raise CrossfadeError(
                f"{option_named('out', out)}: could not be written: {write_failure(error, out)}; complete are "
                f"{complete} parts in {_parts_folder(out)}, with which the same command continues"
            ) from error


def _recommend_in_parts(
    model: Model,
    selection: Selection,
    options: RecommendOptions,
    queries_Q: IntArray,
    out: Path,
    reporter: ProgressReporter,
) -> int:
    folder = _open_parts(out, _request(model, selection, options, queries_Q))
    counts_Q = model.trained.counts(model.query)[queries_Q]
    starts_P1 = part_starts(counts_Q, part_queries(model, options.depth(options.k)))
    paths = [folder / f"part-{number:06d}.parquet" for number in range(len(starts_P1) - 1)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    with tempfile.TemporaryDirectory(prefix="histories-", dir=folder) as work:
        if missing:
            with closing(model.trained.open_lineage()) as lineage:
                histories = divide_histories(lineage, options.exclude, queries_Q, starts_P1, Path(work), reporter)
            _write_parts(model, selection, options, queries_Q, histories, missing, paths, reporter)
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


def part_queries(model: Model, count: int) -> int:
    """Return how many queries of ``model`` are ranked at a time, ``count`` items or all there are for each."""
    return max(1, min(MAX_PART_QUERIES, _MAX_PART_RANKS // min(count, model.tables[model.item].rows)))


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
    model: Model,
    selection: Selection,
    options: RecommendOptions,
    queries_Q: IntArray,
    histories: DividedHistories,
    missing: list[int],
    paths: list[Path],
    reporter: ProgressReporter,
) -> None:
    starts_P1 = histories.starts_P1
    reporter.phase("recommend", len(queries_Q), model.query)
    reporter.advance(len(queries_Q) - sum(int(starts_P1[number + 1] - starts_P1[number]) for number in missing))
    for number in missing:
        part_Q = queries_Q[starts_P1[number] : starts_P1[number + 1]]
        excluded = histories.load(number).lists
        rankings = selection.rank(model.query_vectors(part_Q, options), excluded, options.k, part_Q)
        table = recommendation_table(model, model.ids(model.query, part_Q), rankings)
        write_tables(paths[number], [table])
        reporter.advance(len(part_Q))


def recommendation_table(model: Model, ids: pa.Array, rankings: Rankings) -> pa.Table:
    """Return a row for each item recommended to the queries with ``ids``, by query, then by rank.

    The IDs and names of all items stay in memory.
    """
    count = rankings.rows_QK.shape[1]
    kept_N = rankings.rows_QK.ravel() >= 0
    item_N = pa.array(rankings.rows_QK.ravel()[kept_N])
    number_N = pa.array(np.repeat(np.arange(len(ids)), count)[kept_N])
    columns = {
        model.query: ids.take(number_N),
        "rank": np.tile(np.arange(1, count + 1, dtype=np.int32), len(ids))[kept_N],
        model.item: model.item_columns["id"].take(item_N),
        "score": rankings.scores_QK.ravel()[kept_N],
    }
    if "name" in model.item_columns:
        columns[f"{model.item}_name"] = model.item_columns["name"].take(item_N)
    return pa.table(columns)


def _request(model: Model, selection: Selection, options: RecommendOptions, queries_Q: IntArray) -> dict[str, Any]:
    """Return what parts depend on, as JSON: the parts of another request are not continued."""
    with closing(model.trained.open_lineage()) as lineage:
        base_datasets = lineage.fingerprints()
    request = {
        "model": model.trained.uri,
        "vectors": model.trained.fingerprint,
        "data": data_fingerprint(model.trained.data),
        "base_datasets": base_datasets,
        "options": options.model_dump(mode="json", include=_OPTIONS),
        "candidates": selection.fingerprint,
        "queries": [len(queries_Q), zlib.crc32(queries_Q.tobytes())],
        "part_queries": part_queries(model, options.depth(options.k)),
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
        raise write_error(option_named("out", out), error, out) from error
    if earlier != request:
        changed = ", ".join(key for key in request if earlier.get(key) != request[key])
        raise OptionError(
            "out",
            found=out,
            problem=f"{folder} holds an unfinished result of another request (different: {changed})",
            fix=f"repeat that request, delete the folder, or choose another {option_named('out')}",
        )
    return folder
