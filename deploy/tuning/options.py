"""Options of ``crossfade tune``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Self

from pydantic import model_validator

from crossfade.base.errors import OptionError, option_named
from crossfade.base.options import Integer, option
from crossfade.trainer.config.options import JobOptions

RUNG_KEYS = ("train.epochs", "train.max_steps", "train.eval_every_epochs")
"""Keys of the job that successive halving sets, so that they cannot be searched."""

_study = partial(option, group="study")


class TuneOptions(JobOptions):
    """Which job is tuned, over which values, and for how long."""

    quick: bool = _study(False, "search five settings in at most ten trainings, by successive halving")
    trials: Integer | None = _study(None, "stop after N trials in total (default: 20)", value="N", ge=1)
    search: tuple[str, ...] = _study(
        (),
        "search a key of the job over LOW..HIGH, log:LOW..HIGH or A|B|C; repeatable",
        value="KEY=VALUES",
        repeat=True,
    )
    no_pruning: bool = _study(False, "run every trial to its end")
    out: Path | None = _study(
        None, "keep the study in DIR (default: runs/NAME-tune, for a quick one runs/NAME-tune-quick)", value="DIR"
    )

    @model_validator(mode="after")
    def _check_quick(self) -> Self:
        """Reject what a quick study itself decides."""
        if not self.quick:
            return self
        quick = option_named("quick")
        if self.trials is not None:
            problem = f"{quick} itself chooses how many settings it tries"
            raise OptionError("trials", found=self.trials, problem=problem, fix="leave one out")
        if self.no_pruning:
            problem = f"{quick} trains only the best settings to the end"
            raise OptionError("no_pruning", problem=problem, fix="leave one of the two out")
        for key in RUNG_KEYS:
            if any(text.startswith(f"{key}=") for text in self.search):
                problem = f"{quick} sets it to train some settings for less time"
                raise OptionError("search", found=key, problem=problem, fix="search another key")
        return self
