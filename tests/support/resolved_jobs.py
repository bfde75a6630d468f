"""Jobs whose defaults are resolved, for tests without a dataset."""

from collections.abc import Mapping
from typing import Any

from crossfade.trainer.config.auto_values import DatasetSize, resolve
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.schema import JobConfig

SIZE = DatasetSize(queries=100, items=50, interactions=1_000, is_grouped=False)


def make_resolved(values: Mapping[str, Any]) -> JobConfig:
    """Check ``values``, and resolve them for a small dataset in random order."""
    return resolve(check_job(dict(values), "a test"), SIZE)


def job_with(**model: Any) -> JobConfig:
    """Return a resolved job with these keys of ``model``."""
    return make_resolved({"name": "j", "data": {"path": "d"}, "model": {"dim": 4, **model}})
