"""Held-out interactions: the queries that are evaluated, and the items that they are evaluated on.

    held_out = load_held_out(lineage, "test", job.evaluate, rank=0, workers=1)
    held_out.queries_Q, held_out.truth, held_out.excluded

In a dataset with context, a query is a combination of a row of the query entity and the context of a held-out event: a
customer with two held-out events in different contexts is two queries. If queries are judged by moment
(``evaluate.by``), the timestamp is part of the combination as well.

With a sample of the queries (``sample.py``), only their events are kept while files are read, so memory follows the
sample. To draw it takes up to 24 bytes for each event of the split.

Shapes: Q queries, S selected queries, N items of all lists, pairs or events, I items, R rows of the query entity,
K context entities.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from crossfade.base.arrays import IntArray
from crossfade.trainer.config.schema import EvaluateConfig
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.query_history import LatestHistories, MomentHistories, histories_before
from crossfade.trainer.data.reader import Interactions
from crossfade.trainer.data.split_names import ALL_SPLITS, SplitName
from crossfade.trainer.evaluation.sample import QuerySample, draw_sample
from crossfade.trainer.model.active_rows import number_distinct

_MAX_COUNTED = 1 << 24
"""Interactions whose distinct pairs are in memory together."""


@dataclass(frozen=True)
class HeldOut:
    """What one worker evaluates.

    Attributes:
        queries_Q: its queries, int64 and sorted; rows repeat where they have several contexts.
        truth: the items held out for each query.
        excluded: the items removed from each query's ranking.
        workers: the number of workers that divide the queries among themselves.
        dropped: the number of held-out pairs that do not count, since they are in an excluded split too.
        item_I: the items that are ranked, int64 and sorted, where the table has vacant rows; None: all.
        context: by context entity of the dataset, its row for each query, int64 (Q,), -1 for none.
        histories: the histories of the queries, if they are judged by moment and the model uses histories.
        sampled_from: the number of queries of the split, of which all workers have a sample; None: they have all.
    """

    queries_Q: IntArray
    truth: JaggedArray
    excluded: JaggedArray
    workers: int = 1
    dropped: int = 0
    item_I: IntArray | None = None
    context: Mapping[str, IntArray] = field(default_factory=dict)
    histories: MomentHistories | None = None
    sampled_from: int | None = None

    def chunks(self, queries: int) -> Iterator[HeldOut]:
        """Yield the same in chunks of at most ``queries`` queries."""
        places_Q = np.arange(len(self.queries_Q))
        for first in range(0, len(places_Q), queries):
            yield replace(self.take(places_Q[first : first + queries]), dropped=0, sampled_from=None)

    def take(self, places_S: IntArray) -> HeldOut:
        """Return the same for the queries at ``places_S``, int64 (S,)."""
        return replace(
            self,
            queries_Q=self.queries_Q[places_S],
            truth=self.truth.take(places_S),
            excluded=self.excluded.take(places_S),
            context={name: row_Q[places_S] for name, row_Q in self.context.items()},
            histories=None if self.histories is None else self.histories.take(places_S),
        )


def load_held_out(
    lineage: LineageReader,
    split: SplitName,
    spec: EvaluateConfig,
    rank: int,
    workers: int,
    latest: LatestHistories | None = None,
    queries: int | None = None,
) -> HeldOut:
    """Load the part of ``split`` that worker ``rank`` evaluates, from interactions of positive weight.

    Workers divide ``queries`` of the split among themselves, a sample, or all if None.

    Of the base datasets, all splits are excluded if any of this dataset is, since items there are not new.
    A held-out pair that is in an excluded split too, such as a track played again, does not count: ranked, it would
    compete with unheard items only, since the other heard ones are excluded. A query without other pairs is left out,
    of a sample too, which then has fewer.

    ``latest`` are the histories after train of a model that uses histories.

    Raises:
        InputError: a file cannot be read.
    """
    manifest = lineage.manifest
    vacant_I = manifest.entities[manifest.item].vacant_rows
    item_I = np.delete(np.arange(manifest.entities[manifest.item].rows), vacant_I) if vacant_I else None
    by_moment = spec.by == "moment"
    sample = None if queries is None else _draw_sample(lineage, split, queries, by_moment=by_moment)
    sampled_from = None if sample is None else sample.queries
    events = _read_events(lineage, split, sample, by_moment=by_moment)
    if manifest.context or by_moment:
        held_out, moment_Q = _divide_events(lineage, events, spec.excluded_from(split), rank, workers)
        histories = None
        if latest is not None and by_moment:
            histories = _histories(lineage, held_out.queries_Q, moment_Q, latest)
        return replace(held_out, item_I=item_I, histories=histories, sampled_from=sampled_from)
    items = manifest.entities[manifest.item].rows
    pairs = [events_NK[:, 0] * items + events_NK[:, -1] for events_NK in events]
    held_out_N = np.unique(np.concatenate([np.empty(0, np.int64), *pairs]))
    queries_Q = np.unique(held_out_N // items)[rank::workers]
    excluded_N = known_pairs(lineage, spec.excluded_from(split), queries_Q)
    new_N = np.setdiff1d(held_out_N, excluded_N, assume_unique=True)
    dropped = len(held_out_N) - len(new_N)
    truth = _lists(new_N, queries_Q, items)
    has_Q = truth.counts_L > 0
    lists = truth.take(np.flatnonzero(has_Q)), _lists(excluded_N, queries_Q[has_Q], items)
    return HeldOut(queries_Q[has_Q], *lists, workers, dropped, item_I, sampled_from=sampled_from)


def _draw_sample(lineage: LineageReader, split: SplitName, queries: int, *, by_moment: bool) -> QuerySample | None:
    """Draw ``queries`` of ``split``; None if these are all. A split of no more events than that is not read."""
    splits = lineage.manifest.splits
    if split not in splits or splits[split].rows <= queries:
        return None
    return draw_sample((part[:, :-1] for part in _read_events(lineage, split, None, by_moment=by_moment)), queries)


def _read_events(
    lineage: LineageReader, split: SplitName, sample: QuerySample | None, *, by_moment: bool
) -> Iterator[IntArray]:
    """Yield the events of positive weight of ``split``, of queries in ``sample`` if there is one: int64 (N, K + 3).

    Columns are the query, its context, the moment, which is 0 unless ``by_moment``, and the item.
    """
    manifest = lineage.manifest
    if split not in manifest.splits:
        return
    for part in lineage.own.read_all(manifest.splits[split], manifest.context, timestamps=by_moment):
        moment_N = np.zeros(len(part), np.int64) if part.timestamp_N is None else part.timestamp_N
        context = [] if part.context_NK is None else [part.context_NK]
        events_NK = np.column_stack([part.query_N, *context, moment_N, part.item_N])[part.weight_N > 0]
        yield events_NK if sample is None else events_NK[sample.contains(events_NK[:, :-1])]


def _divide_events(
    lineage: LineageReader,
    events: Iterable[IntArray],
    excluded_splits: Sequence[SplitName],
    rank: int,
    workers: int,
) -> tuple[HeldOut, IntArray]:
    """Load the same where a query is a row in a context or at a moment, whose excluded items are those of the row.

    Returns:
        What the worker evaluates, and the moment of each query, int64 (Q,); 0 if they are not judged by moment.
    """
    manifest = lineage.manifest
    items = manifest.entities[manifest.item].rows
    events_NK = np.concatenate([np.empty((0, len(manifest.context) + 3), np.int64), *events])
    events_NK = events_NK[number_distinct(events_NK)[0]]
    first_Q, number_N = number_distinct(events_NK[:, :-1])
    query_QK = events_NK[first_Q[rank::workers], :-1]
    is_own_N = number_N % workers == rank
    place_N, pair_N = number_N[is_own_N] // workers, events_NK[is_own_N, 0] * items + events_NK[is_own_N, -1]
    excluded_N = known_pairs(lineage, excluded_splits, np.unique(query_QK[:, 0]))
    is_new_N = ~np.isin(pair_N, excluded_N)
    starts_Q1 = np.searchsorted(place_N[is_new_N], np.arange(len(query_QK) + 1))
    has_Q = np.diff(starts_Q1) > 0
    queries_Q, *context_KQ, moment_Q = query_QK[has_Q].T
    truth = JaggedArray(starts_Q1, pair_N[is_new_N] % items).take(np.flatnonzero(has_Q))
    context = dict(zip(manifest.context, context_KQ, strict=True))
    dropped = int(np.count_nonzero(~is_new_N))
    excluded = _lists(excluded_N, queries_Q, items)
    return HeldOut(queries_Q, truth, excluded, workers, dropped, context=context), moment_Q


def _histories(
    lineage: LineageReader,
    queries_Q: IntArray,
    moment_Q: IntArray,
    latest: LatestHistories,
) -> MomentHistories:
    """Return the histories of ``queries_Q``: before ``moment_Q`` in any split or base dataset, and after train."""
    manifest = lineage.manifest
    selected_R = np.zeros(manifest.entities[manifest.query].rows, np.bool_)
    selected_R[queries_Q] = True
    parts = [np.empty((3, 0), np.int64)]
    for part in lineage.read_known(ALL_SPLITS, timestamps=True):
        assert part.timestamp_N is not None
        kept_N = (part.weight_N > 0) & selected_R[part.query_N]
        parts.append(np.stack([part.query_N, part.item_N, part.timestamp_N])[:, kept_N])
    query_N, item_N, timestamp_N = np.concatenate(parts, axis=1)
    before = histories_before(queries_Q, moment_Q, query_N, item_N, timestamp_N, latest.length)
    return MomentHistories(before.compact(), latest.gather(queries_Q))


def count_owners(lineage: LineageReader, counts_R: IntArray) -> tuple[IntArray, int]:
    """Count the queries that have each item in train with a positive weight, int64 (I,), and those that have any.

    ``counts_R`` is the number of such interactions of each query. Train is read once for each ``_MAX_COUNTED`` of them.

    Raises:
        InputError: a file cannot be read.
    """
    items = _items(lineage)
    owners_I, queries = np.zeros(items, np.int64), 0
    bounds_N = np.flatnonzero(np.diff(np.cumsum(counts_R) // _MAX_COUNTED)) + 1
    for part_Q in np.split(np.arange(len(counts_R)), bounds_N):
        pairs_N = train_pairs(lineage, part_Q)
        owners_I += np.bincount(pairs_N % items, minlength=items)
        queries += len(np.unique(pairs_N // items))
    return owners_I, queries


def train_pairs(lineage: LineageReader, queries_Q: IntArray | None = None) -> IntArray:
    """Return the distinct pairs of train, as query·items + item, sorted; only those of ``queries_Q`` if given."""
    return _distinct_pairs(lineage, lineage.read_train(), queries_Q)


def known_pairs(lineage: LineageReader, splits: Sequence[SplitName], queries_Q: IntArray) -> IntArray:
    """Return the pairs of ``queries_Q`` that ``splits`` and the base datasets have, in the same form."""
    return _distinct_pairs(lineage, lineage.read_known(splits), queries_Q)


def _distinct_pairs(lineage: LineageReader, found: Iterable[Interactions], queries_Q: IntArray | None) -> IntArray:
    items, manifest = _items(lineage), lineage.manifest
    if queries_Q is not None and not len(queries_Q):
        return np.empty(0, np.int64)
    selected_R = np.full(manifest.entities[manifest.query].rows, queries_Q is None)
    selected_R[[] if queries_Q is None else queries_Q] = True
    parts = [np.empty(0, dtype=np.int64)]
    for part in found:
        positive_N = (part.weight_N > 0) & selected_R[part.query_N]
        parts.append(part.query_N[positive_N] * items + part.item_N[positive_N])
    return np.unique(np.concatenate(parts))


def _items(lineage: LineageReader) -> int:
    return lineage.manifest.entities[lineage.manifest.item].rows


def _lists(pairs_N: IntArray, queries_Q: IntArray, items: int) -> JaggedArray:
    begin_Q, end_Q = (np.searchsorted(pairs_N, bound * items) for bound in (queries_Q, queries_Q + 1))
    return JaggedArray.of([pairs_N[begin:end] % items for begin, end in zip(begin_Q, end_Q, strict=True)])
