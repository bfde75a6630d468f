"""The search for a generation's start, and the checks of a job's hosts."""

import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

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
    monkeypatch.setattr(supervision, "find_start", Mock(side_effect=error))
    job = load_job(write_job(tmp_path / "job.yaml", tmp_path, cluster={"servers": 2, "workers": 2}))
    cluster, search = Cluster(), StartFinder(job, RunFolder(tmp_path / "run"), resume=True)

    def has_ended() -> bool:
        search.run_once(cluster.coordinator)
        return cluster.state is state

    wait_until(has_ended, f"the state {state}")
    assert cluster.coordinator.generation == 0


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
