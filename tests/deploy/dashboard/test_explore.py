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
from cluster_data import TRACKS
from explored_runs import name_of, write_runs
from playwright.sync_api import Browser, Locator, expect
from running_command import started

from crossfade.trainer.maps.map_labels import PALETTE
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
        press(visit, *["Tab"] * 5)
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
        expect(page.locator("#status")).to_have_text(f"10 neighbors of {name_of(ROW)} in one")
        found = table(visit, "^one: by cosine")
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
def test_two_runs_show_which_neighbors_they_share(browser: Browser, address: str, workspace: Path) -> None:
    one, two = similar(workspace, "one")[0], similar(workspace, "two")[0]
    shared = set(one) & set(two)
    assert 0 < len(shared) < 10
    with opened(browser, address, run="one", item=ITEM) as visit:
        page = visit.page
        expect(table(visit, "^one")).to_be_visible()
        page.get_by_label("Compare with").focus()
        page.keyboard.type("two")
        page.wait_for_url("**&other=two**")
        expect(page.locator("#neighbors-hint")).to_have_text(f"{len(shared)} of 10 are in both lists.")
        for run, rows, other, others in (("one", one, "two", two), ("two", two, "one", one)):
            found = table(visit, f"^{run}")
            assert names_in(found) == [name_of(row) for row in rows]
            expect(found.get_by_role("columnheader").last).to_have_text(f"In {other}")
            marks = [f"rank {others.index(row) + 1}" if row in shared else "not listed" for row in rows]
            assert found.locator("td.words").all_text_contents() == marks
        page.get_by_label("Run", exact=True).focus()
        page.keyboard.type("two")
        page.wait_for_url(f"**/explore?run=two&item={ITEM}")
        expect(table(visit, "^one")).to_have_count(0)


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
        assert names_in(table(visit, "^one: recommended")) == [name_of(row) for row in rows_QK[0]]
        past = table(visit, f"^History: the 10 largest weights of {len(history)}")
        assert set(names_in(past)) <= {name_of(row) for row in history}
        assert len(set(names_in(past))) == 10
        expect(past.locator("tbody td.number").first).to_have_text("1")
        page.wait_for_url(f"**/explore?run=one&customer={CUSTOMER}")
        box.fill("nobody")
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_role("alert")).to_have_text("onethere is no customer with the ID or name 'nobody'")
        expect(page.locator("#recommendations")).to_be_hidden()
        page.go_back()
        expect(page.locator("#recommendations")).to_be_visible()
        expect(box).to_have_value(CUSTOMER)
        expect(page.get_by_role("alert")).to_have_text("")


def pixels(visit: Visit) -> dict[str, int]:
    """Return how many pixels of the map have each color."""
    script = """() => {
        const map = document.getElementById("map"), colors = {};
        const copy = new OffscreenCanvas(map.width, map.height).getContext("2d", { willReadFrequently: true });
        copy.drawImage(map, 0, 0);
        const data = copy.getImageData(0, 0, map.width, map.height).data;
        for (let at = 0; at < data.length; at += 4) {
            const color = data.slice(at, at + 4).join(" ");
            colors[color] = (colors[color] || 0) + 1;
        }
        return colors;
    }"""
    found: dict[str, int] = visit.page.evaluate(script)
    return found


def rgb(color: str) -> str:
    """Return ``color``, as in ``#4477aa``, as browsers write it."""
    return f"rgb({', '.join(str(int(color[at : at + 2], 16)) for at in (1, 3, 5))})"


@pytest.mark.slow
def test_map_marks_the_item_and_its_neighbors_at_the_resolution_of_the_screen(browser: Browser, address: str) -> None:
    accent = "31 102 181 255"
    with opened(browser, address, {"device_scale_factor": 2}, run="one") as visit:
        page, canvas = visit.page, visit.page.locator("#map")
        every = f"The {TRACKS} most frequent of track"
        expect(canvas).to_have_attribute("aria-label", f"Map. {every}.")
        expect(page.locator("#legend li")).to_have_text([*(f"genre {genre}" for genre in (1, 2, 3, 4, 0)), "others"])
        # The colors are those of the picture, by the order of the labels there, in which the first has fewer items.
        shown = page.locator("#legend li span").evaluate_all("dots => dots.map(each => each.style.background)")
        assert shown[:-1] == [rgb(PALETTE[genre]) for genre in (1, 2, 3, 4, 0)]
        box = canvas.bounding_box()
        assert box is not None
        assert canvas.evaluate("map => [map.width, map.height]") == [round(2 * box["width"]), round(2 * box["height"])]
        whole = pixels(visit)
        assert len(whole) > 5
        assert accent not in whole
        page.goto(f"{address}explore?run=one&item={ITEM}")
        marked = f"Map. {every}; 10 of 10 neighbors are among them, with their ranks in the table."
        expect(canvas).to_have_attribute("aria-label", marked)
        near = pixels(visit)
        assert near[accent] > 100
        page.get_by_role("button", name="whole map").click()
        expect(page.get_by_role("button", name="whole map")).to_have_attribute("aria-pressed", "true")
        assert pixels(visit) != near
        # The first track is at the right end of the leftmost ring: the fifth part of the map's width is between two.
        page.goto(f"{address}explore?run=one")
        expect(canvas).to_have_attribute("aria-label", f"Map. {every}.")
        place = page.evaluate(
            "() => [document.getElementById('map').clientWidth, document.getElementById('map').clientHeight]"
        )
        scale = (place[0] - 56) / 42
        canvas.click(position={"x": 28 + 2 * scale, "y": place[1] / 2})
        expect(page.locator("#neighbors-title")).to_have_text(f"Neighbors of {name_of(0)}")


@pytest.mark.slow
def test_run_without_embeddings_is_a_line_and_the_other_run_is_shown(browser: Browser, address: str) -> None:
    with opened(browser, address, run="empty", item=ITEM) as visit:
        alert = visit.page.get_by_role("alert")
        expect(alert).to_have_text("emptyit has neither embeddings nor a complete checkpoint yet")
        expect(visit.page.locator("#neighbors")).to_be_hidden()
        visit.page.get_by_label("Compare with").select_option("one")
        expect(table(visit, "^one")).to_be_visible()
        expect(alert).to_contain_text("neither embeddings")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "dark"), (PHONE, "light")])
def test_page_is_accessible_and_fits_the_window(
    browser: Browser, address: str, size: dict[str, int], scheme: str
) -> None:
    options = {"size": size, "color_scheme": scheme}
    with opened(browser, address, options, run="one", other="two", item=ITEM, customer=CUSTOMER) as visit:
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
        with opened(browser, address, run="empty") as visit:
            expect(visit.page.get_by_role("alert")).to_contain_text("neither")
            visit.page.add_init_script(record)
            visit.page.goto(f"{address}explore?run=one&item={ITEM}")
            expect(table(visit, "^one")).to_be_visible()
            shown = visit.page.evaluate("window.shown")
            assert shown
            assert all(re.fullmatch(r"Preparing the model of one: [a-z ]+(, \d+ %)?", text) for text in shown), shown
            expect(visit.page.locator("#preparing")).to_be_empty()
        assert list(tmp_path.glob("crossfade-model-*/*/version.json"))
        command.process.send_signal(signal.SIGTERM)
        assert command.finish().returncode == 128 + signal.SIGTERM
        assert list(tmp_path.iterdir()) == []
