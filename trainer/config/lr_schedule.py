"""The learning rate schedule: the factor of the peak learning rate at each step of a run.

optimizer = OptimizerConfig(schedule="cosine", warmup_steps=100)
lr_factor(optimizer, step=50, total_steps=2_000)      # 0.51
"""

from __future__ import annotations

import math

from crossfade.trainer.config.sections import OptimizerConfig

_LEVELS = 512
_STABLE_PARTS = 4
"""Length of a run before wsd decays, by the length of the decay."""


def lr_factor(optimizer: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the factor of the learning rate at ``step``, counted from 0, of ``total_steps``: above 0, at most 1.

    With w warm-up steps, T steps in all and the final factor f (``min_lr_factor``), the factor of step t is
    (t + 1)/w while t < w. After that, with x = (t − w)/(T − w) from 0 to 1:

    - ``constant``  1
    - ``linear``    1 − (1 − f)·x      (Goyal et al., "Accurate, large minibatch SGD", 2017, for the warm-up)
    - ``cosine``    f + (1 − f)·(1 + cos πx)/2      (Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts)
    - ``wsd``       1, and as ``linear`` from step T − ⌊T/5⌋ on (Hägele et al., "Scaling laws and compute-optimal
      training beyond fixed training durations", NeurIPS 2024)

    A factor depends only on the step, so a run that resumes has the factors of one that never stopped. Factors are
    multiples of 1/512: each change costs a message to every server, so a run sends about a thousand at most.
    """
    if step < optimizer.warmup_steps:
        factor = (step + 1) / optimizer.warmup_steps
    else:
        first, last = optimizer.warmup_steps, optimizer.min_lr_factor
        if optimizer.schedule == "wsd":
            first = max(first, total_steps - total_steps // (_STABLE_PARTS + 1))
        x = min(max(step - first, 0) / max(total_steps - first, 1), 1.0)
        decay = (1.0 + math.cos(math.pi * x)) / 2.0 if optimizer.schedule == "cosine" else 1.0 - x
        factor = 1.0 if optimizer.schedule == "constant" else last + (1.0 - last) * decay
    return math.ceil(factor * _LEVELS) / _LEVELS or 1.0 / _LEVELS


def end_after_plateau(optimizer: OptimizerConfig, step: int) -> int:
    """Return the last step of a run whose metric has stopped to rise at ``step``.

    With wsd, the decay of the learning rate begins there, and lasts for a fifth of the run. Otherwise the run ends.
    """
    return step + step // _STABLE_PARTS if optimizer.schedule == "wsd" else step
