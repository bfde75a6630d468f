"""The hosts and the dataset for which a job is planned: options of ``crossfade plan``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, model_validator

from crossfade.base.errors import OptionError, option_named
from crossfade.base.options import Integer, option
from crossfade.trainer.config.options import ClusterSizes, JobOptions

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BANDWIDTH = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kKMGT]?)(bit/s|bit|bps|B/s|B)")
DATASET_SIZE = ("queries", "items", "interactions")
_SIZE = "size of a dataset that does not exist yet"


def bits_per_second(value: Any) -> Any:
    """Convert a bandwidth per second, such as 10Gbit, 500Mbit or 1.25GB, to bits per second.

    Raises:
        ValueError: a text is not a bandwidth, or zero.
    """
    if not isinstance(value, str):
        return value
    match = _BANDWIDTH.fullmatch(value.strip())
    bits = float(match[1]) * _UNITS[match[2].lower()] * (8 if match[3].startswith("B") else 1) if match else 0.0
    if bits <= 0:
        raise ValueError("expected a number and a unit of bits or bytes a second, as in 10Gbit, 500Mbit, 1.25GB")
    return bits


_hosts = partial(option, group="hosts")
_size = partial(option, group=_SIZE)


class PlannedJob(JobOptions, ClusterSizes):
    """The job to plan, its hosts, and its dataset."""

    group_notes: ClassVar[Mapping[str, str]] = {
        _SIZE: "All three or none; no dataset is read then. Numbers may be written 1000000, 1_000_000 or 1e6.\n"
        "Features and evaluations are not planned."
    }

    instance_type: str | None = _hosts(
        None, "plan for this EC2 type, such as r6i.4xlarge (default: this machine)", value="TYPE"
    )
    bandwidth: Annotated[float, BeforeValidator(bits_per_second)] | None = _hosts(
        None,
        "assume this bandwidth of a host's network card: 10Gbit, 1.25GB (default: that of the instance type)",
        value="RATE",
    )
    cores: Integer | None = _hosts(
        None,
        "assume this number of virtual CPUs of a host (default: those of the instance type, or of this machine)",
        value="N",
        ge=1,
    )
    queries: Integer | None = _size(None, "expect N query rows, such as customers", value="N", ge=1)
    items: Integer | None = _size(None, "expect N item rows, such as tracks", value="N", ge=1)
    interactions: Integer | None = _size(None, "expect N interactions in train", value="N", ge=1)

    @property
    def expected_size(self) -> tuple[int, int, int] | None:
        """The size of a dataset to come: query rows, item rows, interactions; None: the dataset exists."""
        queries, items, interactions = self.queries, self.items, self.interactions
        return None if queries is None or items is None or interactions is None else (queries, items, interactions)

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        missing = [name for name in DATASET_SIZE if getattr(self, name) is None]
        if missing and len(missing) < len(DATASET_SIZE):
            fix = "give {}, {} and {}, or none of them".format(*map(option_named, DATASET_SIZE))
            raise OptionError(missing[0], problem="is missing", fix=fix)
        return self
