"""Options of ``crossfade agent``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from crossfade.base.logs import LogOptions
from crossfade.base.options import Number, PortOrNone, option

_job = partial(option, group="job")
_host = partial(option, group="host")
_timeouts = partial(option, group="timeouts")


class AgentOptions(LogOptions):
    """Which job this host takes part in, and how."""

    join: str = _job(..., "join the coordinator at the job's cluster.coordinator_address", value="HOST:PORT")
    run_dir: Path = _job(..., "use DIR as the folder of the run", value="DIR")
    roles: Literal["all", "server", "worker", "none"] = _job(
        "all", "accept these roles (default: all); none: only wait for the end of the job"
    )
    advertise_address: str | None = _host(
        None,
        "announce this numeric address of the host to the others (default: the one that routes to HOST)",
        value="A",
    )
    metrics_port: PortOrNone = _host(
        0,
        "serve the agent's /metrics and /healthz on this port; 0 (default): a free one; none: do not serve",
        value="N",
    )
    spot: bool = _host(False, "drain when EC2 announces an interruption of this instance")
    grace_period: Number = _timeouts(
        0.0,
        "follow the coordinator for this long after SIGTERM before roles end, so that hosts stopped together can write "
        "a checkpoint (default: 0)",
        value="SECONDS",
    )
    coordinator_timeout: Number | None = _timeouts(
        None, "fail when the coordinator has not answered for this long (default: never)", value="SECONDS"
    )
