"""Evaluate written embeddings: on a held-out split, and by the labels that neighbors share.

metrics = evaluate_embeddings(job, Path("runs/lastfm/embeddings"), "test")
precision = evaluate_labels(job, Path("runs/lastfm/embeddings"), LabelSource.parse("track=tag"), min_count=20)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.kvstore.store import RowStore
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.schema import JobConfig, SplitName
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.embeddings.files import EmbeddingFiles
from crossfade.trainer.evaluation.held_out import load_held_out
from crossfade.trainer.evaluation.ranking import EvalMetrics, RankingObserver, evaluate
from crossfade.trainer.model.towers import load_latest_histories
from crossfade.trainer.runs.job_inputs import load_inputs, open_inputs, open_lineage

if TYPE_CHECKING:
    from crossfade.trainer.evaluation.label_precision import LabelPrecision
    from crossfade.trainer.evaluation.labels import LabelSource


def with_depths(job: JobConfig, depths: Sequence[int]) -> JobConfig:
    """Return ``job`` with other depths of rankings: one of more items than there are means all of them.

    Raises:
        InputError: a depth is invalid, or the dataset cannot be read.
    """
    manifest = read_manifest(Folder(job.data.path))
    items = manifest.entities[manifest.item].rows
    k = list(dict.fromkeys(min(depth, items) for depth in depths))
    values = job.model_dump(mode="json")
    values["evaluate"].update(k=k, best_metric=f"ndcg@{k[0]}")
    return check_job(values, "k")


def evaluate_embeddings(
    job: JobConfig,
    embeddings: Path | Folder,
    split: SplitName,
    store: RowStore | None = None,
    observers: Sequence[RankingObserver] = (),
) -> EvalMetrics:
    """Evaluate embeddings on ``split``, together with all workers of ``store`` or, without a store, alone.

    ``observers`` get the rankings.

    Raises:
        InputError: the dataset or the embeddings cannot be read, or there is no such split.
    """
    data, manifest, model, job = load_inputs(job) if store else open_inputs(job)
    if split not in manifest.splits:
        raise InputError(f"{data.uri}: has no split '{split}'; it has {', '.join(manifest.splits)}")
    rank, workers = (store.rank, store.workers) if store else (0, 1)
    latest = None
    if model.history is not None and job.evaluate.by == "moment":
        latest = load_latest_histories(job, data, manifest, model.history)
    with closing(open_lineage(job, data, manifest)) as lineage:
        held_out = load_held_out(lineage, split, job.evaluate, rank, workers, latest)
        counts_N = lineage.counts(manifest.item)
    all_reduce = store.all_reduce if store else np.asarray
    return evaluate(EmbeddingFiles(embeddings), model, held_out, job.evaluate, counts_N, all_reduce, observers)


def evaluate_labels(job: JobConfig, embeddings: Path | Folder, labels: LabelSource, min_count: int) -> LabelPrecision:
    """Measure how often neighbors share a label (``label_precision.py``), among rows with ``min_count`` in train.

    Raises:
        InputError: the dataset, the embeddings or the labels cannot be read, or too few rows have labels.
    """
    # A training evaluates too, without labels: it need not import DuckDB, which reads them.
    from crossfade.trainer.evaluation.label_precision import label_precision
    from crossfade.trainer.evaluation.labels import read_labels

    data, manifest, model, _ = open_inputs(job)
    pairs = read_labels(data, manifest, labels)
    with closing(open_lineage(job, data, manifest)) as lineage:
        source, counts_R = EmbeddingFiles(embeddings), lineage.counts(labels.entity)
        return label_precision(
            source, model, lineage, labels.entity, pairs, counts_R, min_count=min_count, seed=job.train.seed
        )
