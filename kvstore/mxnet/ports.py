"""Limit who can connect to a role: ps-lite itself accepts everyone, and one malformed message aborts the process.

- Roles of a job on one host use Unix sockets (``DMLC_LOCAL``), which only the job's user may open (``private_sockets``)
  and which the agent removes once all roles are connected: from then on nobody can connect.
- Roles on several hosts use TCP, with a filter of the kernel on the listening socket that drops all packets from other
  addresses than the job's hosts (``filter_next_listener``). It needs no privileges, and ends with the socket.
"""

from __future__ import annotations

import ctypes
import ipaddress
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

SOCKET_FOLDER = Path("/tmp")  # noqa: S108 - where ps-lite creates its Unix sockets
_SO_ATTACH_FILTER = 26
_LOAD_WORD, _AND, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
"""Operations of classic BPF: BPF_LD | BPF_W | BPF_ABS, BPF_ALU | BPF_AND, BPF_JMP | BPF_JEQ, BPF_RET, all with a
constant."""
_SOURCE_ADDRESS = 0xFFF00000 + 12
"""SKF_NET_OFF, the start of the IP header, and the offset of the source address in it."""
_ALL, _NOTHING = 0xFFFFFFFF, 0
_LOOPBACK = ipaddress.IPv4Network("127.0.0.0/8")
_POLL_SECONDS = 0.001
_logger = logging.getLogger(__name__)


@contextmanager
def private_sockets() -> Iterator[None]:
    """Create Unix sockets, in this block, that only the user of this process may connect to."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def filter_next_listener(hosts: Sequence[str]) -> None:
    """Admit only packets from ``hosts``, numeric addresses, to the next TCP socket on which this process listens.

    A thread attaches the filter within milliseconds, and closes what other hosts have opened before. Without ``hosts``
    nothing is filtered.
    """
    if hosts:
        known = {listener.inode for listener in _tcp_sockets() if listener.listens}
        threading.Thread(target=_filter, args=(list(hosts), known), name="port filter", daemon=True).start()


def _filter(hosts: Sequence[str], known: set[int]) -> None:
    while not (found := [each for each in _tcp_sockets() if each.listens and each.inode not in known]):
        time.sleep(_POLL_SECONDS)
    for listener in found:
        try:
            _attach(listener.descriptor, _program(hosts))
        except OSError as error:
            _logger.warning(
                "port %d is open to all hosts that can reach it: the kernel accepts no filter (%s); let only the "
                "job's hosts reach it (a firewall or security group)",
                listener.port,
                error.strerror,
            )
            continue
        for other in _tcp_sockets():
            if other.port == listener.port and other.peer is not None and not _admits(hosts, other.peer):
                other.shut_down()


class _TcpSocket:
    """A TCP socket of this process, by its descriptor, which MXNet may close at any time."""

    def __init__(self, descriptor: int, inode: int, opened: socket.socket) -> None:
        self.descriptor, self.inode = descriptor, inode
        self.port = opened.getsockname()[1]
        self.listens = bool(opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        self.peer: str | None = None
        with suppress(OSError):
            self.peer = opened.getpeername()[0]

    def shut_down(self) -> None:
        with suppress(OSError), socket.socket(fileno=os.dup(self.descriptor)) as duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)


def _tcp_sockets() -> Iterator[_TcpSocket]:
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if str(link.readlink()).startswith("socket:"):
                with socket.socket(fileno=os.dup(int(link.name))) as duplicate:
                    if (duplicate.family, duplicate.type) == (socket.AF_INET, socket.SOCK_STREAM):
                        yield _TcpSocket(int(link.name), os.fstat(duplicate.fileno()).st_ino, duplicate)


def _admits(hosts: Sequence[str], address: str) -> bool:
    source = ipaddress.IPv4Address(address)
    return any(
        source == (host := ipaddress.IPv4Address(each)) or (host.is_loopback and source in _LOOPBACK) for each in hosts
    )


def _program(hosts: Sequence[str]) -> bytes:
    """Return a program of classic BPF that passes packets from ``hosts``.

    Connections between any two loopback addresses come from 127.0.0.1, so one of them admits all.
    """
    instructions = [(_LOAD_WORD, 0, 0, _SOURCE_ADDRESS)]
    for host in sorted(map(ipaddress.IPv4Address, set(hosts))):
        if not host.is_loopback:
            instructions += [(_JUMP_IF_EQUAL, 0, 1, int(host)), (_RETURN, 0, 0, _ALL)]
    if any(map(_LOOPBACK.__contains__, map(ipaddress.IPv4Address, hosts))):
        network = int(_LOOPBACK.network_address)
        instructions += [(_AND, 0, 0, int(_LOOPBACK.netmask)), (_JUMP_IF_EQUAL, 0, 1, network), (_RETURN, 0, 0, _ALL)]
    instructions.append((_RETURN, 0, 0, _NOTHING))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)


def _attach(descriptor: int, program: bytes) -> None:
    code = ctypes.create_string_buffer(program, len(program))
    option = struct.pack("HP", len(program) // 8, ctypes.addressof(code))  # struct sock_fprog
    with socket.socket(fileno=os.dup(descriptor)) as duplicate:
        duplicate.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)
