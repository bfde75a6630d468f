"""implicit: milliseconds of ``recommend`` of one customer and ``similar_items`` of one track, in a loop.

    python -m peers.implicit_calls '{"plays": "build/bench/work/…", "factors": 64, "calls": 200, "threads": 2}'

The model has one iteration: what a call takes does not depend on it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from suite.timing import median_call_ms

from peers.implicit_fit import fit
from peers.plays import TRAIN, K, read_plays


def main() -> None:
    """Fit, and print the milliseconds of each call."""
    task = json.loads(sys.argv[1])
    model, matrix, users, tracks = fit(read_plays(Path(task["plays"]), TRAIN), {**task, "iterations": 1})
    calls = task["calls"]
    figures = {
        "recommend_ms": median_call_ms(
            lambda row: model.recommend(row, matrix[row], N=K), [number % len(users) for number in range(calls)]
        ),
        "similar_ms": median_call_ms(
            lambda row: model.similar_items(row, N=K), [number % len(tracks) for number in range(calls)]
        ),
    }
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
