"""Evaluate written embeddings on a held-out split.

metrics = evaluate_embeddings(job, Path("runs/lastfm/embeddings"), "test")
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.kvstore.store import RowStore
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.splits import SplitName
from crossfade.trainer.embeddings.files import EmbeddingFiles
from crossfade.trainer.evaluation.held_out import load_held_out
from crossfade.trainer.evaluation.ranking import EvalMetrics, RankingObserver, evaluate
from crossfade.trainer.model.towers import load_latest_histories
from crossfade.trainer.runs.job_inputs import load_inputs, open_inputs, open_lineage


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
