"""Implement ``--spot``: watch for EC2's interruption notices while a command runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossfade.deploy.aws.spot import SpotMonitor

_logger = logging.getLogger(__name__)


@contextmanager
def spot_monitor(enabled: bool) -> Iterator[SpotMonitor | None]:
    """Watch for notices while the context lasts, and log them; yield None if not ``enabled``.

    Raises:
        InputError: the environment disables the metadata service, or its endpoint is not an address.
    """
    if not enabled:
        yield None
        return
    from crossfade.deploy.aws.spot import monitor_spot

    with monitor_spot(_logger.info) as monitor:
        yield monitor
