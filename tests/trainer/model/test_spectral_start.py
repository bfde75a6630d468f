"""Spectral start: the leading singular vectors of the scaled matrix of interactions, one unit vector per row."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from builders import ITEM, QUERY, write_groups, write_vocabulary
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from error_table import documented
from fault_runs import ON_ONE_SERVER
from numpy.testing import assert_allclose, assert_array_equal
from run_results import checkpoint_arrays
from running_command import messages, succeeded
from threadpoolctl import threadpool_limits

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.io.folder import Folder
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.data.manifest import DatasetManifest, Split, read_manifest
from crossfade.trainer.data.parquet import file_entry
from crossfade.trainer.data.reader import InteractionReader
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.model.spec import make_model
from crossfade.trainer.model.spectral_start import SpectralVectors, spectral_start, spectral_vectors
from crossfade.trainer.runs.job_inputs import select_rows

QUERIES, ITEMS, DIM = 90, 60, 6


def planted_pairs() -> tuple[IntArray, IntArray]:
    """Return pairs of queries and items of ``DIM`` genres; the last query and item have none."""
    rng = np.random.default_rng(2)
    query_N, other_N = rng.integers(0, QUERIES - 1, 2000), rng.integers(0, ITEMS - 1, 2000)
    genre_N = np.where(rng.random(2000) < 0.9, query_N % DIM, other_N % DIM)
    return query_N, np.minimum(other_N // DIM * DIM + genre_N, ITEMS - 2)


def exact_vectors(query_N: IntArray, item_N: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return them by the singular value decomposition of the dense matrix, without the last query and item."""
    matrix_QI = np.zeros((QUERIES, ITEMS))
    matrix_QI[query_N, item_N] = 1.0
    count_Q, count_I = matrix_QI.sum(axis=1), matrix_QI.sum(axis=0)
    scaled_QI = matrix_QI / np.sqrt(np.outer(np.maximum(count_Q, 1), np.maximum(count_I, 1)))
    left_QS, value_S, right_SI = np.linalg.svd(scaled_QI, full_matrices=False)
    rows = (left_QS[:-1, :DIM] * np.sqrt(value_S[:DIM]), right_SI[:DIM].T[:-1] * np.sqrt(value_S[:DIM]))
    query_QD, item_ID = (row_RD / np.linalg.norm(row_RD, axis=1, keepdims=True) for row_RD in rows)
    return query_QD, item_ID


def test_scores_are_those_of_exact_singular_vectors_and_duplicates_count_once() -> None:
    query_N, item_N = planted_pairs()
    twice = np.append(query_N, query_N[:500]), np.append(item_N, item_N[:500])
    query_QD, item_ID = spectral_vectors(*twice, queries=QUERIES, items=ITEMS, dim=DIM, seed=1)
    assert query_QD.dtype == item_ID.dtype == np.float32
    exact_QD, exact_ID = exact_vectors(query_N, item_N)
    assert_allclose(query_QD[:-1] @ item_ID[:-1].T, exact_QD @ exact_ID.T, atol=1e-3)
    assert_allclose(np.linalg.norm(query_QD[:-1], axis=1), 1.0, rtol=1e-5)
    assert not query_QD[-1].any()
    assert not item_ID[-1].any()


def test_results_depend_on_neither_threads_nor_the_order_of_pairs() -> None:
    query_N, item_N = planted_pairs()
    options = {"queries": QUERIES, "items": ITEMS, "dim": DIM, "seed": 1}
    expected = spectral_vectors(query_N, item_N, **options)
    with threadpool_limits(2):
        found = spectral_vectors(query_N[::-1], item_N[::-1], **options)
    for found_RD, expected_RD in zip(found, expected, strict=True):
        assert_array_equal(found_RD, expected_RD)


def write_weighted(folder: Path) -> IntArray:
    """Write ``planted_pairs``, of which number n has the weight n mod 3 - 1 and the time n; return the weights."""
    query_N, item_N = planted_pairs()
    weight_N = np.arange(len(query_N)) % 3 - 1
    columns = {QUERY: query_N, ITEM: item_N, "weight": weight_N.astype(np.float32), "timestamp": range(len(query_N))}
    table, path = pa.table(columns), "train/part-00000.parquet"
    write_groups(folder / path, [table.slice(0, 700), table.slice(700, 0), table.slice(700)])
    entities = {name: write_vocabulary(folder, name, range(rows)) for name, rows in ((QUERY, QUERIES), (ITEM, ITEMS))}
    train = Split(files=[file_entry(Folder(folder), path)])
    manifest = DatasetManifest(query=QUERY, item=ITEM, entities=entities, splits={"train": train}, has_timestamp=True)
    manifest.write(Folder(folder))
    return weight_N


@pytest.mark.parametrize("since", [None, 0, 300, 700, 1500])
def test_only_interactions_of_positive_weight_within_the_time_range_count(tmp_path: Path, since: int | None) -> None:
    weight_N, (query_N, item_N) = write_weighted(tmp_path / "data"), planted_pairs()
    model = {"dim": DIM, "init": "spectral"}
    job = load_job(write_job(tmp_path / "job.yaml", tmp_path / "data", model=model))
    job = job.model_copy(update={"data": job.data.model_copy(update={"since": since})})
    folder = Folder(tmp_path / "data")
    manifest = read_manifest(folder)
    selection = select_rows(job, folder, manifest, NullReporter())
    with closing(InteractionReader(folder, manifest)) as reader:
        found = spectral_start(reader, selection.groups, make_model(job, manifest), 1, NullReporter())
    used_N = (weight_N > 0) & (np.arange(len(weight_N)) >= (since or 0))
    expected = spectral_vectors(query_N[used_N], item_N[used_N], queries=QUERIES, items=ITEMS, dim=DIM, seed=1)
    for name, expected_RD in zip((QUERY, ITEM), expected, strict=True):
        assert_array_equal(found[name].vectors_RD, expected_RD)


def test_blocks_have_the_wanted_rows_that_have_a_vector() -> None:
    vectors_RD = np.array([[1, 0], [0, 0], [0, 1], [1, 1]], np.float32)
    [(row_A, value_AD)] = SpectralVectors(vectors_RD).blocks(np.array([True, True, True, False]))
    assert_array_equal(row_A, [0, 2])
    assert_array_equal(value_AD, vectors_RD[[0, 2]])


@pytest.mark.cluster
def test_training_begins_with_them_on_a_server_too_and_rejects_more_columns_than_rows(tmp_path: Path) -> None:
    data = write_planted(tmp_path / "data")
    model = {"dim": 8, "init": "spectral"}
    job = write_job(tmp_path / "job.yaml", data, model=model, train={"epochs": 1, "max_steps": 1})
    assert '"spectral start"' in succeeded(crossfade_here("plan", job, "--json")).stdout
    for run, options in {"alone": (), "server": ON_ONE_SERVER}.items():
        succeeded(crossfade_here("train", job, "--run-dir", tmp_path / run, *options))
    for entity in ("customer", "track"):
        alone, server = (checkpoint_arrays(tmp_path / run, entity) for run in ("alone", "server"))
        for name, array in alone.items():
            assert_array_equal(server[name], array, err_msg=name)
    result = crossfade_here("train", job, "--set", "model.dim=4096", "--run-dir", tmp_path / "wide")
    [message] = messages(result.stderr)
    documented("more columns than a spectral start has", message.removeprefix("crossfade: error: "), result.returncode)
