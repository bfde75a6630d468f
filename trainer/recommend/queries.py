"""Find whom to recommend to, such as customers, and decide about those without a trained vector.

    queries = find_queries(model, ["2", "nobody"], "popular", print)
    queries.rows_Q, queries.ids(model)                  # [7, -1], [2, "nobody"]

Shapes: Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from crossfade.base.arrays import IntArray
from crossfade.base.errors import Option, OptionError, format_names
from crossfade.trainer.embeddings.checkpoint_source import Log
from crossfade.trainer.recommend.model import Model
from crossfade.trainer.recommend.options import OnUnknown
from crossfade.trainer.recommend.row_names import UnknownRowError, untrained

_MAX_LOGGED = 5


@dataclass(frozen=True)
class Queries:
    """Whom to recommend to.

    Attributes:
        rows_Q: their distinct rows, int64; -1 for each ID without a row.
        unknown: the IDs without a row, in their order: of the type of the other IDs or, if one is of another, texts.
    """

    rows_Q: IntArray
    unknown: pa.Array

    def ids(self, model: Model) -> pa.Array:
        """Return the IDs of all, of the type of ``unknown``."""
        is_known_Q = self.rows_Q >= 0
        known = model.ids(model.query, self.rows_Q[is_known_Q])
        place_Q = np.where(is_known_Q, np.cumsum(is_known_Q), len(known) + np.cumsum(~is_known_Q)) - 1
        return pa.concat_arrays([known.cast(self.unknown.type), self.unknown]).take(pa.array(place_Q))

    def take(self, part: slice) -> Queries:
        """Return those in ``part``."""
        before, within = (np.count_nonzero(rows_N < 0) for rows_N in (self.rows_Q[: part.start], self.rows_Q[part]))
        return Queries(self.rows_Q[part], self.unknown.slice(before, within))

    def by_row(self) -> Queries:
        """Return them by row; those without one come first, in the same order."""
        return Queries(np.sort(self.rows_Q), self.unknown)


def all_queries(model: Model, on_unknown: OnUnknown) -> Queries:
    """Return all queries with an ID, sorted; unless popular items are recommended to others, with a trained vector."""
    kept_Q = model.trained_rows(model.query)
    if on_unknown == "popular":
        kept_Q = np.ones_like(kept_Q)
        kept_Q[model.trained.manifest.entities[model.query].vacant_rows] = False
    return Queries(np.flatnonzero(kept_Q), _typed(model, []))


def find_queries(model: Model, texts: Sequence[str], on_unknown: OnUnknown, log: Log) -> Queries:
    """Find the queries with the IDs or names ``texts``, in this order; ``log`` gets a line with those left out.

    Raises:
        UnknownRowError: some have no trained vector, and ``on_unknown`` is an error.
    """
    distinct = list(dict.fromkeys(texts))
    if on_unknown == "error" and len(distinct) == 1:
        return Queries(model.find(model.query, distinct), _typed(model, []))
    rows = model.files.names(model.query).found(distinct, log)
    # A number for each unknown ID, so that only equal rows are one.
    keys = dict.fromkeys(rows.get(text, -1 - place) for place, text in enumerate(distinct))
    rows_Q = np.maximum(np.array(list(keys), np.int64), -1)
    return _decide(model, rows_Q, [text for text in distinct if text not in rows], on_unknown, log)


def read_queries(model: Model, file: str, on_unknown: OnUnknown, log: Log) -> Queries:
    """Find the queries whose IDs are in ``file``, sorted, as ``find_queries`` does.

    Raises:
        InputError: the file cannot be read.
        OptionError: none has a trained vector, and popular items are not recommended to others.
        UnknownRowError: as for ``find_queries``.
    """
    from crossfade.trainer.prepare.id_list import read_ids  # by DuckDB, which takes time to import

    ids = read_ids(file, None, model.query, "customers").to_pylist()
    found_Q, missing = model.files.names(model.query).rows_of(ids)
    missing = list(dict.fromkeys(missing))
    rows_Q = np.concatenate([np.full(len(missing), -1), found_Q])
    if on_unknown != "popular" and not model.has_vector(rows_Q).any():
        raise OptionError("customers", found=file, problem=f"none of its {len(ids)} IDs has a trained vector")
    return _decide(model, rows_Q, missing, on_unknown, log)


def _decide(model: Model, rows_Q: IntArray, unknown: list[str], on_unknown: OnUnknown, log: Log) -> Queries:
    """Return the queries that ``on_unknown`` keeps, of ``rows_Q`` and the IDs ``unknown``, which have row -1."""
    has_vector_Q = model.has_vector(rows_Q)
    if on_unknown == "popular" or has_vector_Q.all():
        return Queries(rows_Q, _typed(model, unknown))
    untrained_Q = rows_Q[~has_vector_Q & (rows_Q >= 0)]
    without = [str(id) for id in model.ids(model.query, untrained_Q).to_pylist()]
    if on_unknown == "error":
        names = model.files.names(model.query)
        problem = names.describe_unknown(unknown) if unknown else untrained(model.query, without)
        skip, popular = (Option("on_unknown", value) for value in ("skip", "popular"))
        raise UnknownRowError(f"{problem}; ", skip, " leaves them out, ", popular, " recommends popular items to them")
    left_out = [*unknown, *without]
    which = f"{len(left_out):,} of {len(rows_Q):,} of {model.query} have no trained vector"
    log(f"{which}, such as {format_names(left_out[:_MAX_LOGGED])}; left out")
    return Queries(rows_Q[has_vector_Q], _typed(model, []))


def _typed(model: Model, unknown: list[str]) -> pa.Array:
    """Return ``unknown`` IDs as values of the type of the others or, if one is no such value, as texts."""
    texts = pa.array(unknown, pa.string())
    try:
        typed = texts.cast(model.ids(model.query, np.empty(0, np.int64)).type)
    except pa.ArrowInvalid:  # a text among integers
        return texts
    return typed if typed.cast(texts.type).equals(texts) else texts  # 007 is not 7
