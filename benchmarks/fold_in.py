"""Compare folded-in customers with trained ones, on customers that a training has not seen.

    .venv/bin/python benchmarks/fold_in.py [jobs/lastfm.yaml] [--seeds 3]

The job is trained on its dataset, and on a copy whose train split lacks every fifth customer. Those customers are then
folded into the second model by what they have in train, and evaluated on test, as they are in the first model. Means
over seeds of the training, with standard deviations. Items of train and valid are left out of rankings.

Shapes: Q queries, K ranks, I items.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.arrays import FloatArray
from crossfade.base.io.folder import Folder
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.config.schema import EvaluateConfig
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import DataFile, Split, read_manifest
from crossfade.trainer.data.parquet import file_entry, write_options
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.evaluation.held_out import HeldOut, load_held_out
from crossfade.trainer.evaluation.ranking import evaluate
from crossfade.trainer.recommend.fold_in import FoldIn
from crossfade.trainer.recommend.history import load_histories
from crossfade.trainer.recommend.trained_model import TrainedModel, with_trained_model
from crossfade.trainer.runs.options import ModelSource

EVERY = 5
METRICS = ("recall@10", "ndcg@10", "recall@20", "ndcg@20")


def main() -> None:
    """Train, fold in, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", nargs="?", type=Path, default=Path("jobs/lastfm.yaml"), help="train this job")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="train with N seeds (default: 3)")
    arguments = parser.parse_args()
    data = Path(load_job(arguments.job).data.path)
    rows: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="fold-in-") as folder:
        reduced = Path(folder) / "reduced"
        remove_customers(data, reduced)
        for seed in range(1, arguments.seeds + 1):
            whole = train(arguments.job, data, Path(folder) / f"whole-{seed}", seed)
            part = train(arguments.job, reduced, Path(folder) / f"part-{seed}", seed)
            collect(rows, with_trained_model(ModelSource(source=str(whole)), print, trained))
            collect(rows, with_trained_model(ModelSource(source=str(part)), print, partial(folded, data)))
    print(f"{'':<28}" + "".join(f"{name:>18}" for name in METRICS))
    for name, values in rows.items():
        means, deviations = np.mean(values, axis=0), np.std(values, axis=0)
        cells = "".join(f"{mean:>10.4f} ± {deviation:.4f}" for mean, deviation in zip(means, deviations, strict=True))
        print(f"{name:<28}{cells}")


def remove_customers(data: Path, reduced: Path) -> None:
    """Copy the dataset in ``data`` without the train interactions of every fifth customer; rows stay the same."""
    shutil.copytree(data, reduced)
    manifest = read_manifest(Folder(reduced))
    query, entity = manifest.query, manifest.entities[manifest.query]

    def without(group: pa.Table) -> pa.Table:
        return group.filter(pa.array(group.column(query).to_numpy() % EVERY != 0))

    def uncounted(group: pa.Table) -> pa.Table:
        is_kept_N = group.column("row").to_numpy() % EVERY != 0
        counts_N = pa.array(group.column("count").to_numpy() * is_kept_N)
        return group.set_column(group.column_names.index("count"), "count", counts_N)

    train = Split(files=[rewrite(data, reduced, file, without) for file in manifest.splits["train"].files])
    vocabulary = entity.model_copy(update={"files": [rewrite(data, reduced, file, uncounted) for file in entity.files]})
    update = {"splits": {**manifest.splits, "train": train}, "entities": {**manifest.entities, query: vocabulary}}
    manifest.model_copy(update=update).write(Folder(reduced))


def rewrite(data: Path, reduced: Path, entry: DataFile, change: Callable[[pa.Table], pa.Table]) -> DataFile:
    """Write a file of ``data`` to ``reduced`` with ``change`` applied to each row group."""
    source = pq.ParquetFile(data / entry.path)
    schema = source.schema_arrow
    with pq.ParquetWriter(reduced / entry.path, schema, **write_options(schema)) as writer:
        for index in range(source.num_row_groups):
            group = change(source.read_row_group(index)).cast(schema)
            writer.write_table(group, row_group_size=max(1, group.num_rows))
    return file_entry(Folder(reduced), entry.path)


def train(job: Path, data: Path, run: Path, seed: int) -> str:
    """Train ``job`` on ``data`` and return the run folder."""
    settings = ("--set", f"data.path={data}", "--set", f"train.seed={seed}", "--run-dir", str(run))
    subprocess.run([sys.executable, "-m", "crossfade", "train", str(job), *settings], check=True, capture_output=True)
    return str(run)


def collect(rows: dict[str, list[list[float]]], found: dict[str, list[float]]) -> None:
    """Add the metrics of one seed."""
    for name, values in found.items():
        rows.setdefault(name, []).append(values)


class WithQueries:
    """The vectors of a model, with other vectors of some queries."""

    def __init__(self, model: TrainedModel, held_out: HeldOut, query_QD: FloatArray) -> None:
        self._model = model
        self._rows_Q = held_out.queries_Q
        self._query_QD = query_QD

    def vectors(self, entity: str, rows_N: np.ndarray) -> FloatArray:
        """Return the vectors of ``rows_N``."""
        if entity == self._model.spec.query.name:
            return self._query_QD[np.searchsorted(self._rows_Q, rows_N)]
        return self._model.vectors.vectors(entity, rows_N)


def held_out_of(lineage: LineageReader) -> HeldOut:
    """Load what test holds of every fifth customer."""
    held_out = load_held_out(lineage, "test", EvaluateConfig(), 0, 1)
    chosen_Q = held_out.queries_Q % EVERY == 0
    lists = held_out.truth.filter_queries(chosen_Q), held_out.excluded.filter_queries(chosen_Q)
    return HeldOut(held_out.queries_Q[chosen_Q], *lists)


def measure(model: TrainedModel, held_out: HeldOut, query_QD: FloatArray) -> list[float]:
    """Return the metrics of the given vectors of the held-out customers."""
    counts_I = model.vocabulary(model.spec.item.name).counts()
    spec = model.job.evaluate.model_copy(update={"k": [10, 20]})
    source = WithQueries(model, held_out, query_QD)
    metrics = evaluate(source, model.spec, held_out, spec, counts_I, np.asarray)
    return [metrics[name] for name in METRICS]


def trained(model: TrainedModel) -> dict[str, list[float]]:
    """Return the metrics of the customers in a model that was trained with them."""
    with closing(LineageReader(model.data, model.manifest)) as lineage:
        held_out = held_out_of(lineage)
    query_QD = model.vectors.vectors(model.spec.query.name, held_out.queries_Q)
    return {"trained with them": measure(model, held_out, query_QD)}


def folded(data: Path, model: TrainedModel) -> dict[str, list[float]]:
    """Return the metrics of the customers, whose histories are in ``data``, in a model trained without them."""
    manifest = read_manifest(Folder(data))
    with closing(LineageReader(Folder(data), manifest)) as lineage:
        held_out = held_out_of(lineage)
        histories = load_histories(lineage, ["train"], held_out.queries_Q, NullReporter())
    fold_in = FoldIn(model)
    start = time.perf_counter()
    query_QD = fold_in.vectors(histories)
    milliseconds = 1e3 * (time.perf_counter() - start) / len(query_QD)
    print(f"{len(query_QD)} customers folded in, {milliseconds:.1f} ms each")
    items, item_ID = histories.lists, model.vectors.vectors(model.spec.item.name, np.arange(model.spec.item.rows))
    means_QD = np.array([item_ID[items.items_N[slice(*bounds)]].mean(axis=0) for bounds in bounds_of(items.starts_Q1)])
    return {
        "folded in": measure(model, held_out, query_QD),
        "mean of their items": measure(model, held_out, means_QD.astype(np.float32)),
    }


def bounds_of(starts_Q1: np.ndarray) -> list[tuple[int, int]]:
    """Return where the items of each query start and end."""
    return list(zip(starts_Q1[:-1].tolist(), starts_Q1[1:].tolist(), strict=True))


if __name__ == "__main__":
    main()
