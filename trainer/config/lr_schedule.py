"""The learning rate schedule: the factor of the peak learning rate at each step of a run.

optimizer = OptimizerConfig(schedule="cosine", warmup_steps=100)
lr_factor(optimizer, step=50, total_steps=2_000)      # 0.51
"""

from __future__ import annotations

import math

from crossfade.trainer.config.sections import OptimizerConfig, resolved

_LEVELS = 512


def lr_factor(optimizer: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the factor of the learning rate at ``step``, counted from 0, of ``total_steps``: above 0, at most 1.

    With w warm-up steps, T steps in all and the final factor f (``min_lr_factor``), the factor of step t is
    (t + 1)/w while t < w. After that, with x = (t − w)/(T − w) from 0 to 1:

    - ``constant``  1
    - ``linear``    1 − (1 − f)·x      (Goyal et al., "Accurate, large minibatch SGD", 2017, for the warm-up)
    - ``cosine``    f + (1 − f)·(1 + cos πx)/2      (Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts)

    A factor depends only on the step, so a run that resumes has the factors of one that never stopped. Factors are
    multiples of 1/512: each change costs a message to every server, so a run sends about a thousand at most.
    """
    first, last = resolved(optimizer.warmup_steps), optimizer.min_lr_factor
    if step < first:
        factor = (step + 1) / first
    else:
        x = min(max(step - first, 0) / max(total_steps - first, 1), 1.0)
        decay = (1.0 + math.cos(math.pi * x)) / 2.0 if optimizer.schedule == "cosine" else 1.0 - x
        factor = 1.0 if optimizer.schedule == "constant" else last + (1.0 - last) * decay
    return math.ceil(factor * _LEVELS) / _LEVELS or 1.0 / _LEVELS
