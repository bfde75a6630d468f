"""Measure what one TCP connection between two hosts moves: one side listens, the other sends.

python -m suite.link_speed receive 10.0.0.1             # prints its port, then the bytes and seconds it received
python -m suite.link_speed send 10.0.0.1 PORT SECONDS
"""

from __future__ import annotations

import socket
import sys
import time

CHUNK_BYTES = 1 << 20
ACCEPT_SECONDS = 30.0


def receive(address: str) -> None:
    """Print a free port of ``address``; then, once the sender has closed, the bytes and seconds since the first."""
    with socket.create_server((address, 0)) as listener:
        listener.settimeout(ACCEPT_SECONDS)
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
        buffer = bytearray(CHUNK_BYTES)
        total, begin = connection.recv_into(buffer), time.perf_counter()
        while count := connection.recv_into(buffer):
            total += count
        print(total, time.perf_counter() - begin)


def send(address: str, port: int, seconds: float) -> None:
    """Send for ``seconds``."""
    chunk, end = bytes(CHUNK_BYTES), time.perf_counter() + seconds
    with socket.create_connection((address, port), timeout=ACCEPT_SECONDS) as connection:
        while time.perf_counter() < end:
            connection.sendall(chunk)


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(sys.argv[2])
    else:
        send(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
