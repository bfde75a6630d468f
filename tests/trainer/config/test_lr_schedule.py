"""Learning-rate schedules: their formulas, and that a run follows them."""

import math
from typing import Any

import pytest

from crossfade.trainer.config.lr_schedule import lr_factor
from crossfade.trainer.config.sections import OptimizerConfig

STEPS, WARMUP = 200, 20
PARTS = 512


def factors(**spec: Any) -> list[float]:
    return [lr_factor(OptimizerConfig(**{"warmup_steps": 0, **spec}), step, STEPS) for step in range(STEPS)]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_factor_rises_during_warmup_then_follows_the_schedule(schedule: str) -> None:
    lr_factors = factors(schedule=schedule, warmup_steps=WARMUP, min_lr_factor=0.2)
    assert lr_factors[WARMUP - 1] == lr_factors[WARMUP] == 1.0
    for step, factor in enumerate(lr_factors):
        x = (step - WARMUP) / (STEPS - WARMUP)
        if step < WARMUP:
            expected = (step + 1) / WARMUP
        else:
            cosine = 0.2 + 0.4 * (1 + math.cos(math.pi * x))
            expected = {"constant": 1.0, "linear": 1 - 0.8 * x, "cosine": cosine}[schedule]
        assert 0 <= factor - expected < 1 / PARTS


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_factor_stays_above_zero_and_takes_few_values(schedule: str) -> None:
    spec = OptimizerConfig(schedule=schedule, warmup_steps=0)
    lr_factors = [lr_factor(spec, step, 100_000) for step in range(100_000)]
    assert min(lr_factors) > 0
    assert lr_factors == sorted(lr_factors, reverse=True)
    assert len(set(lr_factors)) <= PARTS
