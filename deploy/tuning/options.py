"""Options of ``crossfade tune`` and ``crossfade backtest``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from crossfade.base.errors import Option, OptionError
from crossfade.base.options import Integer, Share, option
from crossfade.trainer.config.options import JobOptions, OptionalJob
from crossfade.trainer.data.split_names import SplitName
from crossfade.trainer.runs.options import Location

if TYPE_CHECKING:
    from crossfade.trainer.config.schema import JobConfig

_RUNG_KEYS = ("train.epochs", "train.max_steps", "train.eval_every_epochs")
"""Keys of the job that a quick study sets, so that they cannot be searched."""

_study = partial(option, group="study")


class TuneOptions(JobOptions):
    """Which job is tuned, over which values, and for how long."""

    quick: bool = _study(False, "search six settings in at most ten trainings, by successive halving")
    trials: Integer | None = _study(None, "stop after N trials in total (default: 20)", value="N", ge=1)
    search: tuple[str, ...] = _study(
        (),
        "search a key of the job over LOW..HIGH, log:LOW..HIGH or A|B|C; repeatable",
        value="KEY=VALUES",
        repeat=True,
    )
    out: Path | None = _study(
        None, "keep the study in DIR (default: runs/NAME-tune, for a quick one runs/NAME-tune-quick)", value="DIR"
    )

    @model_validator(mode="after")
    def _check_quick(self) -> Self:
        """Reject what a quick study itself decides."""
        if not self.quick:
            return self
        quick = Option("quick")
        if self.trials is not None:
            problem = (quick, " itself chooses how many settings it tries")
            raise OptionError("trials", found=self.trials, problem=problem, fix="leave one out")
        for key in _RUNG_KEYS:
            if any(text.startswith(f"{key}=") for text in self.search):
                problem = (quick, " sets it to train some settings for less time")
                raise OptionError("search", found=key, problem=problem, fix="search another key")
        return self


_backtest = partial(option, group="backtest")


class BacktestOptions(OptionalJob):
    """Which dataset is cut into windows, how, and what is trained."""

    data: Location = _backtest(
        ..., "cut the interactions of this dataset, a folder or s3://BUCKET/PREFIX", value="DATA", positional=True
    )
    windows: Integer = _backtest(10, "judge N windows, of as many interactions each", value="N", ge=2)
    first: Share = _backtest(
        0.5,
        "train for the first window on this share of the interactions, the earliest",
        value="SHARE",
        gt=0,
        lt=1,
    )
    splits: tuple[SplitName, ...] = _backtest(
        ("train", "valid", "test"),
        "cut the interactions of these splits together (default: of all)",
        min_length=1,
    )
    out: Path | None = _backtest(
        None, "keep the windows in DIR, and resume those there (default: runs/DATA-backtest)", value="DIR"
    )
    job: Path | None = option(
        None, "take the settings of this job file (YAML) (default: those of all keys)", group="job", value="JOB"
    )

    def load_backtest_job(self) -> JobConfig:
        """Return the job that is named, or one with defaults, of the dataset.

        Raises:
            InputError: the file is missing, or the job is invalid.
        """
        from crossfade.trainer.config.loading import load_job, make_job

        settings = [*self.set, f"data.path={json.dumps(self.data)}"]
        if self.job is not None:
            return load_job(self.job, settings)
        return make_job(json.dumps({"name": "backtest", "data": {"path": self.data}}), "the job", settings)
