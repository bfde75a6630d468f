"""Who may see the dashboard: the token as a password, and pages of other sites."""

import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, closing
from urllib.parse import urlsplit

import pytest
import requests
from flask import Flask, Response
from strangers import connect
from waiting import MAX_SECONDS
from web_server import serving

from crossfade.deploy.access import Access
from crossfade.deploy.dashboard.restricted_pages import restricted
from crossfade.deploy.topology import Address

TOKEN = "a-secret-of-this-test-alone"

HANGING = """
import os, sys, threading
from flask import Flask
from uvicorn import Config, Server
from crossfade.base.signals import StopSignal, stopper
from crossfade.deploy.access import Access
from crossfade.deploy.dashboard.restricted_pages import restricted
from crossfade.deploy.web.listening import UVICORN_OPTIONS, bound_socket, url_of

app = Flask("test")
app.add_url_rule("/hang", "hang", lambda: os.write(1, b"hangs\\n") and str(threading.Event().wait()))
stopper.listen()
with bound_socket("127.0.0.1", 0) as listener:
    listener.listen()
    print(url_of(listener), flush=True)
    config = Config(restricted(app, Access(), ""), timeout_graceful_shutdown=1, **UVICORN_OPTIONS)
    try:
        Server(config).run(sockets=[listener])
    except StopSignal:
        sys.exit(128 + stopper.number)
"""


@pytest.fixture
def url() -> Iterator[str]:
    """Serve a page, and a route for programs."""
    app = Flask("test")
    app.add_url_rule("/", "page", lambda: "the page")
    app.add_url_rule("/api", "api", lambda: {"answer": 1}, methods=["GET", "POST"])
    app.add_url_rule("/explore/api/model", "model", lambda: "a model")
    app.add_url_rule("/large", "large", lambda: Response(b"x" * 8192 for _ in range(1000)))
    with serving(restricted(app, Access(token=TOKEN), "default-src 'self'")) as address:
        yield f"http://{address}"


def basic(credentials: str, encoding: str = "utf-8") -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(credentials.encode(encoding)).decode()}"}


BEARER = {"Authorization": f"Bearer {TOKEN}"}
PASSWORD = basic(f"any name:{TOKEN}")


def test_nothing_is_answered_without_the_token(url: str) -> None:
    for wrong in (
        *({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Basic {TOKEN}"}, basic(f"{TOKEN}:")),
        *(basic(f":{TOKEN[:-1]}"), basic(TOKEN), {"Authorization": "Basic \xff="}, {"Authorization": "Basic"}),
    ):
        for path in ("", "api", "none", "assets/page.css", "healthz%2f../api"):
            answer = requests.get(f"{url}/{path}", headers=wrong, timeout=60)
            assert (answer.status_code, answer.headers["WWW-Authenticate"][:6]) == (401, "Basic ")
            assert TOKEN not in answer.text
        assert requests.post(f"{url}/api", headers=wrong, timeout=60).status_code == 401
    assert requests.get(f"{url}/healthz", timeout=60).status_code == 200
    for right in (BEARER, PASSWORD, basic(f":{TOKEN}"), basic(f"Zoë:{TOKEN}"), basic(f"Zoë:{TOKEN}", "latin-1")):
        page = requests.get(url, headers=right, timeout=60)
        assert (page.text, page.headers["Content-Security-Policy"]) == ("the page", "default-src 'self'")
        assert requests.post(f"{url}/api", headers=right, timeout=60).status_code == 200


@pytest.mark.slow
def test_process_whose_requests_hang_is_healthy_and_ends_at_sigterm() -> None:
    command = [sys.executable, "-c", HANGING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, ExitStack() as held:
        assert process.stdout is not None
        try:
            url = urlsplit(process.stdout.readline())
            clients = [held.enter_context(closing(connect(Address("127.0.0.1", url.port or 0)))) for _ in range(20)]
            for hanging in clients:
                hanging.sendall(b"GET /hang HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert [process.stdout.readline() for _ in range(8)] == ["hangs\n"] * 8
            assert requests.get(f"{url.geturl().strip()}healthz", timeout=60).text == "OK"
            process.terminate()
            assert process.wait(MAX_SECONDS) == 143
            assert all(hanging.recv(1 << 16).startswith(b"HTTP/1.1 503 ") for hanging in clients)
        finally:
            process.kill()
