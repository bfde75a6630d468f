"""Who is where: the roles of a job, and the environment in which MXNet's parts find each other."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from kvstore.errors import InputError
from trainer.job import Cluster

RoleKind = Literal["scheduler", "server", "worker"]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
# ps-lite takes its port from a stray PORT; what is left of DMLC_* from elsewhere would name another job's scheduler.
_STRAY_PREFIXES = ("DMLC_", "PS_")
_STRAY = "PORT"


@dataclass(frozen=True)
class Role:
    """One process of a job: its kind, and its number among those of its kind on this host."""

    kind: RoleKind
    index: int

    @property
    def name(self) -> str:
        """What logs and errors call it."""
        return self.kind if self.kind == "scheduler" else f"{self.kind}-{self.index}"


def roles(cluster: Cluster) -> Iterator[Role]:
    """All processes of a job that runs on one host, in the order in which they start."""
    yield Role("scheduler", 0)
    for index in range(cluster.servers):
        yield Role("server", index)
    for index in range(cluster.workers):
        yield Role("worker", index)


@dataclass(frozen=True)
class Address:
    """Where the scheduler listens: a numeric address, since MXNet binds to no name, and a port."""

    host: str
    port: int


def scheduler_address(cluster: Cluster) -> Address:
    """The job's host, and its port if that is free, or a free one if the job names none.

    Raises:
        InputError: the port is in use, or the host is not an address of this machine.
    """
    try:
        address = socket.getaddrinfo(cluster.host, cluster.port, socket.AF_INET, socket.SOCK_STREAM)[0][4]
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind(address)
            return Address(*probe.getsockname())
    except socket.gaierror as error:
        raise InputError(f"cluster.host: '{cluster.host}' is not a host name or address: {error.strerror}") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"cluster.port: {cluster.port} on {cluster.host} is in use; name another, or 0 for a free one"
            ) from error
        raise InputError(f"cluster.host: cannot listen on '{cluster.host}': {error.strerror}") from error


def environment(cluster: Cluster, role: Role, scheduler: Address, cores: int) -> dict[str, str]:
    """The environment of ``role``'s process: this one's, less strays, with what MXNet needs.

    Workers share ``cores`` out among themselves and a server gets one, unless the thread variables are set already.
    """
    inherited = {
        name: value for name, value in os.environ.items() if name != _STRAY and not name.startswith(_STRAY_PREFIXES)
    }
    threads = max(1, cores // cluster.workers) if role.kind == "worker" else 1
    return {
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        **inherited,
        "DMLC_ROLE": role.kind,
        "DMLC_PS_ROOT_URI": scheduler.host,
        "DMLC_PS_ROOT_PORT": str(scheduler.port),
        "DMLC_NODE_HOST": scheduler.host,
        "DMLC_NUM_SERVER": str(cluster.servers),
        "DMLC_NUM_WORKER": str(cluster.workers),
    }
