"""The routes of the page Explore, without a browser."""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster_data import TRACKS
from explored_runs import COLD_TRACK, name_of, write_map, write_runs
from flask.testing import FlaskClient
from waiting import wait_until

from crossfade.deploy.dashboard import bounded_lock, explore
from crossfade.deploy.dashboard.app import make_app
from crossfade.deploy.dashboard.explored_models import ExploredModels
from crossfade.deploy.dashboard.run_reader import Runs

pytestmark = pytest.mark.slow

ROW, ITEM, CUSTOMER = 7, "5007", "c003"


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
        ("map", {"run": "/etc"}, "there is no run '/etc'"),
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


def test_map_that_cannot_be_read_is_an_error(client: FlaskClient, workspace: Path) -> None:
    path = write_map(workspace / "runs" / "one")
    points = answer(client, "map")["points"]
    assert (len(points["ids"]), points["ids"][7], points["names"][7]) == (TRACKS, ITEM, name_of(ROW))
    assert (min(points["x"]), max(points["x"])) == (0, 10_000)
    assert [points["labels"][label]["name"] for label in points["label"][1:4]] == ["genre 1", "genre 2", "genre 3"]
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 3] ^= 255
    for content, reason in ((b"not Parquet", "Parquet magic bytes not found"), (bytes(damaged), "CRC")):
        path.write_bytes(content)
        try:
            error = answer(client, "map")["error"]
        finally:
            write_map(workspace / "runs" / "one")
        fix = "draw it again with 'crossfade map .*one --overwrite'"
        assert re.search(rf"map\.parquet: cannot be read: .*{reason}.*; {fix}", error), error


def test_only_the_points_of_a_large_map_that_are_shown_take_memory(tmp_path: Path) -> None:
    zeros_N = pa.array(np.zeros(1_000_000, np.int32))
    text = pa.DictionaryArray.from_arrays(zeros_N, pa.array(["a"]))
    table = pa.table({"id": text, "name": text, "x": zeros_N.cast(pa.float64()), "y": zeros_N.cast(pa.float64())})
    pq.write_table(table, tmp_path / "map.parquet")
    before = pa.total_allocated_bytes()
    with (tmp_path / "map.parquet").open("rb") as file:
        points = explore._read_table(file)
    assert points.num_rows == explore.MAX_POINTS
    assert pa.total_allocated_bytes() - before < 10 << 20


def test_folder_of_runs_that_another_request_reads_is_an_error_in_the_page(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_lock, "WAIT_SECONDS", 0.0)
    runs = Runs([workspace / "runs"])
    with closing(ExploredModels()) as models, runs._lock:
        client = make_app(runs, models, "runs").server.test_client()
        assert "the folder of the runs is being read" in answer(client, "map")["error"]
