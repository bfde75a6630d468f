"""Versions that a server makes of an increment: the answers of a server that is started on it."""

import json
import re
from pathlib import Path
from typing import Any

import psutil
import pytest
from refreshed_service import CUSTOMERS, NEW_CUSTOMERS, TRACKS, ServiceFolder
from running_command import succeeded
from serving import RunningServer, running_server
from waiting import wait_until

from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.recommend.trained_model import with_trained_model
from crossfade.trainer.runs.options import ModelSource
from crossfade.trainer.serving.version_folder import VersionCard, VersionOptions, write_version

pytestmark = pytest.mark.slow

OPTIONS = VersionOptions(index_from=1, recall=1.0)


def written(service: ServiceFolder, number: int, out: Path) -> VersionCard:
    """Write a version of the model of a version of the service to ``out``."""
    source = ModelSource.of(source=str(service.run(number)))
    return with_trained_model(source, print, lambda model: write_version(model, out, OPTIONS, NullReporter()))


def answers(server: RunningServer) -> dict[str, Any]:
    """Return what the server answers about everything, by request."""
    customers = [f"c{number}" for number in range(CUSTOMERS + 2 * NEW_CUSTOMERS + 1)]
    body = {"ids": customers, "k": 9, "where": [{"column": "count", "op": "gt", "value": 30}]}
    found = {
        "recommend": server.post("recommend", body),
        "similar": server.post("similar", {"ids": [f"t{number}" for number in range(TRACKS)], "k": 9}),
        "vectors": server.get("vector", id=customers[:-1], entity="customer"),
        "model": server.get("model"),
    }
    return {
        name: re.sub(r'"version": \d+|version-\d+|"20\d\d-[^"]+"', "", json.dumps(answer))
        for name, answer in found.items()
    }


def writer(server: RunningServer) -> psutil.Process | None:
    """Return the process that writes a version."""
    found = [process for process in server.command.mark.processes() if process.nice() == 19]
    return found[0] if found else None


def test_server_follows_an_increment_as_a_server_that_is_started_on_it(service: ServiceFolder) -> None:
    """The process that first writes the version is killed."""
    with running_server(service.path, "--refresh", 0.1, cwd=service.folder) as server:
        before = answers(server)
        service.add(3)
        succeeded(service.command("refresh"))
        wait_until(lambda: writer(server) is not None, "a process writes the version")
        process = writer(server)
        assert process is not None
        process.kill()
        number = service.current()["version"]
        wait_until(lambda: server.get("healthz")[1]["version"] == number, "the new version is served")
        assert server.metric('crossfade_serve_refreshes_total{result="failure"}') == 1
        assert server.metric("crossfade_serve_version_write_seconds_count") == 2
        found = answers(server)
    with running_server(service.path, "--refresh", 0.1, cwd=service.folder) as server:
        assert found == answers(server)
        succeeded(service.command("rollback"))
        wait_until(lambda: server.get("healthz")[1]["version"] == number - 1, "the version before is served")
        assert answers(server) == before
    assert all(found[name] != before[name] for name in found)
