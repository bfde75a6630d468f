"""Options of ``crossfade refresh`` and ``crossfade rollback``."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from crossfade.base.options import Integer, Options, PortOrNone, option

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def _seconds(value: Any) -> Any:
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)([smhd]?)", str(value))
    if isinstance(value, bool) or found is None or float(found[1]) <= 0:
        raise ValueError("expected a time such as 30s, 10m, 6h, or 1d")
    return float(found[1]) * _SECONDS[found[2]]


Interval = Annotated[float, BeforeValidator(_seconds)]
"""Seconds, also written 30s, 10m, 6h, or 1d."""
_service, _metrics = partial(option, group="service"), partial(option, group="metrics")


class ServiceOptions(Options):
    """Which service."""

    service: Path = _service(..., "the service, by its YAML file or its folder", value="SERVICE", positional=True)


class RefreshOptions(ServiceOptions):
    """Which service to keep fresh, and how often."""

    every: Interval | None = _service(
        None, "go on until a signal arrives, and look for new events at this interval: 10m, 6h, 1d", value="TIME"
    )
    publish: bool = _service(False, "publish the next version even if it does not meet publish_if, and then stop")
    status: bool = _service(False, "show which files wait, and for what; do nothing")
    metrics_port: PortOrNone = _metrics(
        0,
        "while the command goes on, serve /metrics and /healthz on this port; 0 (default): a free one; none: do not",
        value="N",
    )
    metrics_host: str = _metrics("127.0.0.1", "serve them on this address; 0.0.0.0: on all", value="HOST")

    at_most_one = (("every", "publish", "status"),)


class RollbackOptions(ServiceOptions):
    """Which version of a service to return to."""

    to: Integer | None = _service(None, "return to version N (default: the one before the current)", value="N", ge=1)
