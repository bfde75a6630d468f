"""What the scripts of peers share: the task, batches of IDs, and the timing of steps.

    task = Task.from_command_line()
    task.time_steps(step)       # step(customer_B, positive_B, negative_B); prints the result as one line of JSON

It runs in the environment of each peer, so it imports nothing but numpy.

Shapes: B triples of a step, N triples in all.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Step = Callable[[Ids, Ids, Ids], object]


@dataclass(frozen=True)
class Task:
    """What to measure, as the suite describes it.

    Attributes:
        ids: the folder of customer.npy, positive.npy, and negative.npy, int64 (N,).
        customers: rows of the table of customers.
        tracks: rows of the table of tracks.
        dim: columns of both.
        batch: triples of a step of this process.
        steps: steps that are timed; for peers that take whole epochs, the epochs.
        warm_up: steps before them.
        threads: threads to compute with.
        options: what only one peer has.
    """

    ids: str
    customers: int
    tracks: int
    dim: int
    batch: int
    steps: int
    warm_up: int
    threads: int
    options: dict[str, Any]

    @staticmethod
    def from_command_line() -> Task:
        """Parse the only argument, a JSON object."""
        return Task(**json.loads(sys.argv[1]))

    def triples(self) -> tuple[Ids, Ids, Ids]:
        """Load customers, positives, and negatives: int64 (N,) each."""
        customer_N, positive_N, negative_N = (
            np.load(Path(self.ids) / f"{name}.npy") for name in ("customer", "positive", "negative")
        )
        return customer_N, positive_N, negative_N

    def batches(self, part: int = 0, parts: int = 1) -> Iterator[tuple[Ids, Ids, Ids]]:
        """Yield the batches of process ``part`` of ``parts``, forever."""
        columns = self.triples()
        starts = range(0, len(columns[0]) - self.batch + 1, self.batch)[part::parts]
        for start in itertools.cycle(starts):
            customer_B, positive_B, negative_B = (column[start : start + self.batch] for column in columns)
            yield customer_B, positive_B, negative_B

    def time_steps(self, step: Step, **facts: Any) -> None:
        """Run the warm-up and the steps, and print the rate of the latter with ``facts``."""
        batches = self.batches()
        for batch in itertools.islice(batches, self.warm_up):
            step(*batch)
        begin = time.perf_counter()
        for batch in itertools.islice(batches, self.steps):
            step(*batch)
        seconds = time.perf_counter() - begin
        print_rate(self.batch * self.steps, seconds, step_ms=1e3 * seconds / self.steps, **facts)


def print_rate(triples: int, seconds: float, **facts: Any) -> None:
    """Print the result as one line of JSON: triples per second, and ``facts``."""
    print(json.dumps({"triples_per_second": triples / seconds, **facts}), flush=True)
