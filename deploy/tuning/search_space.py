"""Settings of a job that a search may choose: which key, and from what to what.

Setting.parse("optimizer.learning_rate=log:0.001..0.1")
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from kvstore.errors import InputError
from trainer.config.loading import load_job
from trainer.config.schema import JobConfig

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class SearchParameter:
    """One key of the job and what it may be: from ``low`` to ``high``, on a log scale or not, or one of ``choices``."""

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    @staticmethod
    def parse(text: str) -> SearchParameter:
        """``KEY=LOW..HIGH``, ``KEY=log:LOW..HIGH`` or ``KEY=A|B|C``.

        Raises:
            InputError: it is none of these.
        """
        key, equals, values = text.partition("=")
        numbers = values.removeprefix("log:")
        log = numbers != values
        if equals and key and ".." in numbers:
            low, high = (_number(bound) for bound in numbers.split("..", 1))
            if low is not None and high is not None and low < high and (low > 0 or not log):
                return SearchParameter(key, low, high, log)
        elif equals and key and "|" in values:
            return SearchParameter(key, choices=tuple(yaml.safe_load(choice) for choice in values.split("|")))
        raise InputError(
            f"--search {text}: expected KEY=LOW..HIGH, KEY=log:LOW..HIGH with 0 < LOW < HIGH, or KEY=A|B|C, for "
            "example --search optimizer.learning_rate=log:0.001..0.1"
        )

    def ends(self) -> list[Any]:
        """The values by which it can be seen whether the job takes them."""
        return list(self.choices) or [self.low, self.high]

    def suggest(self, trial: optuna.Trial) -> Any:
        """The value for ``trial``; a whole number where both ends are."""
        if self.choices:
            return json.loads(trial.suggest_categorical(self.key, [json.dumps(choice) for choice in self.choices]))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)

    def read(self, stored: Any) -> Any:
        """The value, of what the study holds."""
        return json.loads(stored) if self.choices else stored


def _number(text: str) -> float | None:
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return None


def default_settings(job: JobConfig) -> list[SearchParameter]:
    """What matters most, around what ``job`` says: learning rate, temperature and weight decay."""
    rate, temperature = job.optimizer.learning_rate, job.model.temperature
    return [
        SearchParameter("optimizer.learning_rate", rate / 10, rate * 10, log=True),
        SearchParameter("model.temperature", temperature / 3, temperature * 3, log=True),
        SearchParameter("optimizer.weight_decay", 1e-8, 1e-3, log=True),
    ]


def check_settings(path: Path, overrides: Sequence[str], settings: Sequence[SearchParameter]) -> None:
    """See that the job takes every setting.

    Raises:
        InputError: a setting stands twice, or the job does not take it.
    """
    keys = [setting.key for setting in settings]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise InputError(f"--search {twice}: stands twice")
    for setting in settings:
        for value in setting.ends():
            load_job(path, [*overrides, override(setting.key, value)])


def override(key: str, value: Any) -> str:
    """``key`` and ``value`` as ``--set`` takes them."""
    return f"{key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}"
