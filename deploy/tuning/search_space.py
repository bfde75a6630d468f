"""The search space of a tuning study: keys of the job and the values that trials may take.

SearchParameter.parse("optimizer.learning_rate=log:0.001..0.1")
SearchParameter.parse("loss=bpr|softmax")
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from crossfade.base.errors import Option, OptionError
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.config.sections import resolved

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class SearchParameter:
    """One key of the job and its values: from ``low`` to ``high``, on a log scale if ``log``, or one of ``choices``."""

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    @staticmethod
    def parse(text: str) -> SearchParameter:
        """Parse ``KEY=LOW..HIGH``, ``KEY=log:LOW..HIGH`` or ``KEY=A|B|C``.

        Raises:
            InputError: ``text`` is none of these.
        """
        key, equals, values = text.partition("=")
        numbers = values.removeprefix("log:")
        log = numbers != values
        if equals and key and ".." in numbers:
            low, high = (_number(bound) for bound in numbers.split("..", 1))
            if low is not None and high is not None and low < high and (low > 0 or not log):
                return SearchParameter(key, low, high, log)
        elif equals and key and "|" in values:
            return SearchParameter(key, choices=tuple(map(_choice, values.split("|"))))
        raise OptionError(
            "search",
            found=text,
            expected="KEY=LOW..HIGH, KEY=log:LOW..HIGH with 0 < LOW < HIGH, or KEY=A|B|C, for example "
            "optimizer.learning_rate=log:0.001..0.1",
        )

    def extremes(self) -> list[Any]:
        """Return the choices, or both ends of the range: the job accepts all values if it accepts these."""
        return list(self.choices) or [self.low, self.high]

    def suggest(self, trial: optuna.Trial) -> Any:
        """Let ``trial`` choose a value: an integer if both ends of the range are."""
        if self.choices:
            return json.loads(trial.suggest_categorical(self.key, [json.dumps(choice) for choice in self.choices]))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)

    def own_value(self, job: JobConfig) -> Any:
        """Return the value in ``job``."""
        return job.values().get(self.key)

    def decode(self, stored: Any) -> Any:
        """Return the value that the study stores as ``stored``."""
        return json.loads(stored) if self.choices else stored


def _choice(text: str) -> Any:
    number = _number(text)  # YAML takes 1e-3 for text
    return yaml.safe_load(text) if number is None else number


def _number(text: str) -> float | None:
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return None


def default_parameters(job: JobConfig) -> list[SearchParameter]:
    """Return the parameters that matter most, around ``job``: learning rate, temperature, batch size."""
    rate, temperature = job.optimizer_spec.learning_rate, resolved(job.model.temperature)
    return [
        SearchParameter("optimizer.learning_rate", rate / 10, rate * 10, log=True),
        SearchParameter("model.temperature", temperature / 3, temperature * 3, log=True),
        SearchParameter("train.batch_size", max(1, job.train.batch_size // 8), job.train.batch_size * 2, log=True),
    ]


def quick_parameters(job: JobConfig) -> list[SearchParameter]:
    """Return the six parameters that a quick study searches, each around the value of ``job``.

    They are those to which docs/evidence.md finds results most sensitive, but for choices of another kind of model. A
    job that starts from given rows has their dimension.
    """
    rate, temperature, train = job.optimizer_spec.learning_rate, resolved(job.model.temperature), job.train
    query, item, dim = train.query_frequency_power, train.item_frequency_power, job.model.dim
    size = SearchParameter("model.dim", choices=tuple(dict.fromkeys((max(1, dim // 2), dim, 2 * dim))))
    return [
        SearchParameter("model.temperature", temperature / 1.5, temperature * 1.5, log=True),
        SearchParameter("optimizer.learning_rate", rate / 3, rate * 3, log=True),
        SearchParameter("train.batch_size", max(1, train.batch_size // 4), train.batch_size * 2, log=True),
        SearchParameter("train.query_frequency_power", max(query - 0.3, -1.0), min(query + 0.3, 0.0)),
        SearchParameter("train.item_frequency_power", max(item - 0.15, -1.0), min(item + 0.15, 1.0)),
        *([] if job.starting_points() else [size]),
    ]


def check_parameters(path: Path, overrides: Sequence[str], parameters: Sequence[SearchParameter]) -> None:
    """Check that the job accepts all values of every parameter.

    Raises:
        InputError: a key is repeated, or the job rejects a value.
    """
    keys = [parameter.key for parameter in parameters]
    if repeated := next((key for key in keys if keys.count(key) > 1), None):
        raise OptionError("search", found=repeated, problem="the key is repeated", fix="give each key once")
    for parameter in parameters:
        for value in parameter.extremes():
            setting = f"{parameter.key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}"
            load_job(path, [*overrides, setting], {setting: Option("search", parameter.key)})
