"""The routes of the page Explore, without a browser."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from explored_runs import COLD_TRACK, name_of, write_runs
from flask.testing import FlaskClient
from waiting import wait_until

from crossfade.deploy.dashboard.app import make_app
from crossfade.deploy.dashboard.explored_models import ExploredModels
from crossfade.deploy.dashboard.run_reader import Runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("explore"))


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
        ("model", {"run": "empty"}, "it has neither embeddings nor a complete checkpoint yet"),
    ],
)
def test_invalid_request_is_answered_with_an_error(
    client: FlaskClient, route: str, parameters: dict[str, str], error: str
) -> None:
    assert error in answer(client, route, **parameters)["error"]


def test_newest_embeddings_come_first(client: FlaskClient) -> None:
    assert client.get("/explore/api/runs").json == {"source": "runs", "runs": ["two", "one", "empty"]}
    for path in ("/explore", "/explore/"):
        assert "<title>Explore" in client.get(path).text
    assert "explore" not in client.get("/").text
