"""Who may see the dashboard: the token, its form and cookie."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import requests
from browser import browsing, visiting
from flask import Flask, Response
from playwright.sync_api import expect
from run_folders import JOB, epoch, load, sample, state, step, write_run
from running_command import started
from strangers import connect
from waiting import MAX_SECONDS
from web_server import serving

from crossfade.deploy.access import Access
from crossfade.deploy.dashboard.login import restricted
from crossfade.deploy.topology import Address

TOKEN = "a-secret-of-this-test-alone"
MARKUP = "<img src=x onerror=document.title=1>"
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


HANGING = """
import os, sys, threading
from flask import Flask
from uvicorn import Config, Server
from crossfade.base.signals import StopSignal, stopper
from crossfade.deploy.access import Access
from crossfade.deploy.dashboard.login import restricted
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


class Client(requests.Session):
    """A client of one server, which keeps its cookies and follows no redirects."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url

    def request(self, method: str, path: str, **options: object) -> requests.Response:  # type: ignore[override]
        """Send a request for ``path``."""
        return super().request(method, f"{self.url}{path}", **{"timeout": 60} | options | {"allow_redirects": False})  # type: ignore[arg-type]


@pytest.fixture
def url() -> Iterator[str]:
    """Serve a page, and a route for programs."""
    app = Flask("test")
    app.add_url_rule("/", "page", lambda: "the page")
    app.add_url_rule("/api", "api", lambda: {"answer": 1}, methods=["GET", "POST"])
    app.add_url_rule("/large", "large", lambda: Response(b"x" * 8192 for _ in range(1000)))
    with serving(restricted(app, Access(token=TOKEN), "default-src 'self'")) as address:
        yield f"http://{address}"


@pytest.fixture
def client(url: str) -> Client:
    return Client(url)


def test_nothing_is_answered_without_the_token(client: Client) -> None:
    for path in ("/", "/api", "/none", "/healthz%2f../api"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert client.post("/api").status_code == 401
    assert client.post("/api", headers={"Authorization": f"Bearer {TOKEN}x"}).status_code == 401
    assert client.get("/healthz").status_code == 200
    assert client.post("/api", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client.get("/").status_code == 401  # the header signs nobody in


def test_browser_signs_in_with_a_cookie_that_scripts_and_other_sites_cannot_use(client: Client) -> None:
    sent = client.get("/?run=a&run=b", headers=HTML)
    assert (sent.status_code, sent.headers["Location"]) == (303, "/login?next=%2F%3Frun%3Da%26run%3Db")
    form = client.get(sent.headers["Location"], headers=HTML)
    assert 'value="/?run=a&amp;run=b"' in form.text
    wrong = client.post("/login", data={"token": TOKEN[:-1], "next": "/"}, headers=HTML)
    assert (wrong.status_code, "Set-Cookie" in wrong.headers) == (401, False)
    assert client.get("/").status_code == 401
    signed_in = client.post("/login", data={"token": TOKEN, "next": "/?run=a&run=b"}, headers=HTML)
    assert (signed_in.status_code, signed_in.headers["Location"]) == (303, "/?run=a&run=b")
    cookie = signed_in.headers["Set-Cookie"]
    assert {"httponly", "path=/", "samesite=strict"} <= set(cookie.lower().split("; "))
    assert TOKEN not in cookie
    page = client.get("/")
    assert (page.text, page.headers["Content-Security-Policy"]) == ("the page", "default-src 'self'")
    assert client.post("/api").status_code == 200


def test_cookie_of_another_process_is_rejected(client: Client) -> None:
    client.post("/login", data={"token": TOKEN})
    [cookie] = client.cookies
    assert client.get("/").status_code == 200
    client.cookies.clear()
    client.cookies.set(cookie.name, "x" * len(str(cookie.value)))
    assert client.get("/").status_code == 401


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)"])
def test_form_leads_to_no_other_site(client: Client, target: str) -> None:
    assert client.post("/login", data={"token": TOKEN, "next": target}).headers["Location"] == "/"
    shown = client.post("/login", data={"token": "wrong", "next": f'">{MARKUP}'})
    assert MARKUP not in shown.text


def test_pages_of_other_sites_may_link_to_a_page_but_not_change_anything(client: Client) -> None:
    other = {"Sec-Fetch-Site": "cross-site", "Authorization": f"Bearer {TOKEN}"}
    assert client.get("/", headers=other).status_code == 200
    assert client.post("/api", headers=other).status_code == 403


def test_form_of_more_than_a_token_is_rejected_before_it_is_parsed(client: Client) -> None:
    for body, expected in ((b"%41=%42&" * 100, 401), (b"token=" + b"x" * 10_000, 413), (b"%41=%42&" * 10_000, 413)):
        answer = client.post("/login", data=body, headers={"Content-Type": "application/x-www-form-urlencoded"})
        assert answer.status_code == expected


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


@pytest.mark.slow
def test_clients_that_read_nothing_keep_nobody_out(url: str, client: Client) -> None:
    head = {"Authorization": f"Bearer {TOKEN}"}
    with ExitStack() as held:
        for _ in range(20):
            slow = held.enter_context(Client(url))
            held.enter_context(slow.get("/large", headers=head, stream=True))
        assert client.get("/api", headers=head, timeout=20).json() == {"answer": 1}


@pytest.mark.slow
def test_page_asks_for_the_token_and_shows_markup_in_names_as_text(tmp_path: Path) -> None:
    for run in (MARKUP, "other"):
        metrics = [step(1, at=1), step(25, at=2), epoch(1, at=2, step=25, quality=0.2)]
        processes = [sample(at=at, in_process=load(cpu=at)) for at in (1, 2)]
        kind = state("failed", at=3, message=MARKUP, in_process=("failed", load()))
        write_run(tmp_path / "runs" / run, metrics=metrics, processes=processes, job=JOB + f"# {MARKUP}\n", state=kind)
    (tmp_path / "token").write_text(TOKEN)
    options = ("--port", 0, "--token-file", tmp_path / "token")
    with browsing() as browser, started("dashboard", "runs", *options, cwd=tmp_path) as command:
        assert command.process.stdout is not None
        printed = command.process.stdout.readline()
        assert TOKEN not in printed
        address = printed.removeprefix("dashboard: ").strip()
        with visiting(browser, f"{address}?run=other&run={quote(MARKUP)}") as visit:
            page = visit.page
            expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
            page.get_by_label("Token").fill(TOKEN)
            page.get_by_role("button", name="Sign in").click()
            expect(page.locator("#head h1", has_text=MARKUP)).to_be_visible(timeout=120_000)
            expect(page.locator("#alerts")).to_contain_text(MARKUP)
            expect(page.locator("#graph-loss .legendtext").filter(has_text="<img")).to_have_count(1, timeout=120_000)
            assert page.locator("img[src='x']").count() == 0
            assert page.title() == "Crossfade"
            assert re.search(r"/\?run=other&run=", page.url)
            page.goto(f"{address}explore")
            expect(page.locator("#run option", has_text="<img")).to_have_count(1, timeout=120_000)
            assert page.locator("img[src='x']").count() == 0
            assert visit.errors == []
