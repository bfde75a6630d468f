"""Work that is due every few steps, or every few seconds.

    save = PeriodicAction(start_checkpoint, every_steps=1_000, every_seconds=300.0)
    save.restart(state.step)                        # steps and seconds count from here
    save.after_step(state.step, state)              # calls start_checkpoint(state) if it is due

The clock is a parameter, so that a test sets the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class PeriodicAction(Generic[P, R]):
    """Calls ``action`` when it is due, by any of the periods that are set.

    Attributes:
        every_steps: steps between two calls; None: steps do not matter.
        last_step: the step of the last call.
        last_at: the clock's time of the last call.
    """

    def __init__(
        self,
        action: Callable[P, R],
        *,
        every_steps: int | None = None,
        every_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        due_at_once: bool = False,
    ) -> None:
        """Count from step 0 and from now on; with ``due_at_once``, the first call waits for no seconds."""
        self._action, self._clock = action, clock
        self.every_steps, self._every_seconds = every_steps, every_seconds
        self.last_step, self.last_at = 0, float("-inf") if due_at_once else clock()

    def restart(self, step: int = 0) -> None:
        """Count steps and seconds from here on."""
        self.last_step, self.last_at = step, self._clock()

    def is_due(self, step: int = 0) -> bool:
        """Return whether the steps or the seconds have passed, ``step`` being the number of steps taken."""
        by_steps = self.every_steps is not None and step - self.last_step >= self.every_steps
        return by_steps or (self._every_seconds is not None and self._clock() - self.last_at >= self._every_seconds)

    def run(self, step: int, /, *arguments: P.args, **keywords: P.kwargs) -> R:
        """Call the action, due or not; steps and seconds count from its end."""
        result = self._action(*arguments, **keywords)
        self.restart(step)
        return result

    def after_step(self, step: int, /, *arguments: P.args, **keywords: P.kwargs) -> R | None:
        """Call the action if it is due after ``step``; return its result, None if it is not due."""
        return self.run(step, *arguments, **keywords) if self.is_due(step) else None
