"""Open pages in the system's Chromium, and collect their errors.

with browsing() as browser, checked_visit(browser, "http://127.0.0.1:8050/") as visit:
    expect(visit.page.locator("h1")).to_be_visible()
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import needs
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, sync_playwright

DESKTOP, PHONE = {"width": 1440, "height": 1000}, {"width": 390, "height": 844}
_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)


def chromium() -> str:
    """Return the path of Chromium. Without one, skip the test; in CI, fail it."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        missing = needs.package("Chromium", "chromium")
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return path


@contextmanager
def browsing() -> Iterator[Browser]:
    """Run a browser while the context lasts."""
    executable = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """An open page, its errors, and the hosts that it requested."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        page.on("console", self._record_message)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("requestfailed", self._record_failure)
        page.on("request", lambda request: self.hosts.add(request.url.split("/")[2] if "//" in request.url else ""))

    def _record_message(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.errors.append(f"{message.type}: {message.text}")

    def _record_failure(self, request: Request) -> None:
        if "ERR_ABORTED" not in str(request.failure):  # the page was closed during the request
            self.errors.append(f"{request.url}: {request.failure}")


@contextmanager
def visiting(browser: Browser, address: str, *, size: dict[str, int] = DESKTOP, **options: Any) -> Iterator[Visit]:
    """Open ``address`` in a context of its own."""
    context: BrowserContext = browser.new_context(viewport=size, **options)  # type: ignore[arg-type]
    try:
        visit = Visit(context.new_page())
        visit.page.goto(address)
        yield visit
    finally:
        context.close()


@contextmanager
def checked_visit(browser: Browser, address: str, **options: Any) -> Iterator[Visit]:
    """Open ``address``; assert at the end that the page logged no errors and used no other server."""
    with visiting(browser, address, **options) as visit:
        yield visit
        assert visit.errors == []
        assert visit.hosts <= {address.split("/")[2]}
