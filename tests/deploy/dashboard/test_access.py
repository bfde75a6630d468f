"""Who may see the dashboard: the Host header, the token, its form and cookie; strangers, with real sockets."""

import http.client
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from browser import browsing, visiting
from flask import Flask
from flask.testing import FlaskClient
from playwright.sync_api import expect
from run_folders import JOB, epoch, load, sample, state, step, write_run
from running_command import started
from strangers import connect, idle_strangers, is_closed, send_garbage, send_slowly_until_closed
from waiting import wait_until

from crossfade.deploy.access import Access
from crossfade.deploy.dashboard.bounded_waitress import BoundedWaitress
from crossfade.deploy.dashboard.login import restrict
from crossfade.deploy.topology import Address

TOKEN = "a-secret-of-this-test-alone"
MARKUP = "<img src=x onerror=document.title=1>"
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def app_of(access: Access) -> Flask:
    """Return an application with a page, and a route for programs."""
    app = Flask("test")
    restrict(app, access)
    app.add_url_rule("/", "page", lambda: "the page")
    app.add_url_rule("/api", "api", lambda: {"answer": 1}, methods=["GET", "POST"])
    app.add_url_rule("/healthz", "health", lambda: "OK")
    return app


@pytest.fixture
def client() -> FlaskClient:
    return app_of(Access(token=TOKEN)).test_client()


def test_other_host_names_are_rejected() -> None:
    client = app_of(Access()).test_client()
    for host, status in (("localhost:8050", 200), ("127.0.0.1", 200), ("evil.example", 421), ("192.0.2.1:8050", 421)):
        assert client.get("/", headers={"Host": host}).status_code == status
        assert client.post("/api", headers={"Host": host}).status_code == status
        assert client.get("/healthz", headers={"Host": host}).status_code == 200


def test_nothing_is_answered_without_the_token(client: FlaskClient) -> None:
    for path in ("/", "/api", "/none", "/healthz/../api"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert client.post("/api").status_code == 401
    assert client.post("/api", headers={"Authorization": f"Bearer {TOKEN}x"}).status_code == 401
    assert client.get("/healthz").status_code == 200
    assert client.post("/api", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client.get("/").status_code == 401  # the header signs nobody in


def test_browser_signs_in_with_a_cookie_that_scripts_and_other_sites_cannot_use(client: FlaskClient) -> None:
    sent = client.get("/?run=a&run=b", headers=HTML)
    assert (sent.status_code, sent.location) == (303, "/login?next=%2F%3Frun%3Da%26run%3Db")
    form = client.get(sent.location, headers=HTML)
    assert 'value="/?run=a&amp;run=b"' in form.text
    wrong = client.post("/login", data={"token": TOKEN[:-1], "next": "/"}, headers=HTML)
    assert (wrong.status_code, "Set-Cookie" in wrong.headers) == (401, False)
    assert client.get("/").status_code == 401
    signed_in = client.post("/login", data={"token": TOKEN, "next": "/?run=a&run=b"}, headers=HTML)
    assert (signed_in.status_code, signed_in.location) == (303, "/?run=a&run=b")
    cookie = signed_in.headers["Set-Cookie"]
    assert {"HttpOnly", "Path=/", "SameSite=Strict"} <= set(cookie.split("; "))
    assert TOKEN not in cookie
    assert client.get("/").text == "the page"
    assert client.post("/api").status_code == 200


def test_cookie_of_another_process_is_rejected(client: FlaskClient) -> None:
    other = app_of(Access(token=TOKEN)).test_client()
    other.post("/login", data={"token": TOKEN})
    assert other.get("/").status_code == 200
    cookie = other.get_cookie("crossfade_80")
    assert cookie is not None
    client.set_cookie(cookie.key, cookie.value)
    assert client.get("/").status_code == 401


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)"])
def test_form_leads_to_no_other_site(client: FlaskClient, target: str) -> None:
    assert client.post("/login", data={"token": TOKEN, "next": target}).location == "/"
    shown = client.post("/login", data={"token": "wrong", "next": f'">{MARKUP}'})
    assert MARKUP not in shown.text


@contextmanager
def served(app: Flask, *, strangers: int, members: int, seconds: float = 60.0) -> Iterator[Address]:
    server = BoundedWaitress(app, host="127.0.0.1", port=0, threads=2, strangers=strangers, members=members)
    server.receive_seconds = seconds
    is_ended = threading.Event()

    class _End(Exception):  # noqa: N818 - what ends the loop, as a signal does in the command
        pass

    def maintain(now: float, maintenance: Callable[[float], None] = server.maintenance) -> None:
        if is_ended.is_set():
            raise _End
        maintenance(now)

    def run() -> None:
        with pytest.raises(_End):
            server.run()

    server.maintenance = maintain
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield Address("127.0.0.1", int(server.effective_port))
    finally:
        is_ended.set()
        thread.join()
        server.task_dispatcher.shutdown()
        for channel in list(server.active_channels.values()):
            channel.close()
        server.close()


def status(address: Address, head: str = "", path: str = "/api") -> int:
    with closing(connect(address)) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{head}\r\n".encode())
        return int(client.recv(1 << 16).split()[1])


def test_strangers_keep_no_member_out_and_slow_ones_are_disconnected() -> None:
    bearer = f"Authorization: Bearer {TOKEN}\r\n"
    with served(app_of(Access(token=TOKEN)), strangers=8, members=8, seconds=0.3) as address:
        with idle_strangers(address, 300) as held:
            assert status(address, bearer) == 200
            wait_until(lambda: all(map(is_closed, held[:50])), "the end of the oldest strangers")
        send_slowly_until_closed(address, b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n")
        send_garbage(address, 200)
        assert status(address) == 401
        assert status(address, bearer) == 200


def test_members_are_not_closed_for_strangers_and_sizes_are_bounded() -> None:
    with (
        served(app_of(Access(token=TOKEN)), strangers=2, members=2) as address,
        closing(http.client.HTTPConnection(address.host, address.port, timeout=60)) as member,
    ):

        def is_answered() -> bool:
            member.request("GET", "/api", headers={"Authorization": f"Bearer {TOKEN}"})
            with member.getresponse() as response:
                return response.read() == b'{"answer":1}\n'

        assert is_answered()
        connection = member.sock
        with idle_strangers(address, 20) as held:
            wait_until(lambda: is_closed(held[0]), "the end of the oldest stranger")
            assert is_answered()
            assert member.sock is connection
        assert status(address, f"X: {'x' * (64 << 10)}\r\n") == 431
        assert status(address, f"Content-Length: {5 << 20}\r\n") == 413


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
        with visiting(browser, f"{address}?run=other&run={MARKUP.replace(' ', '%20').replace('=', '%3D')}") as visit:
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
