"""The map command: its files show the planted genres as regions, and its page works in Chromium."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import Visit, browsing, visiting
from cluster_data import GENRES, TRACKS, write_job, write_planted
from command_here import crossfade_here, rejected_here
from playwright.sync_api import Browser
from running_command import succeeded

from crossfade.trainer.maps.items_map import ItemsMap
from crossfade.trainer.maps.map_files import write_page

EVIL = "</script><b>Genre & \"Song\" 'Björk'"
"""A name that would break a page that does not escape it."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("map")
    write_job(folder / "job.yaml", write_planted(folder / "data", named=True, held_out=False), train={"epochs": 15})
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=folder))
    lines = [f"{5000 + row},genre {row % GENRES}" for row in range(TRACKS) if row != 7]
    (folder / "songs.csv").write_text("\n".join(["track,genre", *lines]))
    return folder


@pytest.fixture(scope="module")
def drawn(workspace: Path) -> str:
    """Draw the map, and return what the command prints."""
    command = ("map", "run", "--metadata", "songs.csv", "--color", "genre")
    return succeeded(crossfade_here(*command, cwd=workspace)).stdout


@pytest.mark.slow
def test_table_has_every_item_with_its_place_and_label(workspace: Path, drawn: str) -> None:
    table = pq.read_table(workspace / "run" / "map" / "map.parquet")
    assert table.column_names == ["id", "row", "name", "x", "y", "label", "color"]
    assert sorted(table.column("id").to_pylist()) == list(range(5000, 5000 + TRACKS))
    for item in table.to_pylist():
        genre = None if item["row"] == 7 else f"genre {item['row'] % GENRES}"
        assert (item["id"], item["label"]) == (5000 + item["row"], genre)
    place_N2 = np.column_stack([table.column("x").to_numpy(), table.column("y").to_numpy()])
    distance_NN = np.square(place_N2[:, None] - place_N2[None]).sum(axis=2)
    genre_N = table.column("row").to_numpy() % GENRES
    near_NK = np.argsort(distance_NN, axis=1)[:, 1:11]
    assert (genre_N[near_NK] == genre_N[:, None]).mean() > 0.7


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser, workspace: Path, drawn: str) -> Iterator[Visit]:
    """Open the page."""
    with visiting(browser, (workspace / "run" / "map" / "map.html").as_uri()) as visit:
        visit.page.wait_for_selector("#names span.island")
        yield visit


def pixels(visit: Visit) -> dict[str, int]:
    """Return how many pixels of the map have each color."""
    script = """() => {
        const map = document.getElementById("map"), colors = {};
        const data = new Uint32Array(map.getContext("2d").getImageData(0, 0, map.width, map.height).data.buffer);
        for (const pixel of data) colors[pixel] = (colors[pixel] || 0) + 1;
        return colors;
    }"""
    found: dict[str, int] = visit.page.evaluate(script)
    return found


def settled(visit: Visit) -> None:
    """Wait until the page has drawn what it was asked to."""
    visit.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


@pytest.mark.slow
def test_page_requests_nothing_and_has_no_errors(visit: Visit) -> None:
    assert visit.hosts <= {""}
    assert visit.errors == []
    assert "src=" not in visit.page.content().partition("<script")[0]


@pytest.mark.slow
def test_page_searches_switches_labels_zooms_and_shows_names(visit: Visit, workspace: Path) -> None:
    visit.page.fill("#query", "genre 2 SONG 12")
    settled(visit)
    assert visit.page.inner_text("#status") == "Genre 2 Song 12 and its nearest:"
    found = visit.page.locator("#found button").all_inner_texts()
    printed = succeeded(crossfade_here("similar", "run", "Genre 2 Song 12", "-k", 10, cwd=workspace)).stdout
    assert found == [line.split("  ")[-1] for line in printed.splitlines()[1:]]
    visit.page.fill("#query", "song 199")
    settled(visit)
    assert visit.page.inner_text("#status") == "1 found:"
    visit.page.locator("#found button").first.click()
    assert visit.page.inner_text("#status") == "Genre 4 Song 199 and its nearest:"
    visit.page.fill("#query", "no such thing")
    assert visit.page.inner_text("#status") == "nothing found"
    visit.page.fill("#query", "")
    visit.page.focus("#map")
    visit.page.keyboard.press("0")
    settled(visit)
    whole, button = pixels(visit), visit.page.locator("#legend button").first
    button.click()
    settled(visit)
    assert button.get_attribute("aria-pressed") == "false"
    assert len(pixels(visit)) < len(whole)
    button.click()
    visit.page.focus("#map")
    for key, is_whole in (("+", False), ("0", True), ("ArrowLeft", False), ("ArrowRight", True)):
        visit.page.keyboard.press(key)
        settled(visit)
        assert (pixels(visit) == whole) == is_whole
    place: list[float] = visit.page.evaluate(
        "() => { const box = canvas.getBoundingClientRect(), ratio = devicePixelRatio; "
        "const [x, y] = screen(places[0], places[1]);"
        " return [box.left + x / ratio, box.top + y / ratio]; }"
    )
    visit.page.mouse.move(*place)
    assert visit.page.locator("#tip").is_visible()
    assert re.fullmatch(r"Genre (\d) Song \d+ \(genre \1\)", visit.page.inner_text("#tip"))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_accessible(browser: Browser, workspace: Path, drawn: str, scheme: Any) -> None:
    with visiting(browser, (workspace / "run" / "map" / "map.html").as_uri(), color_scheme=scheme) as visit:
        visit.page.fill("#query", "Genre 2 Song 12")
        visit.page.wait_for_selector("#found button")
        assert Axe().run(visit.page).response["violations"] == []


@pytest.mark.slow
def test_any_name_is_shown_as_it_is(browser: Browser, tmp_path: Path) -> None:
    names = [EVIL, *(f"Song {number}" for number in range(29))]
    place_N2 = np.random.default_rng(1).standard_normal((30, 2)).astype(np.float32)
    neighbor_NK = (np.arange(30)[:, None] + [1, 2]).astype(np.int32) % 30
    write_page(
        ItemsMap(EVIL, np.arange(30), pa.array(range(30)), names, place_N2, None, neighbor_NK),
        tmp_path / "map.html",
    )
    with visiting(browser, (tmp_path / "map.html").as_uri()) as visit:
        visit.page.fill("#query", "</SCRIPT")
        assert visit.page.locator("#found button").all_inner_texts() == [EVIL]
        visit.page.keyboard.press("Enter")
        assert visit.page.inner_text("#status") == f"{EVIL} and its nearest:"
        assert visit.page.locator("#found button").all_inner_texts() == ["Song 0", "Song 1"]
        assert visit.page.title() == visit.page.inner_text("h1") == EVIL
        assert visit.errors == []


@pytest.mark.slow
def test_only_a_map_is_replaced_and_one_seed_draws_one_map(workspace: Path, drawn: str, tmp_path: Path) -> None:
    assert "map of" in drawn
    page, notes, again = tmp_path / "map.html", tmp_path / "notes.txt", tmp_path / "again"
    page.write_bytes(b"of somebody else")
    notes.touch()
    for problem, *words in (
        ("only 3 of track can be mapped", "run", "--where", "id < 5003", "--overwrite"),
        ("is not a local run folder: name a folder for the map", "run/checkpoints"),
        ("already exists; choose another, or replace a map", "run"),
        ("already exists; choose another, or replace a map", "run", "--out", tmp_path),
        ("holds 'notes.txt', which is not part of a map", "run", "--out", tmp_path, "--overwrite"),
        ("is not a folder", "run", "--out", notes, "--overwrite"),
    ):
        rejected_here(problem, "map", *words, cwd=workspace)
    assert page.read_bytes() == b"of somebody else"
    tables = []
    for command in (("map", "run"), ("map", "run/checkpoints", "--overwrite")):
        succeeded(crossfade_here(*command, "--count", 20, "--out", again, cwd=workspace))
        assert sorted(path.name for path in again.iterdir()) == ["map.html", "map.parquet"]
        tables.append(pq.read_table(again / "map.parquet"))
    assert tables[0].drop_columns(["x", "y"]).equals(tables[1].drop_columns(["x", "y"]))
    for axis in ("x", "y"):
        assert tables[0].column(axis).to_pylist() == pytest.approx(tables[1].column(axis).to_pylist(), abs=1e-3)
