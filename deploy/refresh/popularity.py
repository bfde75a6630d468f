"""Choose how popularity enters the scores of a version that continues another, and count plays anew.

    add_popularity(base_run, run, takes_events=True)        # RUN/embeddings/popularity.parquet

The events of an increment came after all that the version before was trained on, so they show what a hold-out at random
cannot: how far what is played lately predicts what is played next. The term is the one that ranks them best, by the
embeddings of the version before and what had been played until then. Where they show no better one, or are of few
queries, the term of the version before stays. Its counts include the new events in any case.

Shapes: Q queries, I items, N items of all lists.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from crossfade.base.io.folder import Folder
from crossfade.trainer.config.sections import resolved
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.embeddings.files import EmbeddingFiles
from crossfade.trainer.embeddings.popularity import PopularityCard, PopularityTerm, read_term, write_term
from crossfade.trainer.evaluation.held_out import HeldOut, load_held_out
from crossfade.trainer.evaluation.popularity_choice import RankingTrials, choose_term, count_latest
from crossfade.trainer.recommend.trained_model import TrainedModel, with_trained_model
from crossfade.trainer.runs.options import ModelSource
from crossfade.trainer.runs.run_folder import EMBEDDINGS_FOLDER

Result = TypeVar("Result")
_LEAST_QUERIES = 50
"""Queries with new events by which a term is chosen: the best of two dozen terms on fewer is often chance."""
_ERRORS = 2.5
"""Standard errors that its gain must exceed: more than in a training, since every version chooses again."""


def add_popularity(base: Path, run: Path, *, takes_events: bool) -> None:
    """Write the popularity term of the version in ``run``, or none, if neither it nor the one before has one.

    Args:
        base: the run of the version before.
        run: the run of the version, whose embeddings are complete.
        takes_events: whether the dataset of the version has events that the one before lacks.

    Raises:
        InputError: a file of a run or of a dataset is missing or damaged.
    """
    _use(run, partial(_add_to, base=base, takes_events=takes_events))


def _add_to(version: TrainedModel, base: Path, *, takes_events: bool) -> None:
    embeddings = EmbeddingFiles(base / EMBEDDINGS_FOLDER)
    before = read_term(embeddings, embeddings.rows(version.spec.item.name))
    card, term = None if before is None else before.card, None
    with closing(version.open_lineage()) as lineage:
        if takes_events:
            card = _use(base, partial(_choose, lineage=lineage, kept=card))
        if card is not None:
            count_I = count_latest(lineage, version.job.data.time_range())[card.share]
            term = PopularityTerm.of(card.factor, card.share, resolved(version.job.model.temperature), count_I)
    known = version.popularity  # of an attempt that was killed before it wrote the record of the version
    if known is None or term is None or known.card != term.card or not np.array_equal(known.offset_I, term.offset_I):
        write_term(Folder(version.uri), term)


def _choose(model: TrainedModel, lineage: LineageReader, kept: PopularityCard | None) -> PopularityCard | None:
    """Return the term that ranks the new events of ``lineage`` best by ``model``, which was trained before them."""
    spec, metric = model.job.evaluate, model.job.evaluate.best_metric
    queries = spec.queries_of("valid", in_training=True)
    items = lineage.manifest.entities[model.spec.item.name].rows
    held_out = _known_to(model, load_held_out(lineage, "train", spec, rank=0, workers=1, queries=queries), items)
    if len(held_out.queries_Q) < _LEAST_QUERIES:
        return kept
    counts = count_latest(lineage, model.job.data.time_range(), new=False)
    counts = {share: count_I[: model.spec.item.rows] for share, count_I in counts.items()}
    trials = RankingTrials(model.vectors, model.spec, held_out, metric, np.asarray)
    term = choose_term(trials, counts, resolved(model.job.model.temperature), kept=kept, errors=_ERRORS)
    return None if term is None else term.card


def _known_to(model: TrainedModel, held_out: HeldOut, items: int) -> HeldOut:
    """Return what ``model`` can rank of ``held_out``, of a dataset of ``items``: its queries, items, and context."""
    item_I = np.arange(items) if held_out.item_I is None else held_out.item_I
    item_I = item_I[item_I < model.spec.item.rows]
    is_known_I = np.isin(np.arange(items), item_I)
    truth, excluded = (each.filter_items(is_known_I) for each in (held_out.truth, held_out.excluded))
    has_Q = (held_out.queries_Q < model.spec.query.rows) & (np.diff(truth.starts_Q1) > 0)
    rows = {table.name: table.rows for table in model.spec.context}
    context = {name: np.where(row_Q < rows.get(name, 0), row_Q, -1)[has_Q] for name, row_Q in held_out.context.items()}
    lists = truth.filter_queries(has_Q), excluded.filter_queries(has_Q)
    return HeldOut(held_out.queries_Q[has_Q], *lists, item_I=item_I, context=context)


def _use(run: Path, use: Callable[[TrainedModel], Result]) -> Result:
    return with_trained_model(ModelSource.of(source=str(run)), lambda _: None, use)
