"""Measure ``crossfade.fit``: from plays in a pandas frame to a model, and its ndcg@10 on held-out plays.

The task: ``plays``, a folder of ``peers/plays.py``. A fit of a few plays comes first, which is not counted: it imports
what is needed and compiles, or loads, the kernels.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from peers.columns import HELD_OUT, TRACK, TRAIN, USER
from peers.plays import K, ndcg, read_plays

import crossfade
from suite.timing import Clock

WARM_UP_PLAYS = 10_000


def main() -> None:
    """Print the seconds and the quality."""
    task = json.loads(sys.argv[1])
    folder = Path(task["plays"])
    frame = read_plays(folder, TRAIN)
    sides = {"query": USER, "item": TRACK}
    crossfade.fit(frame.head(WARM_UP_PLAYS), **sides, settings={"train.epochs": 2}, progress=False)
    clock = Clock()
    model = crossfade.fit(frame, **sides, progress=False)
    taken = clock.taken()
    print(json.dumps({**taken, "ndcg@10": ndcg(model.recommend("all", k=K), read_plays(folder, HELD_OUT))}))


if __name__ == "__main__":
    main()
