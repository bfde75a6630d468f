"""The page Explore in a real browser, with runs that are trained on planted data."""

import json
import re
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import DESKTOP, PHONE, Visit, browsing, visiting
from explored_runs import name_of, write_runs
from playwright.sync_api import Browser, Locator, expect
from running_command import started

from crossfade.trainer.recommend.model import open_model
from crossfade.trainer.recommend.options import RecommendOptions, SimilarOptions
from crossfade.trainer.runs.options import ModelSource

ROW, ITEM, CUSTOMER = 7, "5007", "c003"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("explore"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        expect.set_options(timeout=120_000)
        yield browser


@pytest.fixture(scope="module")
def address(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the page, with its copies in a folder that the tests may leave behind."""
    copies = {"TMPDIR": str(tmp_path_factory.mktemp("copies"))}
    with started("dashboard", "--port", 0, cwd=workspace, variables=copies) as command:
        assert command.process.stdout is not None
        yield command.process.stdout.readline().split()[1]


@contextmanager
def opened(browser: Browser, address: str, options: dict[str, Any] | None = None, **state: str) -> Iterator[Visit]:
    """Open the page in ``state``; assert at the end that it logged no errors and used no other server."""
    with visiting(browser, f"{address}explore?{urlencode(state)}", **(options or {})) as visit:
        yield visit
        assert visit.errors == []
        assert visit.hosts <= {address.split("/")[2]}


def similar(workspace: Path, run: str, row: int = ROW) -> tuple[list[int], list[float]]:
    """Return the neighbors of a track and their scores."""
    with closing(open_model(ModelSource.of(source=workspace / "runs" / run), print)) as model:
        rows_QK, scores_QK = model.use(lambda found: found.similar(np.array([row]), SimilarOptions()))
    return rows_QK[0].tolist(), scores_QK[0].tolist()


def table(visit: Visit, caption: str) -> Locator:
    return visit.page.get_by_role("table", name=re.compile(caption))


def names_in(found: Locator) -> list[str]:
    return found.locator("tbody th").all_text_contents()


def press(visit: Visit, *keys: str) -> None:
    for key in keys:
        visit.page.keyboard.press(key)


@pytest.mark.slow
def test_item_is_searched_and_neighbors_are_followed_by_keyboard_alone(
    browser: Browser, address: str, workspace: Path
) -> None:
    rows, scores = similar(workspace, "one")
    with opened(browser, address, run="one") as visit:
        page, title = visit.page, visit.page.locator("#neighbors-title")
        expect(title).to_have_text("Items of one")
        press(visit, "Tab")
        expect(page.get_by_role("link", name="Skip to the results")).to_be_focused()
        press(visit, *["Tab"] * 4)
        box = page.get_by_role("combobox", name="Track")
        expect(box).to_be_focused()
        page.keyboard.type("song 7")
        options = page.get_by_role("listbox").get_by_role("option")
        expect(options).to_have_count(11)
        expect(box).to_have_attribute("aria-expanded", "true")
        expect(page.locator("#item-hint")).to_have_text("11 found")
        press(visit, "ArrowUp", "ArrowDown", "ArrowDown", "ArrowUp")
        expect(box).to_have_attribute("aria-activedescendant", "suggestion-0")
        expect(options.first).to_have_attribute("aria-selected", "true")
        expect(options.first).to_have_text(f"{name_of(ROW)}{ITEM}")
        press(visit, "Escape")
        expect(options).to_have_count(0)
        expect(box).to_have_attribute("aria-expanded", "false")
        press(visit, "ArrowDown")
        expect(options.first).to_have_attribute("aria-selected", "true")
        press(visit, "Enter")
        expect(title).to_have_text(f"Neighbors of {name_of(ROW)}")
        expect(box).to_have_value(name_of(ROW))
        expect(box).to_be_focused()
        expect(page.locator("#status")).to_have_text(f"10 neighbors of {name_of(ROW)}")
        found = table(visit, "^Nearest by cosine")
        assert names_in(found) == [name_of(row) for row in rows]
        assert found.locator("td.number").all_text_contents() == [f"{score:.3f}" for score in scores]
        page.wait_for_url(f"**/explore?run=one&item={ITEM}")
        found.get_by_role("link").nth(2).focus()
        press(visit, "Enter")
        expect(title).to_have_text(f"Neighbors of {name_of(rows[2])}")
        expect(title).to_be_focused()
        page.wait_for_url(f"**/explore?run=one&item={5000 + rows[2]}")
        page.go_back()
        expect(title).to_have_text(f"Neighbors of {name_of(ROW)}")
        page.go_back()
        expect(title).to_have_text("Items of one")
        expect(page.locator("#item")).to_have_value("")
        page.go_forward()
        page.reload()
        expect(title).to_have_text(f"Neighbors of {name_of(ROW)}")


@pytest.mark.slow
def test_recommendations_are_beside_the_history(browser: Browser, address: str, workspace: Path) -> None:
    with closing(open_model(ModelSource.of(source=workspace / "runs" / "one"), print)) as model:
        rows_QK, _ = model.use(lambda found: found.recommend(np.array([3]), RecommendOptions()))
        history = set(model.use(lambda found: found.histories(np.array([3]))).lists.items_N.tolist())
    with opened(browser, address, run="one") as visit:
        page = visit.page
        expect(page.locator("#customer-hint")).to_have_text("An ID, such as c000")
        box = page.get_by_role("textbox", name="Customer")
        box.fill(CUSTOMER)
        box.press("Enter")
        expect(page.locator("#recommendations-title")).to_have_text(f"Recommendations for customer {CUSTOMER}")
        assert names_in(table(visit, "^Recommended")) == [name_of(row) for row in rows_QK[0]]
        past = table(visit, f"^History: the 10 largest weights of {len(history)}")
        assert set(names_in(past)) <= {name_of(row) for row in history}
        assert len(set(names_in(past))) == 10
        expect(past.locator("tbody td.number").first).to_have_text("1")
        page.wait_for_url(f"**/explore?run=one&customer={CUSTOMER}")
        box.fill("nobody")
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_role("alert")).to_have_text("errorthere is no customer with the ID or name 'nobody'")
        expect(page.locator("#recommendations")).to_be_hidden()
        page.go_back()
        expect(page.locator("#recommendations")).to_be_visible()
        expect(box).to_have_value(CUSTOMER)
        expect(page.get_by_role("alert")).to_have_text("")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "dark"), (PHONE, "light")])
def test_page_is_accessible_and_fits_the_window(
    browser: Browser, address: str, size: dict[str, int], scheme: str
) -> None:
    options = {"size": size, "color_scheme": scheme}
    with opened(browser, address, options, run="one", item=ITEM, customer=CUSTOMER) as visit:
        page = visit.page
        expect(table(visit, "^History")).to_be_visible()
        expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
        page.get_by_role("combobox", name="Track").fill("song")
        page.get_by_role("combobox", name="Track").press("ArrowDown")
        expect(page.get_by_role("listbox").get_by_role("option", selected=True)).to_be_visible()
        violations = Axe().run(page).response["violations"]
        found = [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in violations]
        assert not found, json.dumps(found, indent=1)
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


@pytest.mark.slow
def test_dashboard_and_page_lead_to_each_other(browser: Browser, address: str) -> None:
    with visiting(browser, f"{address}?run=two") as visit:
        visit.page.get_by_role("link", name="Explore").click()
        expect(visit.page.get_by_role("heading", name="Explore")).to_be_visible()
        visit.page.wait_for_url("**/explore?run=*")
        visit.page.get_by_label("Run", exact=True).select_option("one")
        visit.page.wait_for_url("**/explore?run=one")
        visit.page.locator("#theme").click()
        visit.page.get_by_role("link", name="Dashboard").click()
        expect(visit.page.locator("#head h1")).to_contain_text("one")
        assert visit.page.evaluate("document.documentElement.dataset.theme") == "dark"
        assert visit.errors == []


@pytest.mark.slow
def test_first_visit_shows_the_preparation_and_a_stopped_dashboard_deletes_its_copies(
    browser: Browser, workspace: Path, tmp_path: Path
) -> None:
    record = """
        window.shown = [];
        new MutationObserver(() => {
            const text = document.getElementById("preparing")?.textContent;
            if (text) window.shown.push(text);
        }).observe(document, { childList: true, subtree: true });
    """
    with started("dashboard", "--port", 0, cwd=workspace, variables={"TMPDIR": str(tmp_path)}) as command:
        assert command.process.stdout is not None
        address = command.process.stdout.readline().split()[1]
        with opened(browser, address, run="empty", item=ITEM) as visit:
            alert = visit.page.get_by_role("alert")
            expect(alert).to_have_text("errorit has neither embeddings nor a complete checkpoint yet")
            expect(visit.page.locator("#neighbors")).to_be_hidden()
            visit.page.add_init_script(record)
            visit.page.goto(f"{address}explore?run=one&item={ITEM}")
            expect(table(visit, "^Nearest")).to_be_visible()
            shown = visit.page.evaluate("window.shown")
            assert set(shown) == {"Preparing the model of one: large models take minutes"}
            expect(visit.page.locator("#preparing")).to_be_empty()
            visit.page.get_by_label("Run", exact=True).select_option("two")
            visit.page.wait_for_url(f"**/explore?run=two&item={ITEM}")
            expect(visit.page.locator("#status")).to_have_text(f"10 neighbors of {name_of(ROW)}")
        assert list(tmp_path.glob("crossfade-model-*/*/version.json"))
        command.process.send_signal(signal.SIGTERM)
        assert command.finish().returncode == 128 + signal.SIGTERM
        assert list(tmp_path.iterdir()) == []
