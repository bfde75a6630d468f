"""The search for a generation's start, and the checks of a job's hosts."""

import re
import threading
from pathlib import Path
from typing import Any

import pytest
from cluster_data import write_job
from scripted_agents import Cluster
from waiting import wait_until

from crossfade.base.errors import InputError
from crossfade.deploy.cluster import supervision
from crossfade.deploy.cluster.job_state import State
from crossfade.deploy.cluster.supervision import StartFinder
from crossfade.deploy.topology import TOKEN_VARIABLE
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.config.sections import ClusterConfig
from crossfade.trainer.runs.run_folder import RunFolder


class SearchedJob:
    """A job whose search for a start finishes when the test lets it."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, resume: bool) -> None:
        self.may_answer = threading.Event()
        self.asked: list[tuple[str, frozenset[str]]] = []
        self.error: Exception | None = None
        monkeypatch.setattr(supervision, "find_start", self._find)
        job = load_job(write_job(tmp_path / "job.yaml", tmp_path, cluster={"servers": 2, "workers": 2}))
        self.cluster = Cluster()
        self.folder = RunFolder(tmp_path / "run")
        self.search = StartFinder(job, self.folder, resume)

    def _find(self, checkpoints: str, rejected: frozenset[str], **_: Any) -> Any:
        self.asked.append((checkpoints, rejected))
        assert self.may_answer.wait(30)
        if self.error is not None:
            raise self.error
        return None, ["folder/step-9: is partial"]

    def run_until(self, state: State) -> None:
        def reached() -> bool:
            self.search.run_once(self.cluster.coordinator)
            return self.cluster.state is state

        wait_until(reached, f"the state {state}")


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (OSError("the store is away"), State.BACKOFF),
        (RuntimeError("a fault of ours"), State.BACKOFF),
        (InputError("no such scheme"), State.FAILED),
    ],
)
def test_failed_search_is_retried_unless_the_input_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, state: State
) -> None:
    searching = SearchedJob(tmp_path, monkeypatch, resume=True)
    searching.may_answer.set()
    searching.error = error
    searching.run_until(state)
    assert searching.cluster.coordinator.generation == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"hosts": 2},
            "the job has 2 hosts, but the other hosts' agents have nowhere to join: set cluster.coordinator_address",
        ),
        ({"coordinator_address": "127.0.0.1"}, "cluster.coordinator_address: expected HOST:PORT"),
        (
            {"coordinator_address": "10.0.0.1:7070", "hosts": 2},
            "cluster.host is 127.0.0.1, where the roles of other hosts cannot",
        ),
    ],
)
def test_hosts_that_cannot_join_or_connect_are_rejected(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "0123456789abcdef")
    with pytest.raises(InputError, match=re.escape(message)):
        supervision.check_hosts(ClusterConfig(servers=1, **settings))
    monkeypatch.delenv(TOKEN_VARIABLE)
    with pytest.raises(InputError, match=r"cluster\.coordinator_address needs .* CROSSFADE_TOKEN"):
        supervision.check_hosts(ClusterConfig(servers=1, coordinator_address="127.0.0.1:0"))
