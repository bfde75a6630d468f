"""Spectral start: rows of a new run begin with the leading singular vectors of its interactions."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from builders import make_interactions, write_data_set, write_vocabulary
from cluster_data import CUSTOMERS, TRACKS, planted_splits, write_data, write_job
from command_here import crossfade_here
from numpy.testing import assert_allclose, assert_array_equal
from run_results import checkpoint_arrays
from running_command import crossfade, succeeded
from scipy.sparse import csr_matrix

from crossfade.base.arrays import FloatArray
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.reader import InteractionReader, row_groups
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.model import spectral_start
from crossfade.trainer.model.spectral_start import SpectralStart, interaction_matrix

NEVER_PLAYED = 3
"""Tracks at the end that nobody has played."""
SPECTRAL = ("--set", "model.initialization=spectral", "--set", "optimizer.learning_rate=1e-30")
"""With steps too small for float32, so that a checkpoint has what its run began with."""


def expected_items(pair_QI: FloatArray, dim: int) -> FloatArray:
    """Return the items' right singular vectors times the fourth roots of the singular values, at length 1, (I, D)."""
    roots_QI = np.sqrt(np.outer(pair_QI.sum(axis=1).clip(1), pair_QI.sum(axis=0).clip(1)))
    _, value_S, right_SI = np.linalg.svd(pair_QI / roots_QI)
    item_ID: FloatArray = right_SI[:dim].T * value_S[:dim] ** 0.25
    return item_ID / np.linalg.norm(item_ID, axis=1, keepdims=True).clip(1e-9)


@pytest.mark.parametrize("part_rows", [16, 1000])
def test_directions_are_those_of_the_exact_singular_vectors(part_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral_start, "_PART_ROWS", part_rows)
    rng = np.random.default_rng(3)
    taste_Q, genre_I = rng.integers(0, 4, 80), rng.integers(0, 4, 50)
    pair_QI = (rng.random((80, 50)) < np.where(taste_Q[:, None] == genre_I, 0.5, 0.05)).astype(np.float32)
    pair_QI[7], pair_QI[:, 9] = 0.0, 0.0
    start = SpectralStart.of(csr_matrix(pair_QI), dim=4, seed=1, progress=NullReporter())
    (query_A, query_AD), (item_A, item_AD) = start.queries(0, 80), start.items(0, 50)

    assert_array_equal(query_A, np.delete(np.arange(80), 7))
    assert_array_equal(item_A, np.delete(np.arange(50), 9))
    expected_ID = expected_items(pair_QI, dim=4)
    expected_QD = pair_QI @ expected_ID
    cosine_QI = expected_QD[query_A] @ expected_ID[item_A].T
    cosine_QI /= np.linalg.norm(expected_QD[query_A], axis=1, keepdims=True)
    assert_allclose(query_AD @ item_AD.T, cosine_QI, atol=1e-3)  # singular vectors have either sign


def test_a_matrix_with_fewer_rows_than_columns_of_embeddings_leaves_the_others_zero() -> None:
    start = SpectralStart.of(csr_matrix(np.eye(3, 2, dtype=np.float32)), dim=8, seed=1, progress=NullReporter())
    _, item_AD = start.items(0, 2)
    assert item_AD.shape == (2, 8)
    assert_allclose(np.linalg.norm(item_AD, axis=1), 1.0, rtol=1e-5)
    assert not item_AD[:, 2:].any()
    assert_array_equal(start.queries(0, 3)[0], [0, 1])
    assert_array_equal(start.queries(1, 3)[0], [1])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write data and a job, and train it in one process."""
    folder = tmp_path_factory.mktemp("spectral")
    entities = {
        "customer": write_vocabulary(folder / "data", "customer", [f"c{row:03d}" for row in range(CUSTOMERS)]),
        "track": write_vocabulary(folder / "data", "track", [5000 + row for row in range(TRACKS + NEVER_PLAYED)]),
    }
    splits = {name: (rows, [[len(rows[0])]]) for name, rows in planted_splits().items()}
    write_data(folder / "data", entities, splits)
    write_job(folder / "job.yaml", folder / "data")
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "here", *SPECTRAL, cwd=folder))
    return folder


@pytest.mark.slow
def test_a_run_begins_with_the_spectral_start_and_unseen_rows_at_random(workspace: Path) -> None:
    customer_N, track_N = planted_splits()["train"]
    customer_RD, track_RD = (checkpoint_arrays(workspace / "here", name)["weights"] for name in ("customer", "track"))
    pair_QI = np.zeros((CUSTOMERS, TRACKS), np.float32)
    pair_QI[customer_N, track_N] = 1.0
    expected_ID = expected_items(pair_QI, track_RD.shape[1])
    seen_R = pair_QI.any(axis=0)
    assert_allclose(np.linalg.norm(track_RD[:TRACKS][seen_R], axis=1), 1.0, rtol=1e-5)
    cosine_R = np.sort((track_RD[:TRACKS] @ track_RD[:TRACKS].T)[np.ix_(seen_R, seen_R)].ravel())
    assert_allclose(cosine_R, np.sort((expected_ID @ expected_ID.T)[np.ix_(seen_R, seen_R)].ravel()), atol=0.1)
    assert track_RD[TRACKS:].std() == pytest.approx(0.1, rel=0.5)
    assert_allclose(np.linalg.norm(customer_RD[pair_QI.any(axis=1)], axis=1), 1.0, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.cluster
def test_workers_begin_with_the_same_bits_as_one_process(workspace: Path) -> None:
    succeeded(crossfade("train", "job.yaml", "--run-dir", "there", *SPECTRAL, "--workers", 2, cwd=workspace))
    for entity in ("customer", "track"):
        here_RD, there_RD = (checkpoint_arrays(workspace / run, entity)["weights"] for run in ("here", "there"))
        assert_array_equal(there_RD, here_RD)


def test_other_scores_are_rejected(workspace: Path) -> None:
    refused = crossfade_here(
        "train", "job.yaml", "--run-dir", "no", *SPECTRAL, "--set", "model.score=dot", cwd=workspace
    )
    assert refused.returncode == 2
    assert "initialization is spectral, which is for IDs that are compared by their cosine" in refused.stderr


def test_pairs_count_once_and_only_with_a_positive_weight(tmp_path: Path) -> None:
    read = make_interactions([0, 0, 0, 1, 2, 2], [1, 1, 3, 0, 2, 3], [1, 2, 0.5, 1, -1, 0])
    manifest = write_data_set(tmp_path, {"train": [[read]]}, queries=3, items=4)
    with closing(InteractionReader(Folder(tmp_path), manifest)) as reader:
        matrix = interaction_matrix(reader, row_groups(manifest.splits["train"]), 3, 4, NullReporter())
    assert_array_equal(matrix.toarray(), [[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
