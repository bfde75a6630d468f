"""Connections of the server: places, deadlines and sizes, with real sockets; and who may send a request."""

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from strangers import connect, idle_strangers, is_closed, send_garbage, send_slowly_until_closed
from waiting import wait_until
from web_server import serving

from crossfade.deploy.access import Access
from crossfade.deploy.topology import Address
from crossfade.deploy.web.middleware import LimitedBodies, RestrictedAccess
from crossfade.deploy.web.protocol import Bounds
from crossfade.trainer.monitoring.bounded_server import Places

TOKEN = "a-secret-of-this-test-alone"
LARGE, MAX_BODY_BYTES = 8 << 20, 1 << 17


class DocumentedAccess(RestrictedAccess):
    def is_open(self, method: str, path: str) -> bool:
        return method in {"GET", "HEAD"} and path == "/docs"


@contextmanager
def served(bounds: Bounds, access: Access | None = None) -> Iterator[Address]:
    """Serve an application whose answers are long, or wait for the body."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        yield bounds.state()

    async def answer(request: Request) -> Response:
        return PlainTextResponse("x" * LARGE if request.url.path == "/large" else str(len(await request.body())))

    routes = [Route(path, answer, methods=["GET", "POST"]) for path in ("/data", "/large", "/healthz", "/docs")]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.add_middleware(LimitedBodies, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(DocumentedAccess, access=access or Access())
    with serving(app) as address:
        yield address


def ask(address: Address, head: str = "", path: str = "/data", body: bytes = b"") -> bytes:
    """Return the status line and the headers of an answer."""
    with closing(connect(address)) as client:
        method = "POST" if body else "GET"
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *head.splitlines()]
        client.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode() + body)
        answer = b""
        while chunk := client.recv(1 << 16):
            answer += chunk
    return answer


def status(answer: bytes) -> int:
    return int(answer.split()[1])


@pytest.mark.slow
def test_strangers_keep_no_client_out_and_slow_ones_are_disconnected() -> None:
    with served(Bounds(Places(8, 8), seconds=0.5)) as address:
        with idle_strangers(address, 300) as held:
            assert status(ask(address)) == 200
            wait_until(lambda: all(map(is_closed, held[:50])), "the end of the oldest strangers")
        send_slowly_until_closed(address, b"GET /data HTTP/1.1\r\nX: ")
        send_slowly_until_closed(address, b"POST /data HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\n")
        send_garbage(address, 200)
        assert status(ask(address, body=b"12345")) == 200


def test_client_that_reads_no_response_is_disconnected() -> None:
    with served(Bounds(seconds=0.5)) as address, closing(connect(address)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")

        def is_broken_off() -> bool:
            try:
                client.sendall(b"\r\n")
            except ConnectionError:
                return True
            return False

        wait_until(is_broken_off, "the end of the connection")


def test_clients_that_send_many_requests_before_the_first_answer_are_rejected() -> None:
    request = b"GET /data HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with served(Bounds()) as address:
        with closing(connect(address)) as client:
            client.sendall(request * 16)
            answers = b""
            while answers.count(b"200 OK") < 16:
                answers += client.recv(1 << 16)
            client.sendall(request)
            assert status(client.recv(1 << 16)) == 200
        with closing(connect(address)) as client:
            client.sendall(request * 1000)
            answers = b""
            with suppress(ConnectionError):
                while chunk := client.recv(1 << 16):
                    answers += chunk
            assert b"400 Bad Request" in answers


GET, POST = b"GET /data HTTP/1.1\r\nHost: localhost\r\n", b"POST /data HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (GET + b"X: " + b"x" * 1000, 400),
        (POST + b"Content-Length: 2000\r\nX: " + b"x" * 500 + b"\r\n\r\n" + b"x" * 2000, 200),
        (GET + b"X: 1\r\n" * 150 + b"\r\n", 400),
        (GET + b"X: 1\r\n" * 50 + b"\r\n", 200),
        (POST + b"Content-Length: %d\r\n\r\n" % MAX_BODY_BYTES + b"x" * MAX_BODY_BYTES, 200),
        (POST + b"Content-Length: 400000\r\n\r\n" + b"x" * 400_000, 413),
        (GET + b"Content-Length: 9000000000\r\n\r\n" + b"x" * ((8 << 20) + 1), 413),
        (CHUNKED + b"\r\n" + b"1\r\n \r\n" * 8000 + b"0\r\n\r\n", 200),
        (CHUNKED + b"\r\n" + b"1\r\n \r\n" * 9000 + b"0\r\n\r\n", 400),
        (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345", 400),
        (CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n", 400),
        (CHUNKED + b"\r\nffffffffffffffffff\r\n1\r\n0\r\n\r\n", 400),
        (CHUNKED + b"\r\n-1\r\n1\r\n0\r\n\r\n", 400),
        (POST + b"Content-Length: -1\r\n\r\n", 400),
        (POST + b"Content-Length: 99999999999999999999999\r\n\r\n1", 400),
        (b"GET /data?run=\xff\xc3 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /data HTTP/1.1\r\nHost: evil.example:80\r\n\r\n", 421),
        (b"GET /healthz HTTP/1.1\r\nHost: evil.example:80\r\n\r\n", 200),
    ],
)
def test_ambiguous_and_excessive_requests_are_rejected(sent: bytes, expected: int) -> None:
    with served(Bounds(head_bytes=1000)) as address, closing(connect(address)) as client:
        client.sendall(sent)
        assert status(client.recv(1 << 16)) == expected


def test_members_are_not_closed_for_strangers() -> None:
    with served(Bounds(Places(2, 2))) as address, closing(connect(address)) as member:
        request = b"POST /data HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n"
        member.settimeout(10)

        def is_answered() -> bool:
            answer = b""
            while not answer.endswith(b"\r\n\r\n1"):
                answer += member.recv(1 << 16)
            return status(answer) == 200

        member.sendall(request + b"x")
        assert is_answered()
        member.sendall(request)
        with idle_strangers(address, 20) as held:
            wait_until(lambda: is_closed(held[0]), "the end of the oldest stranger")
            member.sendall(b"x")
            assert is_answered()


def test_request_without_the_token_is_rejected_before_its_body_is_read() -> None:
    with served(Bounds(), Access(token=TOKEN)) as address:
        for head in ("", f"Authorization: Bearer {TOKEN}x", f"Authorization: Basic {TOKEN}", f"X: Bearer {TOKEN}"):
            answer = ask(address, head)
            assert (status(answer), b"www-authenticate: Bearer" in answer, TOKEN.encode() in answer) == (
                401,
                True,
                False,
            )
        with closing(connect(address)) as client:
            client.sendall(b"POST /data HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n")
            assert status(client.recv(1 << 16)) == 401
        assert status(ask(address, path="/healthz", body=b"x")) == status(ask(address, path="/docs", body=b"x")) == 401
        for path, head in (("/data", f"Authorization: Bearer {TOKEN}"), ("/healthz", ""), ("/docs", "")):
            answer = ask(address, head, path)
            assert status(answer) == 200
            for header in ("x-content-type-options: nosniff", "referrer-policy: no-referrer"):
                assert header.encode() in answer
            assert b"content-security-policy: default-src 'none'; frame" in answer
