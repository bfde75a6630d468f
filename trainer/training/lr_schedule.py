"""Learning-rate schedules: the factor of the learning rate at each step of a run.

With w warm-up steps, T steps in all and the final factor f (``optimizer.min_lr_factor``), the factor of step t, counted
from 0, is (t + 1)/w while t < w. After that, with x = (t − w)/(T − w) from 0 to 1:

- ``constant``  1
- ``linear``    1 − (1 − f)·x      (Goyal et al., "Accurate, large minibatch SGD", 2017, for the warm-up)
- ``cosine``    f + (1 − f)·(1 + cos πx)/2      (Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts)

A factor depends only on the step, so a run that resumes has the factors of one that never stopped. Factors are
multiples of 1/512: each change costs a message to every server, so a run sends about a thousand of them at most.
"""

from __future__ import annotations

import math

from crossfade.trainer.config.sections import OptimizerConfig

_LEVELS = 512


def lr_factor(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the factor of ``step``, counted from 0, in a run of ``total_steps``: above 0, at most 1."""
    if step < config.warmup_steps:
        factor = (step + 1) / config.warmup_steps
    elif config.schedule == "constant":
        factor = 1.0
    else:
        x = min((step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1), 1.0)
        decay = 1.0 - x if config.schedule == "linear" else (1.0 + math.cos(math.pi * x)) / 2.0
        factor = config.min_lr_factor + (1.0 - config.min_lr_factor) * decay
    return math.ceil(factor * _LEVELS) / _LEVELS or 1.0 / _LEVELS
