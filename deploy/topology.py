"""The topology of a job: its roles, their hosts, and addresses.

assign_roles(cluster, {"first": "all", "second": "all"})      # {"first": [Role("scheduler", 0), ...], ...}
"""

from __future__ import annotations

import errno
import ipaddress
import random
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, cast

from crossfade.base.errors import ClusterError, InputError, Option, OptionError, Text
from crossfade.trainer.config.sections import ClusterConfig

RoleKind = Literal["scheduler", "server", "worker"]
AcceptedRoles = Literal["all", "server", "worker", "none"]
"""The kinds of roles that a host accepts. One that accepts none only learns how the job ends."""
TOKEN_VARIABLE = "CROSSFADE_TOKEN"  # noqa: S105 - the name of the variable
TOKEN_FILE_VARIABLE = "CROSSFADE_TOKEN_FILE"  # noqa: S105
_ASSIGNED_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT, _TRIED_PORTS = 10_000, 20


@dataclass(frozen=True)
class Role:
    """One process of a job: its kind, and its number among those of its kind."""

    kind: RoleKind
    index: int

    @property
    def name(self) -> str:
        """Its name in logs and errors, such as ``server-1``."""
        return self.kind if self.kind == "scheduler" else f"{self.kind}-{self.index}"

    @staticmethod
    def from_name(name: str) -> Role:
        """Return the role with ``name``.

        Raises:
            ClusterError: no role has such a name.
        """
        kind, _, index = name.partition("-")
        if kind == "scheduler" or (kind in {"server", "worker"} and index.isdecimal()):
            return Role(cast(RoleKind, kind), int(index or 0))
        raise ClusterError(f"'{name}' is not the name of a role")


def roles(cluster: ClusterConfig) -> Iterator[Role]:
    """Yield all roles of a job, in the order in which they start. Workers that hold the tables need no others."""
    if not cluster.workers_hold_tables:
        yield Role("scheduler", 0)
    for index in range(cluster.servers):
        yield Role("server", index)
    for index in range(cluster.workers):
        yield Role("worker", index)


def missing_hosts(cluster: ClusterConfig, hosts: Mapping[str, AcceptedRoles]) -> int:
    """Return how many more hosts a job needs; the first of ``hosts``, the coordinator's, accepts all roles."""
    if not cluster.one_role_per_host:
        return max(0, cluster.hosts - len(hosts))
    accepted = list(hosts.values())[1:]
    lacking = max(0, cluster.servers - accepted.count("server")) + max(0, cluster.workers - accepted.count("worker"))
    return max(0, lacking - accepted.count("all"))


UNPLACED = {"coordinator_address": None, "host": "127.0.0.1"}
"""Keys of ``cluster`` in a job whose hosts set their addresses when they start."""


def sizes_on_hosts(cluster: ClusterConfig, hosts: int) -> dict[str, int]:
    """Return ``servers`` and ``workers`` of a job on ``hosts`` hosts, where it leaves them open; empty if not.

    Each host gets a worker unless the job says how many. It also gets a server unless the workers are to hold the
    tables: there are several, ``servers`` is given as 0, or ``store`` is sharded.
    """
    given = cluster.model_fields_set
    if hosts == 1 or cluster.workers > 1 or (cluster.servers and "workers" in given):
        return {}
    if cluster.servers:
        return {"workers": hosts}
    if "workers" in given and "servers" not in given:  # one worker, whose tables are on all hosts
        return {"servers": hosts}
    without_servers = "servers" in given and cluster.store != "mxnet"
    is_held = without_servers or cluster.store == "sharded"
    return {"servers": 0 if is_held else hosts, "workers": hosts}


def assign_roles(cluster: ClusterConfig, hosts: Mapping[str, AcceptedRoles]) -> dict[str, list[Role]]:
    """Assign the roles of a job to ``hosts``, of which the first is the coordinator's; spare hosts are left out.

    The first host gets the scheduler, if there is one. Servers and workers go in turn to the hosts that accept them;
    with ``cluster.one_role_per_host`` the first host gets none of them unless no other host accepts them.
    """
    first = next(iter(hosts))
    if not cluster.one_role_per_host:
        hosts = dict(islice(hosts.items(), cluster.hosts))
    assigned: dict[str, list[Role]] = {host: [] for host in hosts}
    for kind, count in Counter(role.kind for role in roles(cluster)).items():
        eligible = [first] if kind == "scheduler" else _eligible_hosts(cluster, kind, hosts, assigned)
        for index in range(count):
            assigned[eligible[index % len(eligible)]].append(Role(kind, index))
    return {host: local for host, local in assigned.items() if local or not cluster.one_role_per_host}


def _eligible_hosts(
    cluster: ClusterConfig, kind: RoleKind, hosts: Mapping[str, AcceptedRoles], assigned: Mapping[str, list[Role]]
) -> list[str]:
    """Return the hosts among which the roles of ``kind`` are divided."""
    accepting = [host for host, accepted in hosts.items() if accepted in {kind, "all"}]
    if not cluster.one_role_per_host:
        return accepting
    first = accepting.pop(0)
    accepting.sort(key=lambda host: hosts[host] == "all")  # hosts that accept other kinds too are kept for those
    return [host for host in accepting if not assigned[host]] or accepting or [first]


@dataclass(frozen=True)
class Address:
    """A host and a port. For MXNet the host must be numeric, since it cannot bind to a name."""

    host: str
    port: int

    @staticmethod
    def parse(text: str, source: Text) -> Address:
        """Parse ``HOST:PORT``; ``source`` names the option or key that holds it, for errors.

        Raises:
            InputError: ``text`` is something else.
        """
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise InputError(source, f": expected HOST:PORT, as in 10.0.0.1:7070, but found '{text}'")
        return Address(host, int(port))

    def __str__(self) -> str:
        """Return ``HOST:PORT``."""
        return f"{self.host}:{self.port}"


def free_address(cluster: ClusterConfig) -> Address:
    """Return the numeric address of ``cluster.host``, where this host's roles listen, and a port that is free there.

    It is none of those that the kernel assigns: what listens there starts a second later, and until then the kernel
    could assign the port to a connection of any process.

    Raises:
        InputError: it is not an address of this machine.
    """
    try:
        host = socket.getaddrinfo(cluster.host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
        ports = _draw_ports()
        while True:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                try:
                    probe.bind((host, ports.pop()))
                    return Address(*probe.getsockname())
                except OSError as error:
                    if error.errno != errno.EADDRINUSE or not ports:
                        raise
    except socket.gaierror as error:
        raise InputError(f"cluster.host: '{cluster.host}' is not a host name or address: {error.strerror}") from error
    except OSError as error:
        problem = f"cannot listen on '{cluster.host}': {error.strerror}; expected an address of this host"
        raise InputError(f"cluster.host: {problem}") from error


def _draw_ports() -> list[int]:
    """Draw ports below those that the kernel assigns; the first, 0, stands for one that it assigns."""
    try:
        first_assigned = int(_ASSIGNED_PORTS.read_text(encoding="ascii").split()[0])
    except OSError:
        return [0]
    ports = range(_FIRST_PORT, first_assigned)
    return [0, *random.sample(ports, min(len(ports), _TRIED_PORTS))]


def local_address(destination: Address) -> str:
    """Return the numeric address of this host from which packets to ``destination`` leave. No packet is sent.

    Raises:
        InputError: there is no route.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((destination.host, destination.port))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise InputError(
            f"{destination}: no route from this host: {error.strerror}; set its address with ",
            Option("advertise_address"),
        ) from error


def check_local_address(address: str) -> None:
    """Check that roles of this host can listen on ``address``.

    Raises:
        InputError: it is not numeric, or not of this machine.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((str(ipaddress.IPv4Address(address)), 0))
    except ValueError:
        raise OptionError("advertise_address", found=address, expected="a numeric address, as in 10.0.0.2") from None
    except OSError as error:
        raise OptionError(
            "advertise_address", found=address, problem=f"cannot listen there: {error.strerror}"
        ) from error
