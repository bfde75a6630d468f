"""Learning-rate schedules: their formulas, and that a run follows them."""

import itertools
import math
from typing import Any

import pytest

from crossfade.trainer.config.lr_schedule import end_after_plateau, lr_factor
from crossfade.trainer.config.sections import OptimizerConfig

STEPS, WARMUP = 200, 20
PARTS = 512


def factors(**spec: Any) -> list[float]:
    return [lr_factor(OptimizerConfig(**spec), step, STEPS) for step in range(STEPS)]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_factor_rises_during_warmup_then_follows_the_schedule(schedule: str) -> None:
    lr_factors = factors(schedule=schedule, warmup_steps=WARMUP, min_lr_factor=0.2)
    assert lr_factors[WARMUP - 1] == lr_factors[WARMUP] == 1.0
    for step, factor in enumerate(lr_factors):
        x = (step - WARMUP) / (STEPS - WARMUP)
        if step < WARMUP:
            expected = (step + 1) / WARMUP
        else:
            cosine = 0.2 + 0.4 * (1 + math.cos(math.pi * x))
            wsd = 1 - 0.8 * max(step - 160, 0) / 40  # the last fifth of 200 steps
            expected = {"constant": 1.0, "linear": 1 - 0.8 * x, "cosine": cosine, "wsd": wsd}[schedule]
        assert 0 <= factor - expected < 1 / PARTS


@pytest.mark.parametrize("plateau", range(1, 12))
def test_wsd_decays_from_the_plateau_to_an_end_a_fifth_later(plateau: int) -> None:
    spec = OptimizerConfig(schedule="wsd")
    end = end_after_plateau(spec, plateau)
    assert end == plateau + plateau // 4
    lr_factors = [lr_factor(spec, step, end) for step in range(end)]
    assert lr_factors[:plateau] == [1.0] * plateau
    assert all(after < before for before, after in itertools.pairwise(lr_factors[plateau:]))
    assert end_after_plateau(OptimizerConfig(schedule="cosine"), plateau) == plateau


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_factor_stays_above_zero_and_takes_few_values(schedule: str) -> None:
    spec = OptimizerConfig(schedule=schedule)
    lr_factors = [lr_factor(spec, step, 100_000) for step in range(100_000)]
    assert min(lr_factors) > 0
    assert lr_factors == sorted(lr_factors, reverse=True)
    assert len(set(lr_factors)) <= PARTS
