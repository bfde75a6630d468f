"""Malformed requests to the dashboard: 4xx in one line, never an exception of the application."""

import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from recorded_service import make_record
from run_folders import epoch, step, write_run

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
    *(b'{"output": "x.y"}', b'{"output": ["x"]}', b'{"output": "\\ud800"}'),
)
CHANGES: tuple[dict[str, Any], ...] = (
    *({"inputs": value} for value in (None, [], [1], [{}], {}, [{}] * 10_000, 1e999)),
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


def valid_request(client: FlaskClient) -> dict[str, Any]:
    [callback] = client.get("/_dash-dependencies").get_json()
    names = callback["output"].strip(".").split("...")
    outputs = [dict(zip(("id", "property"), name.rsplit(".", 1), strict=True)) for name in names]
    inputs, states = ([{**part, "value": None} for part in callback[key]] for key in ("inputs", "state"))
    return {"output": callback["output"], "outputs": outputs, "inputs": inputs, "state": states, "changedPropIds": []}


def status(client: FlaskClient, body: object) -> int:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(PATH, data=data, content_type="application/json").status_code


def test_malformed_requests_for_the_callback_are_rejected(client: FlaskClient) -> None:
    for body in NO_REQUESTS:
        assert status(client, body) == 400, body
    request = valid_request(client)
    assert status(client, request) == 200
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
            assert answers.count(400) >= 6, part


def test_requests_of_other_types_and_for_unknown_files_are_rejected(client: FlaskClient) -> None:
    for media_type in ("text/plain", "multipart/form-data; boundary=x", None):
        assert client.post(PATH, data=b"{}", content_type=media_type).status_code == 415
    assert client.post(PATH, data=b"{}", content_type="application/json; charset=utf-16").status_code == 400
    for path in ("x/y.js", "dash/no_file.js", "dash/../../x", "%00/%ff"):
        assert client.get(f"/_dash-component-suites/{path}").status_code == 404
    for path in ("/?run=%ff", "/%ff%00", "/explore/api/search?run=%00&text=%ed%a0%80"):
        assert client.get(path).status_code == 200
