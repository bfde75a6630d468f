"""Training with negative feedback: skipped items end farther away from the query than unseen ones."""

from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from builders import make_interactions, write_data_set
from cluster_data import CUSTOMERS, GENRES, TRACKS, planted_splits, write_job
from command_here import crossfade_here
from running_command import records, succeeded

from crossfade.base.arrays import FloatArray
from crossfade.trainer.config.sections import LossKind

BoolArray = npt.NDArray[np.bool_]

SKIPS = 12
WEIGHTS: dict[LossKind, float] = dict.fromkeys(get_args(LossKind), -1.0) | {"softmax": -100.0}
"""Weight of a skip. Under softmax it pushes in proportion to the track's fraction of the pool, of 65 at first."""
GENRE_T = np.arange(TRACKS) % GENRES
EPOCHS = 15


def skipped_pairs() -> BoolArray:
    """Return the tracks that each customer skips, bool (customers, tracks): only some of the next genre."""
    random = np.random.default_rng(3)
    skipped_CT = np.zeros((CUSTOMERS, TRACKS), bool)
    for customer in range(CUSTOMERS):
        disliked_N = np.flatnonzero((customer + 1) % GENRES == GENRE_T)
        skipped_CT[customer, random.choice(disliked_N, SKIPS, replace=False)] = True
    return skipped_CT


def heard_pairs() -> BoolArray:
    """Return the tracks that each customer hears in train, bool (customers, tracks)."""
    heard_CT = np.zeros((CUSTOMERS, TRACKS), bool)
    heard_CT[planted_splits()["train"]] = True
    return heard_CT


HEARD, SKIPPED = heard_pairs(), skipped_pairs() & ~heard_pairs()


def write_listening(folder: Path, skip_weight: float) -> None:
    """Write the planted plays, of weight 1, and the skips, in random order."""
    queries_N, items_N = np.concatenate([np.argwhere(HEARD), np.argwhere(SKIPPED)]).T
    weight_N = np.repeat([1.0, skip_weight], [HEARD.sum(), SKIPPED.sum()])
    order_N = np.random.default_rng(5).permutation(len(weight_N))
    train = make_interactions(queries_N[order_N], items_N[order_N], weight_N[order_N])
    write_data_set(folder, {"train": [[train]]}, queries=CUSTOMERS, items=TRACKS)


def cosines(run: Path) -> FloatArray:
    tables = [
        pq.read_table(run / "embeddings" / entity).column("vector").to_pylist() for entity in ("customer", "track")
    ]
    customer_CD, track_TD = (np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True) for rows in tables)
    scores_CT: FloatArray = customer_CD @ track_TD.T
    return scores_CT


@pytest.mark.slow
@pytest.mark.parametrize("loss", get_args(LossKind))
def test_skipped_tracks_end_farther_away_than_unheard_tracks(tmp_path: Path, loss: LossKind) -> None:
    write_listening(tmp_path / "data", WEIGHTS[loss])
    train = {"epochs": EPOCHS, "patience": None}
    write_job(tmp_path / "job.yaml", tmp_path / "data", loss=loss, train=train)
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=tmp_path))
    scores_CT = cosines(tmp_path / "run")
    own_genre_CT = (np.arange(CUSTOMERS) % GENRES)[:, None] == GENRE_T
    disliked_CT = ((np.arange(CUSTOMERS) + 1) % GENRES)[:, None] == GENRE_T
    unheard_CT = ~(HEARD | SKIPPED | own_genre_CT)
    heard, skipped = scores_CT[HEARD].mean(), scores_CT[SKIPPED].mean()
    unheard = scores_CT[unheard_CT & ~disliked_CT].mean()
    like_skipped = scores_CT[unheard_CT & disliked_CT].mean()
    losses = [line["loss"] for line in records(tmp_path / "run") if line["event"] == "epoch"]
    assert heard > unheard + 0.2
    assert skipped < unheard - 0.1
    # So do tracks that the customer has not heard but that others of the same taste skipped.
    assert like_skipped < unheard - 0.1
    assert 0 < losses[-1] < losses[0]
