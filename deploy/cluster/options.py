"""Options of the processes of a distributed job: ``crossfade agent``, ``scheduler``, ``server``, and ``worker``."""

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


class SchedulerOptions(LogOptions):
    """The run whose scheduler this process is."""

    run_dir: Path = _job(..., "read the job from job.yaml in DIR, on a file system that all roles share", value="DIR")


class ServerOptions(SchedulerOptions):
    """The run of which this process is a server."""

    secret_file: Path | None = _job(
        None,
        "sign and verify commands with the secret in FILE, which only its owner may read; a role that an agent starts "
        "gets its secret from the agent",
        value="FILE",
    )


class WorkerOptions(ServerOptions):
    """The run of which this process is a worker, and from where it resumes."""

    checkpoint: str | None = _job(None, "resume from this checkpoint (default: start from scratch)", value="URI")
