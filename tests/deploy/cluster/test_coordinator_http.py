"""The coordinator over HTTP: heartbeats, status, tokens and errors."""

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from scripted_agents import Cluster, Host, step

from crossfade.deploy.cluster.coordinator_http import MAX_BODY_BYTES, RemoteCoordinator, serve_coordinator
from crossfade.deploy.cluster.job_state import State
from crossfade.deploy.cluster.messages import NumberedEvent
from crossfade.deploy.topology import Address

TOKEN = "a-secret-of-this-test-alone"

Ask = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def served() -> Iterator[tuple[Cluster, Address]]:
    """Serve a coordinator that waits for a second host; yield it and its address."""
    cluster = Cluster(hosts=2)
    with serve_coordinator(cluster.coordinator, Address("127.0.0.1", 0), TOKEN) as address:
        yield cluster, address


@pytest.fixture
def ask(served: tuple[Cluster, Address]) -> Ask:
    """Send a request; return the status and the JSON of the answer."""

    def send(method: str, path: str, body: bytes | None = None, **headers: str | None) -> tuple[int, dict[str, Any]]:
        _, address = served
        sent = {"Authorization": f"Bearer {TOKEN}", **headers}
        response = requests.request(method, f"http://{address}{path}", data=body, headers=sent, timeout=60)
        return response.status_code, response.json()

    return send


def test_agent_joins_and_gets_desired_states_over_http(
    served: tuple[Cluster, Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, address = served
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):  # which would get the token
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    remote = RemoteCoordinator(address, TOKEN)
    agent = Host(cluster, "127.0.0.2")
    first_desired = remote.send_heartbeat(agent.make_heartbeat())
    assert remote.send_heartbeat(agent.make_heartbeat(coordinator=first_desired.coordinator)).action == "wait"
    assert cluster.state is State.PREPARING
    cluster.start()
    event = NumberedEvent(
        number=1, generation=1, role="worker-0", event=step(3).model_copy(update={"loss": float("inf")})
    )
    desired = remote.send_heartbeat(agent.make_heartbeat(coordinator=first_desired.coordinator, events=[event]))
    assert (desired.action, desired.roles, desired.acknowledged_event) == ("run", ["server-1", "worker-1"], 1)
    assert [event["loss"] for event in cluster.events("step")] == [float("inf")]


@pytest.mark.parametrize("given", [None, "", f"Bearer {TOKEN}x", "Bearer é"])
def test_request_without_token_is_rejected_and_changes_nothing(
    served: tuple[Cluster, Address], ask: Ask, given: str | None
) -> None:
    cluster, _ = served
    body = Host(cluster, "127.0.0.2").make_heartbeat(coordinator=cluster.coordinator.id).model_dump_json().encode()
    for path in ("/v1/heartbeat", "/anything"):
        status, answer = ask("POST", path, body, Authorization=given)
        assert status == 401
        assert set(answer) == {"error"}
        assert TOKEN not in answer["error"]
        assert cluster.state is State.WAITING


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"not json", 400, "not a heartbeat"),
        (pickle.dumps({"agent": "a"}), 400, "not a heartbeat"),
        (b'{"agent": "a"}', 400, "host: is missing"),
        (b'{"agent": "a", "host": "h", "address": "a", "number": 1, "more": 2}', 400, "more: is not a known key"),
        (b" " * (MAX_BODY_BYTES + 1), 413, "more than"),
    ],
    ids=["text", "pickle", "missing", "unknown field", "too large"],
)
def test_invalid_heartbeat_is_rejected(
    served: tuple[Cluster, Address], ask: Ask, body: bytes, status: int, message: str
) -> None:
    cluster, _ = served
    answer = ask("POST", "/v1/heartbeat", body)
    assert answer[0] == status
    assert message in answer[1]["error"]
    assert cluster.coordinator.remote_hosts() == []
