"""Columns of numbers that grow line by line, as a run's log is read.

    steps = ColumnBuffer("step", "loss")
    steps.add(1, 0.69)
    steps["loss"]                 # a copy, float64

Shapes: N lines, C columns.
"""

from __future__ import annotations

import math
from array import array

import numpy as np

from crossfade.base.arrays import BoolArray, FloatArray, IntArray


class ColumnBuffer:
    """Columns of equal length, at eight bytes a number. One of them is ``step`` where attempts are used.

    A run that resumes from a checkpoint repeats some steps. Each resumption begins a new *attempt*; lines that a later
    attempt repeats are not current, and are left out wherever steps count.
    """

    def __init__(self, *names: str) -> None:
        """Create empty columns with these names."""
        self._columns = {name: column for column, name in enumerate(names)}
        self._values = array("d")
        """Line by line."""
        self._attempts: list[tuple[int, float]] = []
        """Of each attempt but the first: its first line, and the step that it resumed from."""

    def add(self, *values: float) -> None:
        """Append a line, with values in the order of the names.

        Raises:
            TypeError: a value is not a number; the buffer is unchanged.
        """
        assert len(values) == len(self._columns)
        self._values.extend(array("d", values))

    def begin_attempt(self, step: float) -> None:
        """Begin an attempt that resumes from ``step``."""
        self._attempts.append((len(self), step))

    def __len__(self) -> int:
        return len(self._values) // len(self._columns)

    def __getitem__(self, name: str) -> FloatArray:
        """Return a copy of a column, float64 of shape (N,); a view would keep the buffer from growing."""
        lines_NC = np.frombuffer(self._values, dtype=np.float64).reshape(-1, len(self._columns))
        return lines_NC[:, self._columns[name]].copy()

    def last(self, name: str) -> float | None:
        """Return the last value of a column in the current attempt; None if it has no line yet."""
        return self._values[self._columns[name] - len(self._columns)] if len(self) > self.attempt_start else None

    @property
    def attempt_start(self) -> int:
        """The first line of the current attempt."""
        return self._attempts[-1][0] if self._attempts else 0

    def attempt_of(self, lines_N: IntArray) -> IntArray:
        """Return the number of the attempt of each of these lines."""
        return np.searchsorted([start for start, _ in self._attempts], lines_N, side="right")

    def is_current(self) -> BoolArray:
        """Return which lines no later attempt repeats, bool of shape (N,)."""
        step_N = self["step"]
        current_N = np.ones(len(step_N), dtype=np.bool_)
        max_step, end = math.inf, len(step_N)
        for start, resumed_from in reversed(self._attempts):
            current_N[start:end] = step_N[start:end] <= max_step
            max_step, end = min(max_step, resumed_from), start
        current_N[:end] = step_N[:end] <= max_step
        return current_N
