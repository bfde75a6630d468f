"""Judges written embeddings: on a held-out split, and by the labels that neighbours share."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from kvstore.errors import InputError
from kvstore.io.folder import Folder
from kvstore.store import RowStore
from trainer.config.schema import JobConfig, SplitName
from trainer.data.reader import InteractionReader
from trainer.data.vocabulary import Vocabulary
from trainer.embeddings.files import EmbeddingFiles
from trainer.evaluation.label_precision import Found, label_precision
from trainer.evaluation.labels import LabelSource, read_labels
from trainer.evaluation.ranking import EvalMetrics, evaluate, load_held_out
from trainer.runs.inputs import load_inputs, open_inputs


def evaluate_embeddings(
    job: JobConfig, embeddings: Path | Folder, split: SplitName, store: RowStore | None = None
) -> EvalMetrics:
    """Judge written embeddings on ``split``, by all workers of ``store`` together or, without one, alone.

    Raises:
        InputError: the data or the embeddings cannot be read, or the data has no such split.
    """
    data, manifest, model = load_inputs(job) if store else open_inputs(job)
    if split not in manifest.splits:
        raise InputError(f"{data.uri}: has no split '{split}'; it has {', '.join(manifest.splits)}")
    rank, workers = (store.rank, store.workers) if store else (0, 1)
    with closing(InteractionReader(data, manifest, job.data.reader_threads)) as reader:
        held_out = load_held_out(reader, manifest, split, job.evaluate.exclude_splits, rank, workers)
    total = store.all_reduce if store else np.asarray
    counts_N = Vocabulary(data, manifest, manifest.item).counts()
    return evaluate(EmbeddingFiles(embeddings), model, held_out, job.evaluate, counts_N, total)


def evaluate_labels(job: JobConfig, embeddings: Path | Folder, wanted: LabelSource, least: int) -> Found:
    """How far neighbours among written embeddings share the labels ``wanted`` (``geometry.py``).

    Those rows take part that are liked ``least`` times in train.

    Raises:
        InputError: the data, the embeddings or the labels cannot be read, or too few rows have labels.
    """
    data, manifest, model = open_inputs(job)
    labels = read_labels(data, manifest, wanted)
    counts_R = Vocabulary(data, manifest, wanted.entity).counts()
    with closing(InteractionReader(data, manifest, job.data.reader_threads)) as reader:
        source = EmbeddingFiles(embeddings)
        return label_precision(
            source, model, reader, manifest, wanted.entity, labels, counts_R, least=least, seed=job.train.seed
        )
