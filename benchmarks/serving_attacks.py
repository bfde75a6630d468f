"""Attack `crossfade serve` on loopback beside ordinary requests, and measure whether these are delayed.

    .venv/bin/python benchmarks/serving_attacks.py                      # ten minutes, 200 ordinary requests/s
    .venv/bin/python benchmarks/serving_attacks.py --seconds 30 --run runs/lastfm

Three processes beside the server: one sends ordinary requests at a fixed rate, and one the health check ten times a
second; their latency counts from the moment at which a request is due. The third sends hostile requests of every kind
in turn, by several threads without pause. It ends with exit code 1 if p99 reaches --p99 milliseconds, an ordinary
request or a health check fails, or the log of the server has a traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
from serving import trained

_CONNECTIONS, _HEALTH_RATE, _HEALTH_SECONDS = 32, 10, 5.0
_ANSWER_SECONDS = 3.0
"""How long an attacker waits for an answer: some of what it sends is no request yet."""
_THREADS, _ITEMS, _CUSTOMERS = 6, 4_000, 2_000
_JSON = b"Content-Type: application/json\r\n"
_M = 1 << 20


def main() -> None:
    """Print a line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600, metavar="N", help="attack for N seconds (default: 600)")
    parser.add_argument(
        "--rate", type=int, default=200, metavar="N", help="ordinary requests per second (default: 200)"
    )
    parser.add_argument("--p99", type=float, default=50.0, metavar="MS", help="the limit of p99 (default: 50)")
    parser.add_argument("--run", type=Path, metavar="DIR", help="serve this run (default: one on synthetic data)")
    parser.add_argument("--calm", action="store_true", help="send no hostile requests, to compare")
    parser.add_argument("--only", default="", metavar="TEXT", help="attack only by kinds whose name begins with TEXT")
    arguments = parser.parse_args()
    if arguments.only and not any(kind.startswith(arguments.only) for kind in _kinds(("", 0), 0)):
        parser.error(f"--only {arguments.only}: no kind has such a name")
    run = arguments.run or trained(_ITEMS, _CUSTOMERS, 1)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryFile("w+") as log, served(run, log) as (address, server), context.Pool(3) as pool:
        watched = MemoryWatch(server)
        ordinary = pool.apply_async(send_ordinary, (address, paths(address), arguments.rate, arguments.seconds))
        health = pool.apply_async(send_ordinary, (address, ["/healthz"], _HEALTH_RATE, arguments.seconds))
        hostile = pool.apply_async(attack, (address, 0 if arguments.calm else arguments.seconds, arguments.only))
        found, checked, attacked = ordinary.get(), health.get(), hostile.get()
        memory = watched.stop()
        log.seek(0)
        printed = log.read()
    report("ordinary requests", found)
    report("health checks", checked)
    print(f"hostile requests: {sum(attacked.values()):,}")
    for (kind, answer), count in sorted(attacked.items()):
        print(f"  {kind}: {answer}: {count:,}")
    print(f"memory of the server: at most {memory / _M:,.0f} MiB; its log: {len(printed.splitlines()):,} lines")
    failed = found["failed"] or checked["failed"] or "Traceback" in printed
    if failed:
        print(printed[-4000:])
    sys.exit(1 if failed or found["p99"] >= arguments.p99 else 0)


@contextmanager
def served(run: Path, log: Any) -> Iterator[tuple[tuple[str, int], psutil.Process]]:
    """Serve ``run`` at a free port."""
    words = [sys.executable, "-m", "crossfade", "serve", str(run), "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        address = re.search(r"http://([^:]+):(\d+)", process.stdout.readline())
        assert address is not None
        while True:
            try:
                urllib.request.urlopen(f"{address[0]}/healthz").close()
            except OSError:
                time.sleep(0.1)
            else:
                break
        yield (address[1], int(address[2])), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


class MemoryWatch:
    """Keeps the most memory that the server and its processes have had together."""

    def __init__(self, server: psutil.Process) -> None:
        self._server, self._most = server, 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> int:
        """Return the most bytes."""
        self._stopped.set()
        self._thread.join()
        return self._most

    def _run(self) -> None:
        while not self._stopped.wait(1.0):
            used = 0
            for process in [self._server, *self._server.children(recursive=True)]:
                with suppress(psutil.Error):
                    used += process.memory_info().rss - process.memory_info().shared
            self._most = max(self._most, used)


def paths(address: tuple[str, int]) -> list[str]:
    """Return ordinary requests: recommendations, neighbors, vectors, and searches of random rows."""
    with urllib.request.urlopen(f"http://{address[0]}:{address[1]}/model") as response:
        model = json.load(response)
    generator, found = random.Random(1), []
    for entity, route in ((model["query"], "recommend"), (model["item"], "similar"), (model["item"], "vector")):
        rows = []
        for digit in "123456789":
            url = f"http://{address[0]}:{address[1]}/search?entity={quote(entity)}&k=100&text={digit}"
            with urllib.request.urlopen(url) as response:
                rows += json.load(response)["rows"]
        found += [f"/{route}?id={quote(str(row['id']))}" for row in generator.choices(rows, k=300)]
    return [*found, *(f"/search?text={number}" for number in range(1, 30))]


def send_ordinary(address: tuple[str, int], paths: list[str], rate: int, seconds: int) -> dict[str, Any]:
    """Send GET requests of random ``paths`` at ``rate`` per second; return percentiles in ms and failures."""
    return asyncio.run(_send_ordinary(address, paths, rate, seconds))


async def _send_ordinary(address: tuple[str, int], paths: list[str], rate: int, seconds: int) -> dict[str, Any]:
    due: asyncio.Queue[float | None] = asyncio.Queue()
    latencies: list[float] = []
    failures: Counter[str] = Counter()

    async def client(generator: random.Random) -> None:
        reader, writer = await asyncio.open_connection(*address)
        while (at := await due.get()) is not None:
            try:
                writer.write(f"GET {generator.choice(paths)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                async with asyncio.timeout(_HEALTH_SECONDS):
                    status = await _read_answer(reader)
                # The search for ids that are unknown or not trained is ordinary too.
                if status not in (200, 404):
                    failures[str(status)] += 1
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                failures[repr(error)] += 1
                writer.close()
                reader, writer = await asyncio.open_connection(*address)
            latencies.append(time.monotonic() - at)
        writer.close()

    clients = [asyncio.create_task(client(random.Random(number))) for number in range(min(_CONNECTIONS, rate))]
    start = time.monotonic()
    for number in range(rate * seconds):
        at = start + number / rate
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        due.put_nowait(at)
    for _ in clients:
        due.put_nowait(None)
    await asyncio.gather(*clients)
    latencies.sort()
    percentiles = {f"p{share:g}": latencies[int(len(latencies) * share / 100)] * 1e3 for share in (50, 99, 99.9)}
    return {**percentiles, "max": latencies[-1] * 1e3, "requests": len(latencies), "failed": dict(failures)}


async def _read_answer(reader: asyncio.StreamReader) -> int:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = re.search(r"content-length: (\d+)", head)
    await reader.readexactly(int(length[1]) if length else 0)
    return int(head.split()[1])


def report(name: str, found: dict[str, Any]) -> None:
    """Print a measurement."""
    print(
        f"{name}: {found['requests']:,}, p50 {found['p50']:.1f} ms, p99 {found['p99']:.1f} ms, p99.9 "
        f"{found['p99.9']:.1f} ms, max {found['max']:.1f} ms, failed {found['failed'] or 0}",
        flush=True,
    )


def _post(body: bytes, path: str = "/recommend", headers: bytes = _JSON) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n".encode()
    return head + headers + b"\r\n" + body


def _get(path: str, headers: bytes = b"") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n".encode() + headers + b"\r\n"


def _filters(number: int) -> list[dict[str, Any]]:
    """Return as many filters as a request may have, as large as it may be; ``number`` makes them new each time."""
    values = [f"{number} {place} ' OR \" -- ".ljust(150, "x") for place in range(100)]
    return [{"column": column, "op": "in", "value": values} for column in ("name", "genre") * 4]


def _bodies() -> dict[str, bytes]:
    """Return bodies that are no request."""
    return {
        "a million keys": b"{" + b",".join(b'"k%d":0' % number for number in range(7 * _M // 11)) + b"}",
        "1 MB of keys": b"{" + b",".join(b'"k%d":0' % number for number in range(_M // 11)) + b"}",
        "keys of an item": b'{"histories":[[{' + b",".join(b'"k%d":0' % n for n in range(_M // 11)) + b"}]]}",
        "empty lists": b"[" + b",".join([b"[]"] * (7 * _M // 3)) + b"]",
        "empty objects": b"[" + b",".join([b"{}"] * (7 * _M // 3)) + b"]",
        "numbers": b"[" + b",".join([b"1"] * (3 * _M)) + b"]",
        "nesting": b"[" * (7 * _M),
        "invalid ids": json.dumps({"ids": [[]] * 100_000}).encode(),
        "invalid items": json.dumps({"histories": [[{"x": 1}] * 1000] * 100}).encode(),
        "a long text": b'{"ids":["' + b"x" * (7 * _M) + b'"]}',
        "escapes": b'{"ids":["' + b"\\u00e9" * _M + b'"]}',
        "NaN": b'{"ids":[NaN]}',
        "Infinity": b'{"ids":["1"],"k":Infinity}',
        "1e999": b'{"ids":["1"],"k":1e999}',
        "a lone surrogate": b'{"ids":["\\ud800"]}',
        "no UTF-8": b'{"ids":["\xff\xfe"]}',
        "a long number": b'{"ids":[' + b"1" * 100_000 + b"]}",
        "duplicate keys": b"{" + b",".join([b'"ids":["1"]'] * 50_000) + b"}",
        "too large": b" " * (9 * _M),
        "nothing": b"",
    }


def _heads() -> dict[str, bytes]:
    """Return requests whose heads or framing are hostile."""
    chunked = b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n" + _JSON + b"\r\n"
    return {
        "many headers": _get("/healthz", b"".join(b"a%d: b\r\n" % number for number in range(5000))),
        "a long header": _get("/healthz", b"a: " + b"b" * (200 << 10) + b"\r\n"),
        "a long path": _get("/" + "a" * (200 << 10)),
        "many parameters": _get("/recommend?" + "&".join(f"a{number}=1" for number in range(6000))),
        "100 unknown parameters": _get("/recommend?" + "&".join(f"a{number}=1" for number in range(100))),
        "pipelined": _get("/healthz") * 2000,
        "pipelined bodies": _post(b'{"ids":[NaN]}') * 300,
        "a huge chunk": chunked + b"ffffffffffffffff\r\n" + b"x" * 1000,
        "a chunk of 2**31": chunked + b"7fffffff\r\n" + b"x" * 1000,
        "a negative chunk": chunked + b"-1\r\n",
        "tiny chunks": chunked + b"1\r\n \r\n" * 100_000 + b"0\r\n\r\n",
        "chunk extensions": chunked + (b"1;" + b"a" * 1000 + b"\r\n \r\n") * 500 + b"0\r\n\r\n",
        "trailers": chunked + b"0\r\n" + b"".join(b"a%d: b\r\n" % number for number in range(5000)) + b"\r\n",
        "two lengths": _get("/healthz", b"Content-Length: 1\r\nContent-Length: 2\r\n"),
        "chunked with a length": chunked.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n") + b"0\r\n\r\n",
        "a huge length": _post(b"", headers=_JSON + b"Content-Length: 99999999999\r\n"),
        "expectation": _post(b"x" * 9, headers=_JSON + b"Expect: 100-continue\r\n")[:-9],
        "HTTP/1.0": b"GET /recommend?id=1 HTTP/1.0\r\n\r\n",
        "HTTP/0.9": b"GET /\r\n\r\n",
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9) * 100,
        "TLS": bytes.fromhex("16030100dc010000d80303") + bytes(range(200)),
        "websocket": _get("/", b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n"),
        "another method": b"X" * 5000 + b" / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "TRACE": b"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "CONNECT": b"CONNECT example.org:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "another host": b"GET /model HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        "another site": _get("/recommend?id=1", b"Sec-Fetch-Site: cross-site\r\n"),
        "null bytes": b"GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "bad escapes": _get("/search?text=%ff%ed%a0%80%zz%00"),
        "a path upwards": _get("/static-offline-docs/../../../../etc/passwd"),
        "random bytes": random.Random(1).randbytes(10_000),
        "line feeds": b"\n" * 100_000,
    }


def _kinds(address: tuple[str, int], number: int) -> dict[str, Callable[[], str]]:
    """Return what sends one request of each kind and returns the answer; ``number`` makes filters new each time."""
    made: dict[str, Callable[[], str]] = {}
    for kind, filters in (("filters", _filters(number)), ("SQL", f"id = {number} OR true")):
        made[kind] = partial(_exchange, address, _post(json.dumps({"ids": ["1000001"], "where": filters}).encode()))
    for kind, data in _fixed().items():
        made[kind] = partial(_exchange, address, data)
    return {**made, "unread answers": partial(_read_nothing, address), "held": partial(_hold, address)}


@cache
def _fixed() -> dict[str, bytes]:
    # As many lists as may be re-ranked at once.
    lists = {"ids": [str(1_000_001 + number) for number in range(2)], "k": 1000, "diversity": 0.5, "exclude": []}
    bodies = {f"body: {kind}": _post(body) for kind, body in _bodies().items()}
    return {**_heads(), **bodies, "diversity": _post(json.dumps(lists).encode())}


def attack(address: tuple[str, int], seconds: int, only: str) -> Counter[tuple[str, str]]:
    """Send hostile requests of the kinds that begin with ``only`` for ``seconds``; count each kind's answers."""
    os.nice(max(0, 10 - os.nice(0)))  # attackers are elsewhere, and take no time from the server's machine
    until, counts, lock = time.monotonic() + seconds, Counter[tuple[str, str]](), threading.Lock()
    numbers = iter(range(10**9))

    def run(seed: int) -> None:
        generator = random.Random(seed)
        while time.monotonic() < until:
            made = {kind: send for kind, send in _kinds(address, next(numbers)).items() if kind.startswith(only)}
            for kind, send in generator.sample(sorted(made.items()), len(made)):
                answer = send()
                with lock:
                    counts[kind, answer] += 1
                if time.monotonic() >= until:
                    return

    threads = [threading.Thread(target=run, args=(number,)) for number in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


def _exchange(address: tuple[str, int], data: bytes) -> str:
    """Send ``data``, and return the first line of the answer or why there is none."""
    try:
        with closing(socket.create_connection(address, timeout=_ANSWER_SECONDS)) as client:
            with suppress(ConnectionError, TimeoutError):  # the server need not read all of it
                client.sendall(data)
            return client.recv(1 << 16).split(b"\r\n")[0][:40].decode("latin-1") or "closed"
    except OSError as error:
        return type(error).__name__


def _read_nothing(address: tuple[str, int]) -> str:
    """Ask for long answers without reading them, and break off."""
    with suppress(OSError), closing(socket.create_connection(address, timeout=10)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(0.5)
        client.sendall(_get("/openapi.json") * 200)
    return "broken off"


def _hold(address: tuple[str, int]) -> str:
    """Hold connections with bodies of 8 MB of which half is sent, and others that send a byte now and then."""
    held = []
    for number in range(60):
        with suppress(OSError):
            client = socket.create_connection(address, timeout=10)
            held.append(client)
            client.settimeout(0.2)
            body = b"x" * (8 * _M)
            with suppress(OSError):
                client.sendall(_post(body)[: len(body) // 2] if number % 2 else b"GET /healthz HTTP/1.1\r\nX: ")
    for _ in range(3):
        for client in held:
            with suppress(OSError):
                client.send(b"x")
        time.sleep(0.2)
    for client in held:
        client.close()
    return "broken off"


if __name__ == "__main__":
    main()
