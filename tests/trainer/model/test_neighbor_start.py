"""Neighbor start: in a warm start, new rows begin in the direction of the known rows that they occur with."""

from pathlib import Path

import numpy as np
import pytest
from builders import write_vocabulary
from cluster_data import CUSTOMERS, TRACKS, planted_splits, write_data, write_job
from command_here import crossfade_here
from numpy.testing import assert_allclose, assert_array_equal
from run_results import checkpoint_arrays
from running_command import crossfade, succeeded

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.trainer.model import neighbor_start
from crossfade.trainer.model.neighbor_start import Neighbors

NEW_CUSTOMERS, NEW_TRACKS = 20, 15
"""The last rows, which the first run lacks."""
STILL = ("--set", "optimizer.learning_rate=1e-30", "--set", "train.seed=9")
"""Steps too small for float32, so that a checkpoint has what its run began with."""


def expected_start(new_N: IntArray, known_N: IntArray, is_new_R: BoolArray, known_RD: FloatArray) -> FloatArray:
    """Return the unit sums of the unit vectors of known neighbors, (R, D); 0 where a row has none."""
    start_RD = np.zeros((len(is_new_R), known_RD.shape[1]))
    for new, known in sorted(set(zip(new_N.tolist(), known_N.tolist(), strict=True))):
        if is_new_R[new]:
            start_RD[new] += known_RD[known] / np.linalg.norm(known_RD[known])
    has_start_R = start_RD.any(axis=1)
    start_RD[has_start_R] /= np.linalg.norm(start_RD[has_start_R], axis=1, keepdims=True)
    return start_RD


@pytest.mark.parametrize("part_pairs", [1, 7, 1 << 16])
def test_parts_have_each_new_row_once_with_its_first_neighbors(
    monkeypatch: pytest.MonkeyPatch, part_pairs: int
) -> None:
    monkeypatch.setattr(neighbor_start, "_PART_PAIRS", part_pairs)
    monkeypatch.setattr(neighbor_start, "_MAX_NEIGHBORS", 4)
    rng = np.random.default_rng(1)
    new_N, known_N = rng.integers(5, 20, 150), rng.integers(0, 30, 150)
    known_RD = rng.standard_normal((30, 3)).astype(np.float32)
    kept = {new: sorted(set(known_N[new_N == new].tolist()))[:4] for new in set(new_N.tolist())}
    pairs = np.array([(new, known) for new, several in kept.items() for known in several])
    expected_RD = expected_start(pairs[:, 0], pairs[:, 1], np.arange(20) >= 5, known_RD)

    found = dict[int, FloatArray]()
    for part in Neighbors.of([(new_N[:70], known_N[:70]), (new_N[70:], known_N[70:])]).parts():
        rows_A, start_AD = part.start(known_RD[part.known_B])
        assert not found.keys() & set(rows_A.tolist())
        found |= dict(zip(rows_A.tolist(), start_AD, strict=True))
    assert sorted(found) == sorted(kept)
    for row, start_D in found.items():
        assert_allclose(start_D, expected_RD[row], atol=1e-6)


def write_rows(folder: Path, customers: int, tracks: int) -> None:
    """Write the planted events of the first customers and tracks, and a job."""
    entities = {
        "customer": write_vocabulary(folder / "data", "customer", [f"c{row:03d}" for row in range(customers)]),
        "track": write_vocabulary(folder / "data", "track", [5000 + row for row in range(tracks)]),
    }
    splits = {}
    for name, (customer_N, track_N) in planted_splits().items():
        kept_N = (customer_N < customers) & (track_N < tracks)
        splits[name] = (customer_N[kept_N], track_N[kept_N]), [[np.count_nonzero(kept_N)]]
    write_data(folder / "data", entities, splits)
    write_job(folder / "job.yaml", folder / "data")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train without the new rows, and then with them, in one process."""
    folder = tmp_path_factory.mktemp("neighbors")
    write_rows(folder / "before", CUSTOMERS - NEW_CUSTOMERS, TRACKS - NEW_TRACKS)
    write_rows(folder / "after", CUSTOMERS, TRACKS)
    succeeded(crossfade_here("train", "before/job.yaml", "--run-dir", "old", cwd=folder))
    succeeded(crossfade_here("train", "after/job.yaml", *warm("new"), cwd=folder))
    return folder


def warm(run: str) -> tuple[str, ...]:
    return "--run-dir", run, *STILL, "--set", "checkpoint.warm_start_from=old/checkpoints"


@pytest.mark.slow
def test_new_rows_of_a_warm_start_begin_near_their_neighbors(workspace: Path) -> None:
    customer_N, track_N = planted_splits()["train"]
    is_new = {"customer": np.arange(CUSTOMERS) >= CUSTOMERS - NEW_CUSTOMERS}
    is_new["track"] = np.arange(TRACKS) >= TRACKS - NEW_TRACKS
    rows = {"customer": customer_N, "track": track_N}
    for entity, other in (("customer", "track"), ("track", "customer")):
        old_RD = checkpoint_arrays(workspace / "old", other)["weights"]
        is_pair_N = is_new[entity][rows[entity]] & ~is_new[other][rows[other]]
        expected_RD = expected_start(rows[entity][is_pair_N], rows[other][is_pair_N], is_new[entity], old_RD)
        new_RD = checkpoint_arrays(workspace / "new", entity)["weights"]
        started_R = expected_RD.any(axis=1)
        assert started_R[is_new[entity]].mean() > 0.9
        assert_allclose(new_RD[started_R], expected_RD[started_R], atol=1e-6)
        known_RD = checkpoint_arrays(workspace / "old", entity)["weights"]
        assert_array_equal(new_RD[: len(known_RD)], known_RD)


@pytest.mark.slow
def test_new_rows_of_an_earlier_increment_begin_near_what_is_replayed(tmp_path: Path) -> None:
    columns = ("--query", "customer", "--item", "track", "--timestamp", "at", "--hold-out-valid", "none")
    for day, tracks in enumerate(("ab", "bcd", "ab")):
        lines = [f"u{user},{track},{day * 1000 + user}" for user in range(6) for track in tracks]
        (tmp_path / f"{day}.csv").write_text("\n".join(["customer,track,at", *lines]))
        earlier = ("--base", f"data{day - 1}", "--replay", "9") if day else ()
        words = ("prepare", "--events", f"{day}.csv", *columns, *earlier, "--out", f"data{day}")
        succeeded(crossfade_here(*words, cwd=tmp_path))
        write_job(tmp_path / f"job{day}.yaml", f"data{day}")
    succeeded(crossfade_here("train", "job0.yaml", "--run-dir", "old", cwd=tmp_path))
    succeeded(crossfade_here("train", "job2.yaml", *warm("new"), cwd=tmp_path))
    # The tracks c and d are new since the checkpoint, but not in the last dataset.
    weights = checkpoint_arrays(tmp_path / "new", "track")["weights"]
    assert_allclose(np.linalg.norm(weights[2:], axis=1), [1.0, 1.0], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("roles", [("--workers", 2), ("--servers", 1, "--workers", 2)], ids=["workers", "servers"])
def test_new_rows_begin_with_the_same_bits_in_several_processes(workspace: Path, roles: tuple[object, ...]) -> None:
    run = f"on-{len(roles)}"
    succeeded(crossfade("train", "after/job.yaml", *warm(run), *roles, cwd=workspace))
    for entity in ("customer", "track"):
        here_RD, there_RD = (checkpoint_arrays(workspace / each, entity)["weights"] for each in ("new", run))
        assert_array_equal(there_RD, here_RD)
