"""Recommend to queries that options name and, into one file, to millions: in parts of bounded memory, resumable.

    recommend_to(model, RecommendToOptions.of(source="runs/lastfm", customer=["2"]), reporter, print)
    recommend_in_bulk(Request(model, options, queries_Q, reporter), Path("recs.parquet"))
    recommend_shard(request, "s3://music/recs", Shard(2, 16))

    QUERY, rank int32 (from 1), ITEM, score float32, ITEM_name if the dataset has names of items, and is_fallback if
    popular items are recommended to queries without a trained vector

Parts are written next to the file, in ``.NAME.partial/``, with the request that they belong to. The same request
continues with the first missing part. Histories are first divided among the parts, in one pass over the interactions.

The parts of shards (``trainer/runs/shards.py``) are the result, in a folder:

    OUT/recommendations-00002-of-00016-000000.parquet   in the order of their names, the rows of the file
    OUT/_manifest.json                                  what they are made from, and all files, once all are complete

Shapes: Q queries, K ranks, R rows, P parts, N elements of anything else.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.arrays import BoolArray, IntArray
from crossfade.base.errors import CrossfadeError, InputError, Option, OptionError
from crossfade.base.io.disk_errors import TEMPORARY_ADVICE, full_disk_errors, write_error, write_failure
from crossfade.base.io.durable_file import sync_folder
from crossfade.base.io.folder import Folder
from crossfade.base.io.output import output_lock, staged_file
from crossfade.base.io.temporary_folder import temporary_folder
from crossfade.base.text import counted
from crossfade.trainer.data.manifest import DataFile, data_fingerprint
from crossfade.trainer.data.parquet import file_entry
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.embeddings.checkpoint_source import Log
from crossfade.trainer.evaluation.held_out import ItemLists
from crossfade.trainer.recommend.candidates import read_lists
from crossfade.trainer.recommend.history import Histories, divide_histories
from crossfade.trainer.recommend.model import Model, Rankings, Selection
from crossfade.trainer.recommend.options import RecommendOptions, RecommendToOptions
from crossfade.trainer.recommend.queries import Queries, all_queries, find_queries, read_queries
from crossfade.trainer.recommend.row_names import RowLabel
from crossfade.trainer.recommend.table_files import write_output, write_tables
from crossfade.trainer.runs.options import Shard
from crossfade.trainer.runs.shards import Result, ShardFolder, check_files, check_request, shard_errors

MAX_PART_QUERIES = 1 << 16
_MAX_PART_INTERACTIONS = 1 << 25
"""Interactions in train of a part's queries, unless a single query has more."""
_MAX_PART_RANKS = 1 << 24
"""Ranks of a part's queries, unless a single query has more."""
_REQUEST_FILE = "request.json"
MANIFEST_FILE = "_manifest.json"
_PREFIX = "recommendations-"
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
        fallback_Q: which get popular items for want of a trained vector, bool (Q,); None: such queries get nothing.
    """

    queries: int
    rows: int = 0
    labels: Sequence[RowLabel] = ()
    rankings: Rankings | None = None
    histories: Histories | None = None
    fallback_Q: BoolArray | None = None


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
            return Recommended(len(ids), write_output(Path(options.out), tables))
        return Recommended(len(ids), 0, [RowLabel(id, None) for id in ids], rankings, histories)
    if options.all:
        queries = all_queries(model, options.on_unknown)
    elif options.customers is not None:
        queries = read_queries(model, options.customers, options.on_unknown, log)
    else:
        queries = find_queries(model, options.customer, options.on_unknown, log)
    rows_Q = queries.rows_Q
    if options.out is not None:
        request = Request.of(model, options, queries.by_row(), reporter)
        if options.shard is not None:
            return recommend_shard(request, Folder(options.out), options.shard)
        if options.merge:
            return merge_shards(request, Folder(options.out))
        return Recommended(len(rows_Q), recommend_in_bulk(request, Path(options.out)))
    rankings, histories = model.recommend(rows_Q, options, reporter), model.histories(rows_Q, reporter=reporter)
    found, ids = model.labels(model.query, rows_Q[rows_Q >= 0].tolist()), queries.ids(model).to_pylist()
    labels = [found.get(row) or RowLabel(id, None) for row, id in zip(rows_Q.tolist(), ids, strict=True)]
    return Recommended(len(rows_Q), 0, labels, rankings, histories, _fallback(model, queries, options))


def _new_histories(model: Model, options: RecommendToOptions, log: Log) -> tuple[list[str], Histories]:
    if options.history_file is None:
        rows_N = model.find(model.item, options.history, trained=False)
        return [""], model.make_histories([rows_N], [np.ones(len(rows_N), np.float32)])
    from crossfade.trainer.recommend.history_file import read_histories  # by DuckDB, which takes time to import

    found = read_histories(options.history_file, model.trained)
    if found.unknown:
        log(f"{counted(found.unknown, 'line')} of {options.history_file} with no known {model.item}; left out")
    return found.ids, found.histories


@dataclass(frozen=True)
class Request:
    """What is recommended, by ``selection``, which ``options`` make, to ``queries``, sorted."""

    model: Model
    selection: Selection
    options: RecommendOptions
    queries: Queries
    reporter: ProgressReporter

    @staticmethod
    def of(model: Model, options: RecommendOptions, queries: Queries, reporter: ProgressReporter) -> Request:
        """Return the request.

        Raises:
            InputError: a filter is invalid.
        """
        return Request(model, model.select_items(options), options, queries, reporter)

    def made_from(self) -> dict[str, Any]:
        """Return what parts depend on, as JSON: the parts of another request are not continued."""
        model, queries = self.model, self.queries
        request = {
            "vectors": model.trained.fingerprint,
            "data": data_fingerprint(model.trained.data),
            "options": self.options.model_dump(mode="json", include=_OPTIONS),
            "candidates": self.selection.fingerprint,
            "queries": [len(queries.rows_Q), queries.checksum],
            "part_queries": part_queries(model, self.options.depth(self.options.k)),
        }
        plain: dict[str, Any] = json.loads(json.dumps(request))
        return plain


def recommend_in_bulk(request: Request, out: Path) -> int:
    """Recommend to all queries of ``request``, and write ``out``; return the number of its rows.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        CrossfadeError: ``out`` cannot be written; complete parts are kept.
        InputError: the folder of ``out`` cannot be written, another process writes it, or parts of another request are
            in its way.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError("out", found=out, problem=f"cannot be written: {error.strerror}") from error
    with output_lock(out):
        try:
            return _recommend_in_parts(request, out)
        except OSError as error:
            complete = len(list(_parts_folder(out).glob("part-*.parquet")))
            raise CrossfadeError(
                Option("out", out),
                f": could not be written: {write_failure(error, out)}; complete are "
                f"{complete} parts in {_parts_folder(out)}, with which the same command continues",
            ) from error


def _recommend_in_parts(request: Request, out: Path) -> int:
    folder = _open_parts(out, {"model": request.model.trained.uri, **request.made_from()})
    names = _write_parts(request, request.queries, Folder(folder), "part", folder)
    finished = folder / f"finished{out.suffix}"
    tables = (_read_part(folder / name) for name in names)
    rows = write_tables(
        finished, tables if names else [recommend_to_queries(request.model, request.queries, request.options)]
    )
    finished.replace(out)
    sync_folder(out.parent)
    shutil.rmtree(folder)
    return rows


def recommend_shard(request: Request, out: Folder, shard: Shard) -> Recommended:
    """Recommend to the queries of ``shard``, into files of ``out``, unless they are there.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        CrossfadeError: ``out`` cannot be written; complete parts are kept.
        InputError: ``out`` is no folder or has shards of another request.
        StorageUnavailableError: storage does not answer.
    """
    shards, queries = ShardFolder(out, "recommend", request.made_from()), request.queries
    own, prefix = queries.take(shard.part(len(queries.rows_Q))), f"{_PREFIX}{shards.name(shard)}"
    has_begun, found = shards.has_begun(shard), shards.begin(shard)
    with shard_errors(out):
        is_complete = found is not None and _has_files(out, found)
        if not is_complete:
            sizes = None if found is None else {file.path: file.bytes for file in _files(found)}
            for name, entry in out.entries().items():
                if name.startswith(f"{prefix}-") and entry is not None:
                    is_own = has_begun and (sizes is None or sizes.get(name) == entry.bytes)
                    if not is_own:  # of another request, or damaged
                        out.remove(name)
    if found is None or not is_complete:
        names = _write_parts(request, own, out, prefix)
        files = [file_entry(out, name) for name in names]
        found = {
            "model": request.model.trained.uri,
            "queries": len(own.rows_Q),
            "rows": sum(file.rows for file in files),
            "files": [file.model_dump() for file in files],
        }
        shards.complete(shard, found)
    return Recommended(len(own.rows_Q), found["rows"])


def _files(result: Result) -> list[DataFile]:
    return [DataFile.model_validate(file) for file in result["files"]]


def _has_files(out: Folder, result: Result) -> bool:
    """Return whether the files that a shard has written are still there."""
    entries = out.entries()
    found = [(entries.get(file.path), file.bytes) for file in _files(result)]
    return all(entry is not None and entry.bytes == size for entry, size in found)


def merge_shards(request: Request, out: Folder) -> Recommended:
    """Verify that ``out`` has all shards of ``request``, whose files are whole and the only ones; write the manifest.

    All files are read to their ends: their pages have checksums.

    Raises:
        InputError: a shard is missing or incomplete, of another request, or a file is damaged or of something else.
        StorageUnavailableError: storage does not answer.
    """
    made_from = request.made_from()
    results = ShardFolder(out, "recommend", made_from).results()
    files = [file for result in results for file in _files(result)]
    check_files(out, files, pages=True)
    with shard_errors(out):
        found = Recommended(*(sum(result[key] for result in results) for key in ("queries", "rows")))
        manifest = {
            "format": "crossfade-recommendations",
            "version": 1,
            "model": results[0]["model"],
            "made_from": made_from,
            "queries": found.queries,
            "rows": found.rows,
            "files": [file.model_dump() for file in files],
        }
        out.write(MANIFEST_FILE, (json.dumps(manifest, indent=1) + "\n").encode())
    return found


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
    request: Request, queries: Queries, folder: Folder, prefix: str, work: Path | None = None
) -> list[str]:
    """Write recommendations to ``queries`` to files of ``folder``, those that it lacks; return the names of all.

    Histories wait in ``work``; None: where temporary files are. Then ``folder`` is that of shards.
    """

    def writing() -> AbstractContextManager[None]:
        return shard_errors(folder) if work is None else nullcontext()

    model, options, queries_Q = request.model, request.options, queries.rows_Q
    counts_Q = np.where(queries_Q < 0, 0, model.trained.counts(model.query)[queries_Q])
    starts_P1 = part_starts(counts_Q, part_queries(model, options.depth(options.k)))
    names = [f"{prefix}-{number:06d}.parquet" for number in range(len(starts_P1) - 1)]
    with writing():
        present = set(folder.names())
    missing = [number for number, name in enumerate(names) if name not in present]
    with temporary_folder("histories", work) as temporary:
        if missing:
            with closing(model.trained.open_lineage()) as lineage:
                parts = queries_Q, starts_P1, temporary, request.reporter
                with nullcontext() if work else full_disk_errors(temporary, TEMPORARY_ADVICE):
                    histories = divide_histories(lineage, options.exclude, *parts)
        request.reporter.phase("recommend", len(queries_Q), model.query)
        request.reporter.advance(len(queries_Q) - int(np.diff(starts_P1)[missing].sum()))
        for number in missing:
            part = queries.take(slice(starts_P1[number], starts_P1[number + 1]))
            content = _parquet_of(request, part, histories.load(number).lists)
            with writing():
                folder.write(names[number], content)
            request.reporter.advance(len(part.rows_Q))
    return names


def _parquet_of(request: Request, part: Queries, excluded: ItemLists) -> bytes:
    """Recommend to ``part``; return the content of a Parquet file."""
    rankings = request.model.rank(request.selection, part.rows_Q, excluded, request.options)
    table, content = _table_of(request.model, part, rankings, request.options), pa.BufferOutputStream()
    pq.write_table(table, content, compression="zstd", write_page_checksum=True)
    return content.getvalue().to_pybytes()  # type: ignore[no-any-return]


def recommend_to_queries(model: Model, queries: Queries, options: RecommendOptions) -> pa.Table:
    """Recommend to ``queries``, a part at a time, and return the table of the module.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        InputError: an option is invalid or leaves no item, or the dataset cannot be read.
    """
    step = part_queries(model, options.depth(options.k))
    starts = range(0, max(len(queries.rows_Q), 1), step)
    parts = [queries.take(slice(start, start + step)) for start in starts]
    tables = [_table_of(model, part, model.recommend(part.rows_Q, options), options) for part in parts]
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables)


def _table_of(model: Model, queries: Queries, rankings: Rankings, options: RecommendOptions) -> pa.Table:
    return recommendation_table(model, queries.ids(model), rankings, _fallback(model, queries, options))


def _fallback(model: Model, queries: Queries, options: RecommendOptions) -> BoolArray | None:
    """Return which of ``queries`` get popular items, bool (Q,); None unless ``options`` ask for that."""
    return ~model.has_vector(queries.rows_Q) if options.on_unknown == "popular" else None


def recommendation_table(
    model: Model, ids: pa.Array, rankings: Rankings, fallback_Q: BoolArray | None = None
) -> pa.Table:
    """Return a row for each item recommended to the queries with ``ids``, by query, then by rank.

    ``fallback_Q`` becomes the column is_fallback. The IDs and names of all items stay in memory.
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
    if fallback_Q is not None:
        columns["is_fallback"] = np.repeat(fallback_Q, count)[kept_N]
    return pa.table(columns)


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
        raise write_error(Option("out", out), error, out) from error
    check_request(out, f"{folder} holds an unfinished result", earlier, request)
    return folder
