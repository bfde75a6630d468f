"""Versions that a server makes from the one before: the answers of a complete copy, and nothing of what is gone."""

import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from crashing_storage import Crash
from refreshed_service import CUSTOMERS, NEW_CUSTOMERS, TRACKS, ServiceFolder
from running_command import succeeded
from serving import RunningServer, running_server
from waiting import wait_until

from crossfade.base.io.checksums import verify_files
from crossfade.deploy.serving.versions import Versions
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.recommend.options import RecommendOptions, SimilarOptions
from crossfade.trainer.recommend.trained_model import with_trained_model
from crossfade.trainer.runs.options import ModelSource
from crossfade.trainer.serving import version_folder
from crossfade.trainer.serving.version import open_version
from crossfade.trainer.serving.version_folder import CARD_FILE, NAMES, VersionCard, VersionOptions, write_version

pytestmark = pytest.mark.slow

OPTIONS = VersionOptions(index_from=1, recall=1.0)


def written(
    service: ServiceFolder, number: int, out: Path, earlier: Path | None = None, options: VersionOptions = OPTIONS
) -> VersionCard:
    """Write a version of the model of a version of the service to ``out``."""
    source = ModelSource.of(source=str(service.run(number)))
    return with_trained_model(source, print, lambda model: write_version(model, out, options, NullReporter(), earlier))


def test_continued_version_answers_as_a_complete_copy(undisturbed: ServiceFolder, tmp_path: Path) -> None:
    assert written(undisturbed, 2, tmp_path / "earlier").continues is None
    card = written(undisturbed, 3, tmp_path / "continued", tmp_path / "earlier")
    assert card.continues is not None
    complete = written(undisturbed, 3, tmp_path / "complete")
    exact = [name for name in card.files if name.startswith(("data", "vectors", "histories", "counts"))]
    assert len(exact) >= 9
    assert {name: card.files[name] for name in exact} == {name: complete.files[name] for name in exact}
    with (
        closing(open_version(tmp_path / "continued")) as continued,
        closing(open_version(tmp_path / "complete")) as other,
    ):
        everyone_Q = np.flatnonzero(other.model.trained_rows("customer"))
        assert len(everyone_Q) > CUSTOMERS
        for options in (RecommendOptions(k=8), RecommendOptions(k=8, exclude=()), RecommendOptions(where="count > 20")):
            for found, expected in zip(
                continued.model.recommend(everyone_Q, options), other.model.recommend(everyone_Q, options), strict=True
            ):
                np.testing.assert_array_equal(found, expected)
        tracks_Q = np.arange(TRACKS)
        for found, expected in zip(
            continued.model.similar(tracks_Q, SimilarOptions(k=5)),
            other.model.similar(tracks_Q, SimilarOptions(k=5)),
            strict=True,
        ):
            np.testing.assert_array_equal(found, expected)
        for entity in ("customer", "track"):
            names = [version.model.files.names(entity) for version in (continued, other)]
            texts = [label.id for label in names[1].labels(range(60)).values()]
            assert len(texts) >= TRACKS
            assert names[0].found(texts) == names[1].found(texts)
            assert names[0].search("c4", 99) == names[1].search("c4", 99)


def test_interrupted_version_leaves_the_one_that_it_continues(
    undisturbed: ServiceFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise Crash

    versions = Versions(tmp_path)
    path = versions.next_path()
    written(undisturbed, 3, path)
    versions.publish(path)
    with monkeypatch.context() as patch:
        patch.setattr(version_folder, "write_metadata", crash)
        with pytest.raises(Crash):
            written(undisturbed, 3, tmp_path / "000002", versions.current_path())
    assert (tmp_path / "000002" / NAMES).samefile(path / NAMES)
    card = written(undisturbed, 3, versions.next_path(), path)
    assert card.continues is not None
    verify_files(path, VersionCard.model_validate_json((path / CARD_FILE).read_text()).files, CARD_FILE, "")


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
        kinds = {kind: written_by(server, kind) for kind in ("complete", "delta")}
        assert kinds == {"complete": 1, "delta": 1}
        found = answers(server)
    with running_server(service.path, "--refresh", 0.1, cwd=service.folder) as server:
        assert found == answers(server)
        succeeded(service.command("rollback"))
        wait_until(lambda: server.get("healthz")[1]["version"] == number - 1, "the version before is served")
        assert answers(server) == before
    assert all(found[name] != before[name] for name in found)


def written_by(server: RunningServer, kind: str) -> float:
    """Return how many versions were written as ``kind``."""
    return server.metric(f'crossfade_serve_version_write_seconds_count{{kind="{kind}"}}')
