"""``--spot``: the notices by which EC2 takes a host back, as the commands that run on it heed them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploy.aws.spot import SpotMonitor

_logger = logging.getLogger(__name__)


@contextmanager
def spot_monitor(wanted: bool) -> Iterator[SpotMonitor | None]:
    """Watch for notices while the context lasts, if that is ``wanted``, and say on stderr what comes.

    Raises:
        InputError: the environment says that the metadata service must not be asked, or names no address.
    """
    if not wanted:
        yield None
        return
    from deploy.aws.spot import monitor_spot

    with monitor_spot(_logger.info) as watch:
        yield watch
