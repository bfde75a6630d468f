"""Learning-rate schedules: what the learning rate is multiplied by at each step of a run.

With w warm-up steps, T steps in all and f the final share, the factor of step t, counted from 0, is (t + 1)/w while
t < w, and from there on, with x = (t − w)/(T − w) from 0 to 1:

- ``constant``  1
- ``linear``    1 − (1 − f)·x      (Goyal et al., "Accurate, large minibatch SGD", 2017, for the warm-up)
- ``cosine``    f + (1 − f)·(1 + cos πx)/2      (Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts)

A factor depends on the step alone, so a run that is resumed goes on as it would have. It moves in 512ths: each change
costs one message to the servers, and so a run has at most about a thousand of them.
"""

from __future__ import annotations

import math

from trainer.config.model_sections import OptimizerConfig

_PARTS = 512


def lr_factor(spec: OptimizerConfig, step: int, steps: int) -> float:
    """What the learning rate is multiplied by in ``step`` of ``steps``, counted from 0: above 0, at most 1."""
    if step < spec.warmup_steps:
        factor = (step + 1) / spec.warmup_steps
    elif spec.schedule == "constant":
        factor = 1.0
    else:
        behind = min((step - spec.warmup_steps) / max(steps - spec.warmup_steps, 1), 1.0)
        left = 1.0 - behind if spec.schedule == "linear" else (1.0 + math.cos(math.pi * behind)) / 2.0
        factor = spec.min_lr_factor + (1.0 - spec.min_lr_factor) * left
    return math.ceil(factor * _PARTS) / _PARTS or 1.0 / _PARTS
