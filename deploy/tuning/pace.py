"""Estimate how long a study still takes, from its trainings so far: each starts, and then has its epochs.

pace = Pace()
pace.add(elapsed=1.4, trained=0.8, epochs=4)
pace.left({4: 28, 13: 9, 40: 4})                # seconds of 28 trainings of 4 epochs, 9 of 13, and 4 of 40
"""

from __future__ import annotations

from collections.abc import Mapping


class Pace:
    """The mean start, and the mean epoch, of trainings that have ended."""

    def __init__(self) -> None:
        """Begin without a training."""
        self._trainings, self._epochs = 0, 0
        self._start_seconds, self._epoch_seconds = 0.0, 0.0

    def add(self, elapsed: float, trained: float, epochs: int) -> None:
        """Count a training that was waited for ``elapsed`` seconds: of these, its ``epochs`` took ``trained``."""
        self._trainings += 1
        self._epochs += epochs
        self._start_seconds += max(0.0, elapsed - trained)
        self._epoch_seconds += trained

    def left(self, trainings: Mapping[int, int]) -> float | None:
        """Return the seconds that ``trainings`` take, their number by epochs; None before the first has ended."""
        if not self._trainings:
            return None
        start, epoch = self._start_seconds / self._trainings, self._epoch_seconds / max(1, self._epochs)
        return sum(count * (start + epochs * epoch) for epochs, count in trainings.items())
