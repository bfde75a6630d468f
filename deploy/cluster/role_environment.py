"""The environment of a role's process: its threads and memory, and how its store's and Horovod's processes connect.

role_environment(role, desired, "10.0.0.2", cores=8)             # OMP_NUM_THREADS, DMLC_ROLE, DMLC_PS_ROOT_URI, ...
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path

import psutil

from crossfade.base.errors import ClusterError
from crossfade.base.machine import thread_variables
from crossfade.deploy.cluster.messages import DesiredState
from crossfade.deploy.cluster.role_variables import ADDRESS_VARIABLE as ROLE_ADDRESS_VARIABLE
from crossfade.deploy.cluster.role_variables import RANK_VARIABLE, RANKS_VARIABLE
from crossfade.deploy.topology import TOKEN_FILE_VARIABLE, TOKEN_VARIABLE, Address, Role
from crossfade.kvstore.mxnet.ports import SOCKET_FOLDER
from crossfade.trainer.model.allreduce import ADDRESS_VARIABLE, INTERFACE_VARIABLE, PORT_VARIABLE
from crossfade.trainer.model.engines.engine import LOCAL_RANK_VARIABLE

# A step's buffers are some megabytes each. By default glibc returns such memory to the kernel and allocates it again in
# every step, which costs a role up to 10 ms of page faults.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**26), "MALLOC_TRIM_THRESHOLD_": str(2**28)}
_SOCKET_NUMBERS = 2**31 - 65536
# Variables that roles must not inherit: ps-lite reads PORT, and those of another job would name its scheduler or ranks.
_DROPPED_PREFIXES = ("DMLC_", "PS_", "HOROVOD_")
_DROPPED = ("PORT", TOKEN_VARIABLE, TOKEN_FILE_VARIABLE, RANK_VARIABLE, RANKS_VARIABLE)


def socket_number() -> int:
    """Draw the number that names a Unix socket in place of a port: too large to collide with any other."""
    return secrets.randbelow(_SOCKET_NUMBERS) + 65536


def role_environment(
    role: Role, desired: DesiredState, address: str, cores: int, *, on_one_host: bool = False
) -> dict[str, str]:
    """Return the environment of ``role``'s process on this host, which has ``address`` and runs ``desired``.

    It is this process's, without the token and other jobs' variables, and with those by which the roles find each
    other: Unix sockets if they are all ``on_one_host``, which ps-lite names after the numbers of ports. A host's
    workers divide its ``cores`` and a server gets one, unless the thread variables are set already.

    Raises:
        ClusterError: no network interface has the host's address.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in _DROPPED and not name.startswith(_DROPPED_PREFIXES)
    }
    workers_here = [name for name in desired.roles if name.startswith("worker")]
    is_worker = role.kind == "worker"
    return {
        **thread_variables(len(workers_here) if is_worker else cores, cores),
        **_MALLOC,
        "PYDANTIC_DISABLE_PLUGINS": "1",  # it would look for them in the metadata of all packages
        **inherited,
        ROLE_ADDRESS_VARIABLE: address,
        **({LOCAL_RANK_VARIABLE: str(workers_here.index(role.name))} if is_worker else {}),
        **_connecting_variables(role, desired, address, on_one_host),
    }


def _connecting_variables(role: Role, desired: DesiredState, address: str, on_one_host: bool) -> dict[str, str]:
    """Return a worker's rank, or the variables of MXNet and Horovod. Where ranks meet is not for an environment."""
    if desired.scheduler is None:
        return {RANK_VARIABLE: str(role.index), RANKS_VARIABLE: str(desired.workers)}
    rendezvous = desired.rendezvous if role.kind == "worker" else None
    return {
        "DMLC_ROLE": role.kind,
        "DMLC_PS_ROOT_URI": desired.scheduler.host,
        "DMLC_PS_ROOT_PORT": str(desired.scheduler.port),
        "DMLC_NODE_HOST": address,
        "DMLC_NUM_SERVER": str(desired.servers),
        "DMLC_NUM_WORKER": str(desired.workers),
        **({"DMLC_LOCAL": "1", "PORT": str(socket_number())} if on_one_host else {}),
        **(_horovod_environment(rendezvous, address) if rendezvous else {}),
    }


def socket_path(role: Role, variables: Mapping[str, str]) -> Path | None:
    """Return the Unix socket of ``role`` with the environment ``variables``; None if it uses TCP."""
    if "DMLC_LOCAL" not in variables:
        return None
    return SOCKET_FOLDER / variables["DMLC_PS_ROOT_PORT" if role.kind == "scheduler" else "PORT"]


def _horovod_environment(rendezvous: str, address: str) -> dict[str, str]:
    """Return the variables by which Horovod finds the rendezvous and listens at ``address``."""
    # Horovod appends ":PORT/SCOPE/KEY" to what it takes for a host.
    port = Address.parse(rendezvous.partition("/")[0], "rendezvous").port
    return {
        ADDRESS_VARIABLE: rendezvous,
        PORT_VARIABLE: str(port),
        INTERFACE_VARIABLE: interface_of(address),
    }


def interface_of(address: str) -> str:
    """Return the name of this host's network interface with the numeric ``address``, which Gloo requires.

    Raises:
        ClusterError: no interface has it.
    """
    # All of 127.0.0.0/8 belongs to the loopback interface, which lists one address.
    listed = "127.0.0.1" if ipaddress.ip_address(address).is_loopback else address
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.family == socket.AF_INET and entry.address == listed for entry in addresses):
            return name
    raise ClusterError(f"no network interface of this host has the address {address}")
