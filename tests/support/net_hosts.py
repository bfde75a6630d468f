"""Several hosts with their own addresses on this machine: network namespaces, connected by a bridge in another one.

with network(3) as hosts:
    started("agent", "--join", f"{hosts[0].address}:7070", cwd=cwd, within=hosts[1].within)
    hosts[2].limit_link(10)         # Gbit/s in each direction

Only their own traffic reaches them. They are held by processes that end when this one does, however it ends, and vanish
with their bridge once nothing runs in them.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from server_process import is_ok
from waiting import wait_until

_TOOLS = ("ip", "nsenter", "unshare", "tc")
_BURST, _LATENCY = "256kb", "50ms"
"""Tokens and queue of a limited link. TCP hands the link up to 64 KiB at a time, which the burst must hold: larger
packets are cut into many small ones. The queue holds what TCP may have under way, so that no packet is dropped."""


def unavailable() -> str | None:
    """Return why no network of hosts can be created here; None if it can."""
    if os.geteuid() != 0:
        return "network namespaces require root"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"{missing[0]} is not installed"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode != 0:
        return "the kernel creates no network namespaces here"
    return None


class _Namespace:
    """A network namespace, which exists as long as a process runs in it."""

    def __init__(self) -> None:
        # It ends when its input does, which only this process holds open.
        command = ["unshare", "--net", "sh", "-c", "echo ready; exec cat"]
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        self.pid = self._holder.pid
        self.within = ("nsenter", f"--net=/proc/{self.pid}/ns/net")
        self.ip("link", "set", "lo", "up")

    def ip(self, *arguments: str) -> None:
        """Run ``ip`` in it."""
        subprocess.run([*self.within, "ip", *arguments], check=True)

    def limit(self, device: str, gbits: float) -> None:
        """Limit what leaves it through ``device``."""
        bucket = ("tbf", "rate", f"{gbits:g}gbit", "burst", _BURST, "latency", _LATENCY)
        subprocess.run([*self.within, "tc", "qdisc", "replace", "dev", device, "root", *bucket], check=True)

    def close(self) -> None:
        self._holder.communicate()


class Host:
    """One host: commands that run ``within`` it have its address and reach the others."""

    def __init__(self, namespace: _Namespace, switch: _Namespace, number: int) -> None:
        self.address = f"10.0.0.{number}"
        self.within = namespace.within
        self._namespace, self._switch, self._port = namespace, switch, f"port{number}"
        switch.ip("link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", str(namespace.pid))
        switch.ip("link", "set", self._port, "master", "switch", "up")
        namespace.ip("address", "add", f"{self.address}/24", "dev", "eth0")
        namespace.ip("link", "set", "eth0", "up")

    def limit_link(self, gbits: float) -> None:
        """Limit the link to ``gbits`` Gbit/s in each direction. Packets are queued where they enter it: at both
        ends."""
        self._namespace.limit("eth0", gbits)
        self._switch.limit(self._port, gbits)


@contextmanager
def network(count: int) -> Iterator[list[Host]]:
    """Create ``count`` hosts that reach each other."""
    with ExitStack() as stack:
        switch, *namespaces = [_Namespace() for _ in range(1 + count)]
        for namespace in (switch, *namespaces):
            stack.callback(namespace.close)
        switch.ip("link", "add", "switch", "type", "bridge")
        switch.ip("link", "set", "switch", "up")
        yield [Host(namespace, switch, number) for number, namespace in enumerate(namespaces, 1)]


@contextmanager
def other_machine() -> Iterator[tuple[str, int]]:
    """Run an HTTP server on a machine next to this one; yield its address and port.

    It has no route to other networks, so that it answers only addresses of the network between the two.
    """
    device, address, port = f"cf{os.getpid()}", "198.18.77.2", 8000
    with ExitStack() as stack:
        machine = _Namespace()
        stack.callback(machine.close)
        subprocess.run(
            ["ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", str(machine.pid)], check=True
        )
        subprocess.run(["ip", "address", "add", "198.18.77.1/24", "dev", device], check=True)
        subprocess.run(["ip", "link", "set", device, "up"], check=True)
        machine.ip("address", "add", f"{address}/24", "dev", "eth0")
        machine.ip("link", "set", "eth0", "up")
        command = [*machine.within, sys.executable, "-m", "http.server", "--bind", address, str(port)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(server.wait)
        stack.callback(server.kill)
        wait_until(lambda: is_ok(f"http://{address}:{port}", seconds=1.0), "the server of the other machine")
        yield address, port
