"""The sequence command: paths between planted genres, which are optimal, smooth, and filtered; and rejected input."""

import json
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_data import GENRES, TRACKS
from command_here import crossfade_here, rejected_here
from exporting import vectors
from running_command import succeeded

from crossfade.trainer.recommend.sequence import Arc, least_sum_path
from crossfade.trainer.recommend.top_k import unit_rows

pytestmark = pytest.mark.slow

A, B = 5000, 5001
"""Tracks of the first and the second genre."""


def sequence(source: object, *arguments: object, cwd: Path) -> dict[str, Any]:
    result = crossfade_here("sequence", source, *arguments, "--json", cwd=cwd)
    found: dict[str, Any] = json.loads(succeeded(result).stdout)
    return found


def tracks(found: dict[str, Any]) -> list[int]:
    return [row["track"] for row in found["path"]]


def test_path_leads_from_one_genre_to_the_other_without_repeats(workspace: Path) -> None:
    found = sequence("run", A, "genre 1 song 1", "--length", 12, cwd=workspace)
    path = tracks(found)
    assert (path[0], path[-1], len(path), len(set(path))) == (A, B, 12, 12)
    assert 5000 + TRACKS not in path
    unit_RD = unit_rows(vectors(workspace / "run" / "embeddings", "track"))
    cosines = [float(unit_RD[one - 5000] @ unit_RD[other - 5000]) for one, other in pairwise(path)]
    assert found["path"][0]["cosine"] is None
    assert [row["cosine"] for row in found["path"][1:]] == pytest.approx(cosines, abs=1e-6)
    assert found["mean_cosine"] == pytest.approx(np.mean(cosines))
    assert found["min_cosine"] == pytest.approx(min(cosines))
    progress = [row["progress"] for row in found["path"]]
    assert progress == sorted(progress)
    assert (progress[0], progress[-1]) == pytest.approx((0, 1))
    assert found["path"][1]["name"] == f"Genre {(path[1] - 5000) % GENRES} Song {path[1] - 5000}"
    # The genres at both ends are far apart: a path along the arc begins with one and ends with the other.
    assert found["min_cosine"] > float(unit_RD[A - 5000] @ unit_RD[B - 5000]) + 0.2
    assert (path[1] - 5000) % GENRES == 0
    assert (path[-2] - 5000) % GENRES == 1


def test_rows_between_the_ends_meet_the_filters(workspace: Path) -> None:
    path = tracks(sequence("run", A, B, "--where", "id >= 5100", cwd=workspace))
    assert (path[0], path[-1]) == (A, B)
    assert all(track >= 5100 for track in path[1:-1])


def test_progress_is_the_angle_in_the_plane_of_the_ends() -> None:
    arc = Arc(np.eye(3)[:2], np.pi / 2)
    angle_N = np.array([0, 0.25, 0.5, 1, -0.5]) * np.pi / 2
    vectors_ND = np.stack([np.cos(angle_N), np.sin(angle_N), np.full(5, 7.0)], axis=1)
    np.testing.assert_allclose(arc.progress(vectors_ND), [0, 0.25, 0.5, 1, -0.5], atol=1e-12)
    np.testing.assert_allclose(arc.progress(arc.points(5)), [0, 0.25, 0.5, 0.75, 1], atol=1e-6)


def test_invalid_input_is_rejected(workspace: Path) -> None:
    rejected_here("2: expected an integer from 3 to 100", "sequence", "run", A, B, "--length", 2, cwd=workspace)
    rejected_here("are parallel, so that no row lies between them", "sequence", "run", A, A, cwd=workspace)
    rejected_here(
        "track '5200' has no interaction of positive weight in train, so",
        "sequence",
        "run",
        A,
        5000 + TRACKS,
        cwd=workspace,
    )
    few = ("--where", "id BETWEEN 5010 AND 5014")
    rejected_here("of track near the path from", "sequence", "run", A, B, *few, cwd=workspace)


@pytest.mark.parametrize("length", [2, 3, 5, 8])
def test_path_has_the_least_sum(length: int) -> None:
    unit_ID = unit_rows(np.random.default_rng(length).normal(size=(8, 3)))

    def cost(path: tuple[int, ...]) -> float:
        return sum(float(np.arccos(np.clip(unit_ID[a] @ unit_ID[b], -1, 1)) ** 4) for a, b in pairwise(path))

    paths = [(0, *between, 7) for between in combinations(range(1, 7), length - 2)]
    found_K = least_sum_path(unit_ID, length)
    assert found_K is not None
    assert tuple(found_K.tolist()) == min(paths, key=cost)
    assert least_sum_path(unit_ID, 9) is None
