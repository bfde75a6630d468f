"""The page Explore in a real browser, its routes, and the models that it opens, of runs trained on planted data."""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Visit, checked_visit
from explored_runs import COLD_TRACK, name_of, write_runs
from flask.testing import FlaskClient
from playwright.sync_api import Browser, Locator, expect
from running_command import started
from waiting import wait_until

from crossfade.deploy.dashboard.app import make_app
from crossfade.deploy.dashboard.explored_models import ExploredModels
from crossfade.deploy.dashboard.run_reader import Runs
from crossfade.trainer.recommend.options import SimilarOptions
from crossfade.trainer.serving.version import Version

pytestmark = pytest.mark.slow

ROW, ITEM, CUSTOMER = 7, "5007", "c003"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("explore"))


@pytest.fixture(scope="module")
def address(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the page, with its copies in a folder that the tests may leave behind."""
    copies = {"TMPDIR": str(tmp_path_factory.mktemp("copies"))}
    with started("dashboard", "--port", 0, cwd=workspace, variables=copies) as command:
        assert command.process.stdout is not None
        yield command.process.stdout.readline().split()[1]


@pytest.fixture(scope="module")
def client(workspace: Path) -> Iterator[FlaskClient]:
    with closing(ExploredModels()) as models:
        yield make_app(Runs([workspace / "runs"]), models, "runs").server.test_client()


def answer(client: FlaskClient, route: str, **parameters: str) -> Any:
    """Ask until the model is open, and return the answer."""
    found: dict[str, Any] = {}

    def has_answered() -> bool:
        response = client.get(f"/explore/api/{route}", query_string={"run": "one", **parameters})
        assert response.status_code == 200
        found.clear()
        found.update(response.json)
        return "preparing" not in found

    wait_until(has_answered, route)
    return found


def table(visit: Visit, caption: str) -> Locator:
    return visit.page.get_by_role("table", name=re.compile(caption))


def names_in(found: Locator) -> list[str]:
    return found.locator("tbody th").all_text_contents()


def press(visit: Visit, *keys: str) -> None:
    for key in keys:
        visit.page.keyboard.press(key)


def test_item_is_searched_and_neighbors_are_followed_by_keyboard_alone(
    browser: Browser, address: str, client: FlaskClient
) -> None:
    rows = answer(client, "neighbors", item=ITEM)["rows"]
    with checked_visit(browser, f"{address}explore?run=one") as visit:
        page, title = visit.page, visit.page.locator("#neighbors-title")
        expect(title).to_have_text("Items of one")
        press(visit, "Tab")
        expect(page.get_by_role("link", name="Skip to the results")).to_be_focused()
        press(visit, *["Tab"] * 3)
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
        assert names_in(found) == [row["name"] for row in rows]
        assert found.locator("td.number").all_text_contents() == [f"{row['score']:.3f}" for row in rows]
        page.wait_for_url(f"**/explore?run=one&item={ITEM}")
        found.get_by_role("link").nth(2).focus()
        press(visit, "Enter")
        expect(title).to_have_text(f"Neighbors of {rows[2]['name']}")
        expect(title).to_be_focused()
        page.wait_for_url(f"**/explore?run=one&item={rows[2]['id']}")
        page.go_back()
        expect(title).to_have_text(f"Neighbors of {name_of(ROW)}")
        page.go_back()
        expect(title).to_have_text("Items of one")
        expect(page.locator("#item")).to_have_value("")
        page.go_forward()
        page.reload()
        expect(title).to_have_text(f"Neighbors of {name_of(ROW)}")


# ---- models


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that has the copies."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def models(copies: Path) -> Iterator[ExploredModels]:
    with closing(ExploredModels()) as models:
        yield models


def neighbors(version: Version) -> list[int]:
    rows: list[int] = version.model.similar(np.array([7]), SimilarOptions(k=5))[0][0].tolist()
    return rows


def ask(models: ExploredModels, run: Path, question: Callable[[Version], Any] = neighbors) -> Any:
    """Ask until the model is open, and return the answer."""
    answers: list[Any] = []

    def has_answered() -> bool:
        answers[:] = [models.ask(run, question)]
        return answers[0] is not None

    wait_until(has_answered, f"the model of {run}")
    return answers[0]


def written_copies(folder: Path) -> list[Path]:
    return sorted(folder.glob("crossfade-model-*/*/version.json"))


def test_model_is_prepared_once_and_again_for_new_embeddings(
    workspace: Path, models: ExploredModels, copies: Path
) -> None:
    run = copies / "run"
    shutil.copytree(workspace / "runs" / "one", run)
    assert models.ask(run, neighbors) is None
    before = ask(models, run)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: models.ask(run, neighbors), range(32)))
    assert answers == [before] * 32
    assert len(written_copies(copies)) == 1
    shutil.rmtree(run / "embeddings")
    shutil.copytree(workspace / "runs" / "two" / "embeddings", run / "embeddings")
    expected = ask(models, workspace / "runs" / "two")
    assert expected != before
    assert ask(models, run) == expected
    wait_until(lambda: len(written_copies(copies)) == 2, "the deletion of the earlier copy")


# ---- routes


def test_items_are_found_by_words_and_ids(client: FlaskClient) -> None:
    assert answer(client, "search", text="song 19")["rows"][0] == {"id": "5019", "name": name_of(19)}
    assert answer(client, "search", text="5007")["rows"] == [{"id": "5007", "name": name_of(7)}]
    assert len(answer(client, "search", text="genre")["rows"]) == 12
    for text in ("", "nothing", '"*', "' OR 1"):
        assert answer(client, "search", text=text)["rows"] == []


@pytest.mark.parametrize(
    ("route", "parameters", "error"),
    [
        ("neighbors", {"item": "no such"}, "there is no track with the ID or name 'no such'"),
        ("neighbors", {}, "there is no track with the ID or name ''"),
        ("neighbors", {"item": str(COLD_TRACK)}, "has no interaction of positive weight in train"),
        ("recommendations", {"customer": "c999"}, "there is no customer with the ID or name 'c999'"),
        ("model", {"run": "../data"}, "there is no run '../data'"),
        ("model", {"run": "/etc"}, "there is no run '/etc'"),
        ("model", {"run": "invalid"}, "job.yaml: the key 'data"),
        ("model", {"run": "empty"}, "it has neither embeddings nor a complete checkpoint yet"),
    ],
)
def test_invalid_request_is_answered_with_an_error(
    client: FlaskClient, route: str, parameters: dict[str, str], error: str
) -> None:
    assert error in answer(client, route, **parameters)["error"]
