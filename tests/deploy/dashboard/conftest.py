"""A browser, in which the tests of a file open the pages of the dashboard."""

from collections.abc import Iterator

import pytest
from browser import browsing
from playwright.sync_api import Browser, expect


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        expect.set_options(timeout=120_000)
        yield browser
