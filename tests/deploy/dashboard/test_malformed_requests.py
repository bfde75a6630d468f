"""Malformed requests to the dashboard: 4xx in one line, never an exception of the application."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from recorded_service import make_record
from run_folders import epoch, step, write_run

from crossfade.deploy.dashboard import bounded_lock
from crossfade.deploy.dashboard.app import make_app
from crossfade.deploy.dashboard.explored_models import ExploredModels
from crossfade.deploy.dashboard.run_reader import Runs
from crossfade.deploy.refresh.versions import ServiceVersions

pytestmark = pytest.mark.slow

PATH = "/_dash-update-component"
VALUES = (
    *(1, -1.5, 2**70, "x", True, [1], [[]], {"a": 1}, ["\ud800"], ["x"] * 1000, ["one", "one"], float("inf")),
    *("?run=%ff", "?run=one&run=one&service=\ud800", "?" + "run=%41&" * 5000, float("nan")),
)
NO_REQUESTS = (
    *(b"", b"null", b"[]", b"{", b"{}", b"[" * 100_000, b"1" * 5000, b"\xff", b'{"output": NaN}', b'{"output": 1}'),
    *(
        b'{"output": "x.y"}',
        b'{"output": ["x"]}',
        b'{"output": "\\ud800"}',
        b'{"output": "axis.data", "inputs": 1e999}',
    ),
)
CHANGES: tuple[dict[str, Any], ...] = (
    *({"inputs": value} for value in (None, [], [1], [{}], {}, [{}] * 10_000)),
    *({"state": value} for value in (None, [{}], [1, 2, 3, 4, 5])),
    *({"outputs": value} for value in (None, [], [1], {"id": 1})),
    *({"changedPropIds": value} for value in (None, [1], ["{.x"], ["a"], ["a.b"], [1] * 10_000)),
)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """Return runs, of which one has a name in other bytes than UTF-8, and a service."""
    for name in ("one", os.fsdecode(b"\xff")):
        write_run(tmp_path / name, metrics=[step(1, at=1), step(25, at=2), epoch(1, at=2, step=25, quality=0.2)])
    (tmp_path / "music").mkdir()
    ServiceVersions(tmp_path / "music").write(make_record(1))
    return Runs([tmp_path])


@pytest.fixture
def client(runs: Runs) -> Iterator[FlaskClient]:
    with closing(ExploredModels()) as models:
        server = make_app(runs, models, "runs").server
        server.testing = True  # an exception reaches the test
        yield server.test_client()


def request_of(callback: dict[str, Any]) -> dict[str, Any]:
    """Return a valid request for ``callback``."""
    names = callback["output"].strip(".").split("...")
    outputs = [dict(zip(("id", "property"), name.rsplit(".", 1), strict=True)) for name in names]
    values = {"axis": "step", "selected": ["one"]}
    inputs, states = (
        [{**part, "value": values.get(part["id"])} for part in callback[key]] for key in ("inputs", "state")
    )
    return {"output": callback["output"], "outputs": outputs, "inputs": inputs, "state": states, "changedPropIds": []}


def status(client: FlaskClient, body: object) -> int:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(PATH, data=data, content_type="application/json").status_code


def test_malformed_requests_for_callbacks_are_rejected(client: FlaskClient) -> None:
    for body in NO_REQUESTS:
        assert status(client, body) == 400, body
    for callback in client.get("/_dash-dependencies").get_json():
        request = request_of(callback)
        in_browser = callback["clientside_function"] is not None
        assert status(client, request) == (400 if in_browser else 200)
        for change in CHANGES:
            assert status(client, request | change) == 400, change
        for key in ("inputs", "state"):
            for number, part in enumerate(request[key]):
                answers = []
                for value in VALUES:
                    parts = [*request[key]]
                    parts[number] = {**part, "value": value}
                    answers.append(status(client, request | {key: parts}))
                assert set(answers) <= {200, 400}
                assert answers.count(400) >= (len(VALUES) if in_browser else 6), part


def test_run_named_twice_is_shown_once(client: FlaskClient) -> None:
    [show] = [each for each in client.get("/_dash-dependencies").get_json() if each["output"].startswith("..head.")]
    request = request_of(show)
    request["inputs"][1]["value"] = ["one", "none", "one"]
    shown = client.post(PATH, json=request).json["response"]
    assert len(shown["head"]["children"]) == 1
    assert len(shown["graph-loss"]["figure"]["data"]) == 2


def test_run_that_another_request_reads_is_answered_in_time(
    client: FlaskClient, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_lock, "WAIT_SECONDS", 0.0)
    [run] = runs.readers()
    for callback in client.get("/_dash-dependencies").get_json():
        if {"id": "selected", "property": "data"} in callback["inputs"]:
            with run.lock:
                answer = client.post(PATH, json=request_of(callback))
            assert (answer.status_code, "the run 'one' is being read" in answer.text) == (503, True)
            assert status(client, request_of(callback)) == 200


def test_wait_for_several_runs_ends_at_one_time(runs: Runs) -> None:
    [run] = runs.readers()
    passed = time.monotonic()
    with run.lock, pytest.raises(bounded_lock.BusyError), run.lock.held(passed):
        pass
    with run.lock.held(passed):  # a free lock takes no time
        pass


def test_requests_of_other_types_and_for_unknown_files_are_rejected(client: FlaskClient) -> None:
    for media_type in ("text/plain", "multipart/form-data; boundary=x", None):
        assert client.post(PATH, data=b"{}", content_type=media_type).status_code == 415
    assert client.post(PATH, data=b"{}", content_type="application/json; charset=utf-16").status_code == 400
    for path in ("x/y.js", "dash/no_file.js", "dash/../../x", "%00/%ff"):
        assert client.get(f"/_dash-component-suites/{path}").status_code == 404
    for path in ("/?run=%ff", "/%ff%00", "/explore/api/search?run=%00&text=%ed%a0%80"):
        assert client.get(path).status_code == 200
