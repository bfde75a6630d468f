"""Measure calls of a model that stays open: ``recommend`` of one customer and ``similar`` of one item, in a loop.

The task: ``run``, a run folder, and ``calls``, how many are made after the first.
"""

from __future__ import annotations

import json
import sys

from peers.columns import TRACK, USER

import crossfade
from suite.timing import median_call_ms


def main() -> None:
    """Print the milliseconds of each call."""
    task = json.loads(sys.argv[1])
    model, calls = crossfade.load(task["run"]), task["calls"]
    customers, items = model.ids(USER)[:calls], model.ids(TRACK)[:calls]
    figures = {
        "recommend_ms": median_call_ms(model.recommend, customers),
        "similar_ms": median_call_ms(model.similar, items),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
