"""implicit: from plays in a pandas frame to a model of alternating least squares, and its ndcg@10 on held-out plays.

    python -m peers.implicit_fit '{"plays": "build/bench/work/…", "factors": 64, "iterations": 15, "threads": 2}'

The time begins with the frame, and includes the numbering of IDs and the matrix. Its alpha is 1, and its other settings
are its defaults. BLAS has one thread, as implicit asks for: its own threads do the work.

Shapes: U customers, K places of a list, N plays.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix
from suite.timing import Clock
from threadpoolctl import threadpool_limits

from peers.plays import HELD_OUT, RANK, TRACK, TRAIN, USER, K, ndcg, read_plays


def fit(frame: pd.DataFrame, task: dict[str, Any]) -> tuple[AlternatingLeastSquares, csr_matrix, pd.Index, pd.Index]:
    """Return a model, its matrix, and the IDs of the matrix's rows and columns."""
    user_N, users = pd.factorize(frame[USER])
    track_N, tracks = pd.factorize(frame[TRACK])
    matrix = csr_matrix((np.ones(len(frame), np.float32), (user_N, track_N)), shape=(len(users), len(tracks)))
    model = AlternatingLeastSquares(
        factors=task["factors"], iterations=task["iterations"], num_threads=task["threads"], random_state=1
    )
    threadpool_limits(1, "blas")  # from here on
    model.fit(matrix, show_progress=False)
    return model, matrix, users, tracks


def recommendations(
    model: AlternatingLeastSquares, matrix: csr_matrix, users: pd.Index, tracks: pd.Index
) -> pd.DataFrame:
    """Return the best tracks of all customers, without those of the matrix, as ``ndcg`` takes them."""
    track_UK, _ = model.recommend(np.arange(len(users)), matrix, N=K, filter_already_liked_items=True)
    listed = {
        USER: users.repeat(K),
        TRACK: tracks.take(track_UK.ravel()),
        RANK: np.tile(np.arange(1, K + 1), len(users)),
    }
    return pd.DataFrame(listed)


def main() -> None:
    """Fit, and print the seconds and the quality."""
    task = json.loads(sys.argv[1])
    folder = Path(task["plays"])
    frame = read_plays(folder, TRAIN)
    clock = Clock()
    fitted = fit(frame, task)
    taken = clock.taken()
    print(json.dumps({**taken, "ndcg@10": ndcg(recommendations(*fitted), read_plays(folder, HELD_OUT))}), flush=True)


if __name__ == "__main__":
    main()
