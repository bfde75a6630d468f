"""Several hosts with addresses of their own on this machine: network namespaces, joined by a bridge in one more.

with network(3) as hosts:
    started("agent", "--join", f"{hosts[0].address}:7070", cwd=cwd, within=hosts[1].within)
    hosts[2].cut(), hosts[2].mend()

Nothing but their own traffic reaches them. They are held by processes that end when this one does, however it ends, and
are gone, with what joins them, once nothing runs in them any more.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_TOOLS = ("ip", "nsenter", "unshare")


def unavailable() -> str | None:
    """Why there can be no network of hosts here, if that is so."""
    if os.geteuid() != 0:
        return "network namespaces are for root"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"there is no {missing[0]} here"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode != 0:
        return "the kernel gives no network namespaces here"
    return None


class _Namespace:
    """A network namespace, which lasts as long as something runs in it."""

    def __init__(self) -> None:
        # It ends when its input does, which nobody but this process holds open.
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

    def close(self) -> None:
        self._holder.communicate()


class Host:
    """One host: commands that run ``within`` it have its address and reach the others."""

    def __init__(self, namespace: _Namespace, switch: _Namespace, number: int) -> None:
        self.address = f"10.0.0.{number}"
        self.within = namespace.within
        self._switch, self._port = switch, f"port{number}"
        switch.ip("link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", str(namespace.pid))
        switch.ip("link", "set", self._port, "master", "switch", "up")
        namespace.ip("address", "add", f"{self.address}/24", "dev", "eth0")
        namespace.ip("link", "set", "eth0", "up")

    def cut(self) -> None:
        """Pull its cable at the other end: what is sent is lost, and nobody says so."""
        self._switch.ip("link", "set", self._port, "down")

    def mend(self) -> None:
        """Plug it in again."""
        self._switch.ip("link", "set", self._port, "up")


@contextmanager
def network(count: int) -> Iterator[list[Host]]:
    """``count`` hosts that reach each other."""
    with ExitStack() as stack:
        switch, *namespaces = [_Namespace() for _ in range(1 + count)]
        for namespace in (switch, *namespaces):
            stack.callback(namespace.close)
        switch.ip("link", "add", "switch", "type", "bridge")
        switch.ip("link", "set", "switch", "up")
        yield [Host(namespace, switch, number) for number, namespace in enumerate(namespaces, 1)]
