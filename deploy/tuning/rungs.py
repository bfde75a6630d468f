"""The rungs of a quick study: train many settings briefly, and the best of them longer, until a few have all epochs.

    rungs = plan_rungs(job)                         # of 16 epochs: 48 for 1, 9 for 5, 4 for 16
    rungs[0].changes(job, parameters)               # what to change in the job to train these parameters

Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", AISTATS 2016: the
settings that do best with little training are likely to be among the best with all of it. That holds only if a short
training is a small copy of the long one. A pruner that stops long trainings compares learning rates that have not
fallen yet, so it prefers the highest. Here, each rung has its own schedule, complete, and a learning rate that is
higher as the training is shorter, so that rows can move as far: learning rates add up to the same sum as in a whole
training. AdaGrad divides the learning rate by about √T, so there it is higher only by the root. After a spectral start,
rows have less far to move, and the learning rate stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.config.sections import resolved

BUDGET = 10
"""Examples that a quick study may train on, in trainings of the job."""
_DIVISORS = (9, 3)
"""Parts of the job's epochs that short rungs have: η = 3."""
_FINALISTS = 4
"""Trials of the last rung."""
_LEARNING_RATES = ("optimizer.learning_rate", "model.dense.learning_rate")


@dataclass(frozen=True)
class Rung:
    """A rung of a study: how many ``trials`` it trains, and for how long.

    Attributes:
        number: its number, from 1.
        trials: trials that it trains.
        epochs: epochs of each.
        max_steps: steps of each, if the job limits them.
        share: what a trial of this rung costs of a whole training, at most.
    """

    number: int
    trials: int
    epochs: int
    max_steps: int | None
    share: Fraction = Fraction(1)

    def changes(self, job: JobConfig, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the changes of ``job``, values by key, that train ``parameters`` in this rung.

        A short training is evaluated at its end, where its schedule is complete; a whole one trains as the job does.
        """
        values = dict(parameters)
        if self.share < 1:
            own = {**job.values(), **parameters}
            values |= {
                "train.epochs": self.epochs,
                "train.max_steps": self.max_steps,
                "train.eval_every_epochs": self.epochs,
                "optimizer.warmup_steps": int(own["optimizer.warmup_steps"] * self.share),
            }
            factor = float(1 / self.share) ** (0.5 if "adagrad" in own["optimizer.kind"] else 1.0)
            if own["model.initialization"] == "spectral":
                factor = 1.0  # rows begin near their places, which larger steps would lose
            values |= {key: own[key] * factor for key in _LEARNING_RATES if own[key] is not None}
        return values


def whole_trainings(job: JobConfig, trials: int) -> list[Rung]:
    """Return the only rung of a study that trains ``trials`` as the job does."""
    return [Rung(1, trials, resolved(job.train.epochs), job.train.max_steps)]


def plan_rungs(job: JobConfig) -> list[Rung]:
    """Plan rungs of ``job`` that cost at most ``BUDGET`` trainings, the last with all epochs.

    Short rungs share evenly what the last leaves. A job of fewer than 9 epochs, or steps, has fewer of them.
    """
    epochs, max_steps = resolved(job.train.epochs), job.train.max_steps
    divisors = [divisor for divisor in _DIVISORS if min(epochs, max_steps or epochs) >= divisor]
    if not divisors:
        return whole_trainings(job, BUDGET)
    rungs = []
    for number, divisor in enumerate(divisors, start=1):
        steps = max_steps and max_steps // divisor
        share = max(Fraction(epochs // divisor, epochs), Fraction(steps or 0, max_steps or 1))
        trials = int(Fraction(BUDGET - _FINALISTS, len(divisors)) / share)
        rungs.append(Rung(number, trials, epochs // divisor, steps, share))
    return [*rungs, Rung(len(rungs) + 1, _FINALISTS, epochs, max_steps)]
