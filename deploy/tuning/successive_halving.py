"""Successive halving: train many settings briefly, and the best of them longer, until a few have all epochs.

    rungs = plan_rungs(job)                                     # of 40 epochs: 30 for 4, 9 for 13, 4 for 40
    trials = draw_trials(parameters, rungs[0].trials, seed=1)   # trial 0 has the job's own settings
    rungs[0].overrides(job, trials[5])                          # what to change in the job to train trial 5
    promote({0: 0.12, 1: 0.14, 2: 0.13}, 2)                     # [0, 1]

Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", AISTATS 2016: the
settings that do best with little training are likely to be among the best with all of it. That holds only if a short
training is a small copy of the long one, so each rung has its own schedule, complete, and a learning rate that is
higher as the training is shorter, so that rows can move as far: the sum of the learning rate over T steps is that of a
whole training. AdaGrad divides the learning rate by about √T, so its is only higher by the root. Without that, short
rungs would only find the highest learning rates.

In array names, N is trials and P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from scipy.stats import qmc

from crossfade.deploy.tuning.search_space import SearchParameter, format_override
from crossfade.trainer.config.schema import JobConfig

BUDGET = 10
"""Examples that a study may train on, in trainings of the job."""
OWN = 0
"""Number of the trial with the job's own settings, which is in every rung."""
_DIVISORS = (9, 3)
"""Parts of the job's epochs that short rungs have: η = 3."""
_FINALISTS = 4
"""Trials of the last rung."""
_LEARNING_RATES = ("optimizer.learning_rate", "model.dense.learning_rate")

Trial = Mapping[str, Any]
"""The values of a trial by key of the job; none for the job's own settings."""


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
    share: Fraction

    def overrides(self, job: JobConfig, trial: Trial) -> list[str]:
        """Return the overrides of ``job`` that train ``trial`` in this rung.

        A short training is evaluated at its end, where its schedule is complete; the last rung trains as the job does.
        """
        if self.share == 1:
            return [format_override(key, value) for key, value in trial.items()]
        own = {**job.values(), **trial}
        values = {
            **trial,
            "train.epochs": self.epochs,
            "train.max_steps": self.max_steps,
            "train.eval_every_epochs": self.epochs,
            "optimizer.warmup_steps": int(own["optimizer.warmup_steps"] * self.share),
        }
        for key in _LEARNING_RATES:
            if own[key] is not None:
                values[key] = own[key] * float(1 / self.share) ** (0.5 if "adagrad" in own["optimizer.kind"] else 1.0)
        return [format_override(key, value) for key, value in values.items()]


def plan_rungs(job: JobConfig) -> list[Rung]:
    """Plan rungs of ``job`` that cost at most ``BUDGET`` trainings, the last with all epochs.

    Short rungs share evenly what the last leaves. A job of fewer than 9 epochs, or steps, has fewer of them.
    """
    epochs, max_steps = job.train.epochs, job.train.max_steps
    divisors = [divisor for divisor in _DIVISORS if min(epochs, max_steps or epochs) >= divisor]
    if not divisors:
        return [Rung(1, BUDGET, epochs, max_steps, Fraction(1))]
    rungs = []
    for number, divisor in enumerate(divisors, start=1):
        steps = max_steps and max_steps // divisor
        share = max(Fraction(epochs // divisor, epochs), Fraction(steps or 0, max_steps or 1))
        trials = int(Fraction(BUDGET - _FINALISTS, len(divisors)) / share)
        rungs.append(Rung(number, trials, epochs // divisor, steps, share))
    return [*rungs, Rung(len(rungs) + 1, _FINALISTS, epochs, max_steps, Fraction(1))]


def draw_trials(parameters: Sequence[SearchParameter], count: int, seed: int) -> list[Trial]:
    """Draw ``count`` trials, the first with the job's own settings, the others spread evenly over the space.

    They are points of a scrambled Halton sequence (Owen, "A randomized Halton algorithm in R", 2017).
    """
    points_NP = qmc.Halton(len(parameters), rng=seed).random(count - 1)
    return [
        {},
        *(
            {each.key: each.at(float(fraction)) for each, fraction in zip(parameters, point_P, strict=True)}
            for point_P in points_NP
        ),
    ]


def promote(values: Mapping[int, float], count: int) -> list[int]:
    """Return the numbers of ``count`` trials with the highest ``values``, in order; the job's own is always one."""
    others = sorted((number for number in values if number != OWN), key=lambda number: (-values[number], number))
    return [OWN, *sorted(others[: count - 1])]
