"""Who can connect to a role: by a filter on its TCP socket, or as its user to its Unix socket."""

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from waiting import wait_until

from crossfade.kvstore.mxnet.ports import filter_next_listener, private_sockets

FOREIGN = "10.255.255.254"


@contextmanager
def filtered(hosts: Sequence[str]) -> Iterator[socket.socket]:
    """Listen on loopback, with the filter for ``hosts`` once it is attached."""
    before = set(threading.enumerate())
    filter_next_listener(hosts)
    started = set(threading.enumerate()) - before  # none without hosts; threads of other tests may end at any time
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wait_until(lambda: not any(thread.is_alive() for thread in started), "the filter")
        yield listener


def connects(listener: socket.socket) -> bool:
    """Return whether a client gets a byte through to ``listener``."""
    with ExitStack() as stack:
        try:
            client = stack.enter_context(socket.create_connection(listener.getsockname(), timeout=0.5))
        except TimeoutError:
            return False
        accepted = stack.enter_context(listener.accept()[0])
        client.sendall(b"x")
        return accepted.recv(1) == b"x"


def test_listener_admits_only_the_hosts_of_the_job() -> None:
    with socket.create_server(("127.0.0.1", 0)) as earlier:
        with filtered([FOREIGN]) as listener:
            assert not connects(listener)
            assert connects(earlier)  # such as that of metrics, which was there before
        with filtered([FOREIGN, "10.0.0.7"]) as listener:
            assert not connects(listener)
        for host in ("127.0.0.1", "127.0.0.9"):  # connections between any loopback addresses come from 127.0.0.1
            with filtered([FOREIGN, host, "192.0.2.1"]) as listener:
                assert connects(listener)


def test_thousand_hosts_fit_into_the_filter() -> None:
    hosts = [f"10.1.{number // 250}.{number % 250}" for number in range(1000)]
    with filtered(hosts) as listener:
        assert not connects(listener)
    with filtered([*hosts, "127.0.0.1"]) as listener:
        assert connects(listener)


def test_connection_opened_before_the_filter_is_closed() -> None:
    from crossfade.kvstore.mxnet import ports

    earlier = {each.inode for each in ports._tcp_sockets() if each.listens}  # such as those of other tests' servers
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        accepted = stack.enter_context(listener.accept()[0])
        ports._filter([FOREIGN], known=earlier)
        accepted.settimeout(10)
        assert accepted.recv(1) == b""
        client.settimeout(10)
        assert not connects(listener)


def test_unix_socket_is_the_users_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    os.umask(before)
    with private_sockets(), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o600
    (tmp_path / "file").touch()
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~before
