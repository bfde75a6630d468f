"""Connect to the ports of processes as others do that do not belong to the job."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

_CONNECT = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor

def connects(address):
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True

addresses = sys.argv[1:]
with ThreadPoolExecutor(len(addresses)) as pool:
    print(*(address for address, found in zip(addresses, pool.map(connects, addresses)) if found))
"""


def listening(pid: int) -> set[str]:
    """Return the TCP addresses, HOST:PORT, on which a process listens, which may be in another network namespace."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            inodes.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_, inode = line.split()[:10]
        if state == "0A" and inode in inodes:
            host, port = local.split(":")
            found.add(f"{socket.inet_ntoa(bytes.fromhex(host)[::-1])}:{int(port, 16)}")
    return found


def reachable(addresses: Iterable[str], within: Sequence[str]) -> set[str]:
    """Return those of ``addresses`` to which a process ``within`` a host can connect. It sends nothing."""
    command = [*within, sys.executable, "-c", _CONNECT, *addresses]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ)).stdout
    return set(output.split())
