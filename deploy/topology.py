"""Who is where: the roles of a job, and the environment in which MXNet's parts find each other."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal, cast

import psutil

from kvstore.errors import ClusterError, InputError
from trainer.config.run_sections import ClusterConfig
from trainer.model.allreduce import ADDRESS_VARIABLE, INTERFACE_VARIABLE, PORT_VARIABLE

RoleKind = Literal["scheduler", "server", "worker"]
AcceptedRoles = Literal["all", "server", "worker", "none"]
"""The kinds of roles that a host takes; one that takes none only learns how the job ends."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
# A step's buffers are some megabytes each. By its defaults glibc gives such memory back to the kernel and takes it anew
# in every step, which costs a role up to 10 ms of page faults.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**26), "MALLOC_TRIM_THRESHOLD_": str(2**28)}
TOKEN_VARIABLE = "CROSSFADE_TOKEN"  # noqa: S105 - the name of the variable
TOKEN_FILE_VARIABLE = "CROSSFADE_TOKEN_FILE"  # noqa: S105
# ps-lite takes its port from a stray PORT; what is left of DMLC_* from elsewhere would name another job's scheduler.
_STRAY_PREFIXES = ("DMLC_", "PS_", "HOROVOD_")
_STRAY = ("PORT", TOKEN_VARIABLE, TOKEN_FILE_VARIABLE)


@dataclass(frozen=True)
class Role:
    """One process of a job: its kind, and its number among those of its kind."""

    kind: RoleKind
    index: int

    @property
    def name(self) -> str:
        """What logs and errors call it."""
        return self.kind if self.kind == "scheduler" else f"{self.kind}-{self.index}"

    @staticmethod
    def from_name(name: str) -> Role:
        """The role of that name."""
        kind, _, index = name.partition("-")
        if kind == "scheduler" or (kind in {"server", "worker"} and index.isdecimal()):
            return Role(cast(RoleKind, kind), int(index or 0))
        raise ClusterError(f"'{name}' is not the name of a role")


def roles(cluster: ClusterConfig) -> Iterator[Role]:
    """All processes of a job, in the order in which they start."""
    yield Role("scheduler", 0)
    for index in range(cluster.servers):
        yield Role("server", index)
    for index in range(cluster.workers):
        yield Role("worker", index)


def missing_hosts(cluster: ClusterConfig, hosts: Mapping[str, AcceptedRoles]) -> int:
    """How many more ``hosts`` a whole job needs; the first one is the coordinator's, which takes all kinds."""
    if not cluster.one_role_per_host:
        return max(0, cluster.hosts - len(hosts))
    offers = list(hosts.values())[1:]
    lacking = max(0, cluster.servers - offers.count("server")) + max(0, cluster.workers - offers.count("worker"))
    return max(0, lacking - offers.count("all"))


def assign_roles(cluster: ClusterConfig, hosts: Mapping[str, AcceptedRoles]) -> dict[str, list[Role]]:
    """The roles of those of the ``hosts`` that take part, of which the first is the coordinator's.

    The first one has the scheduler; servers and workers go in turn to the hosts that take them. With
    ``cluster.one_role_per_host`` the first one has no others unless nobody else takes them.
    """
    first = next(iter(hosts))
    if not cluster.one_role_per_host:
        hosts = dict(islice(hosts.items(), cluster.hosts))
    dealt: dict[str, list[Role]] = {host: [] for host in hosts}
    counts: dict[RoleKind, int] = {"scheduler": 1, "server": cluster.servers, "worker": cluster.workers}
    for kind, count in counts.items():
        takers = [first] if kind == "scheduler" else _takers(cluster, kind, hosts, dealt)
        for index in range(count):
            dealt[takers[index % len(takers)]].append(Role(kind, index))
    return {host: roles_here for host, roles_here in dealt.items() if roles_here or not cluster.one_role_per_host}


def _takers(
    cluster: ClusterConfig, kind: RoleKind, hosts: Mapping[str, AcceptedRoles], dealt: Mapping[str, list[Role]]
) -> list[str]:
    """The hosts that share the roles of ``kind`` out."""
    able = [host for host, offer in hosts.items() if offer in {kind, "all"}]
    if not cluster.one_role_per_host:
        return able
    first = able.pop(0)
    able.sort(key=lambda host: hosts[host] == "all")  # whoever takes other kinds too is left for them
    return [host for host in able if not dealt[host]] or able or [first]


@dataclass(frozen=True)
class Address:
    """Where something listens. For MXNet the host is numeric, since it binds to no name."""

    host: str
    port: int

    @staticmethod
    def parse(text: str, source: str) -> Address:
        """``HOST:PORT``, which was found in ``source``.

        Raises:
            InputError: it is something else.
        """
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise InputError(f"{source}: expected HOST:PORT, as in 10.0.0.1:7070, but found '{text}'")
        return Address(host, int(port))

    def __str__(self) -> str:
        """``HOST:PORT``."""
        return f"{self.host}:{self.port}"


def scheduler_address(cluster: ClusterConfig) -> Address:
    """The job's host, and its port if that is free, or a free one if the job names none.

    Raises:
        InputError: the port is in use, or the host is not an address of this machine.
    """
    try:
        address = socket.getaddrinfo(cluster.host, cluster.scheduler_port, socket.AF_INET, socket.SOCK_STREAM)[0][4]
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As MXNet does: connections of an earlier generation that linger in the kernel are not in the way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return Address(*probe.getsockname())
    except socket.gaierror as error:
        raise InputError(f"cluster.host: '{cluster.host}' is not a host name or address: {error.strerror}") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"cluster.scheduler_port: {cluster.scheduler_port} on {cluster.host} is in use; name another, or 0 for a free one"
            ) from error
        raise InputError(f"cluster.host: cannot listen on '{cluster.host}': {error.strerror}") from error


def local_address(towards: Address) -> str:
    """The numeric address of this host that packets to ``towards`` leave from. None are sent.

    Raises:
        InputError: there is no way there.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((towards.host, towards.port))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise InputError(
            f"{towards}: there is no way there from here: {error.strerror}; see --advertise-address"
        ) from error


def check_local_address(address: str) -> None:
    """Refuse an ``address`` on which roles of this host cannot listen.

    Raises:
        InputError: it is not numeric, or not of this machine.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((str(ipaddress.IPv4Address(address)), 0))
    except ValueError:
        raise InputError(
            f"--advertise-address: expected a numeric address, as in 10.0.0.2, but found '{address}'"
        ) from None
    except OSError as error:
        raise InputError(f"--advertise-address: cannot listen on '{address}': {error.strerror}") from error


@dataclass(frozen=True)
class JobTopology:
    """What a role on this host is told of the others: where the scheduler is, and how many of each kind there are."""

    scheduler: Address
    address: str
    servers: int
    workers: int
    workers_here: int
    rendezvous: str | None = None
    """HOST:PORT/SECRET where the workers meet for Horovod, if they do."""


def role_environment(role: Role, around: JobTopology, cores: int) -> dict[str, str]:
    """The environment of ``role``'s process: this one's, less strays and the token, with what MXNet and Horovod need.

    A host's workers share its ``cores`` out and a server gets one, unless the thread variables are set already.

    Raises:
        ClusterError: no network interface has the host's address.
    """
    inherited = {
        name: value for name, value in os.environ.items() if name not in _STRAY and not name.startswith(_STRAY_PREFIXES)
    }
    threads = max(1, cores // around.workers_here) if role.kind == "worker" else 1
    return {
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        **_MALLOC,
        **inherited,
        "DMLC_ROLE": role.kind,
        "DMLC_PS_ROOT_URI": around.scheduler.host,
        "DMLC_PS_ROOT_PORT": str(around.scheduler.port),
        "DMLC_NODE_HOST": around.address,
        "DMLC_NUM_SERVER": str(around.servers),
        "DMLC_NUM_WORKER": str(around.workers),
        **(
            _horovod_environment(around.rendezvous, around.address)
            if role.kind == "worker" and around.rendezvous
            else {}
        ),
    }


def _horovod_environment(rendezvous: str, address: str) -> dict[str, str]:
    """Where a worker meets the others for Horovod, which it listens to at ``address``."""
    # Horovod writes ":PORT/SCOPE/KEY" behind what it takes for a host.
    port = Address.parse(rendezvous.partition("/")[0], "rendezvous").port
    return {
        ADDRESS_VARIABLE: rendezvous,
        PORT_VARIABLE: str(port),
        INTERFACE_VARIABLE: interface_of(address),
    }


def interface_of(address: str) -> str:
    """The network interface of this host that has the numeric ``address``; Gloo wants its name.

    Raises:
        ClusterError: none has it.
    """
    # All of 127.0.0.0/8 is the loopback interface's, which lists one of them.
    wanted = "127.0.0.1" if ipaddress.ip_address(address).is_loopback else address
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.family == socket.AF_INET and entry.address == wanted for entry in addresses):
            return name
    raise ClusterError(f"no network interface of this host has the address {address}")
