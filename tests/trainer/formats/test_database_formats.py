"""Files for Qdrant and OpenSearch: vectors, IDs, and names read back equal, and load.sh sends them in order."""

import json
import os
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import ITEM, QUERY
from command_here import crossfade_here
from error_table import documented
from recording_server import recording_server
from running_command import succeeded
from scraping import installed
from written_runs import CUSTOMER_IDS, TRACK_NAMES, TRAINED, WrittenRun, write_run

from crossfade.trainer.formats import exported_model, search_engines

pytestmark = pytest.mark.slow

DATABASES = ("qdrant", "opensearch")


@pytest.fixture
def run(tmp_path: Path) -> WrittenRun:
    return write_run(tmp_path)


def export(run: WrittenRun, to: str, *options: object) -> Path:
    """Export ``run``, and return the folder."""
    out = run.path.parent / f"{to}-out"
    succeeded(crossfade_here("export", run.path, "--to", to, "--out", out, *options))
    return out


def points_of(folder: Path) -> list[dict[str, Any]]:
    """Read the points in the files of ``folder``."""
    files = sorted(folder.glob("points-*.json"))
    return [point for file in files for point in json.loads(file.read_bytes())["points"]]


def documents_of(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the IDs and documents in the files of ``folder``."""
    for file in sorted(folder.glob("bulk-*.ndjson")):
        content = file.read_text(encoding="utf-8")
        assert content.endswith("\n")
        lines = content[:-1].split("\n")
        for action, document in zip(lines[::2], lines[1::2], strict=True):
            yield json.loads(action)["index"]["_id"], json.loads(document)


def named(names: list[str | None]) -> list[dict[str, str]]:
    return [{} if name is None else {"name": name} for name in names]


@pytest.mark.parametrize("block_rows", [3, 1 << 16])
def test_qdrant_points_have_trained_rows(run: WrittenRun, monkeypatch: pytest.MonkeyPatch, block_rows: int) -> None:
    monkeypatch.setattr(exported_model, "GROUP_ROWS", block_rows)
    monkeypatch.setattr(exported_model, "_TEXT_VALUES", 8)
    out = export(run, "qdrant")
    tracks, customers = points_of(out / ITEM), points_of(out / QUERY)
    assert [point["id"] for point in tracks] == run.trained_ids(ITEM)
    expected = zip(run.trained_ids(ITEM), named([TRACK_NAMES[row] for row in TRAINED]), strict=True)
    assert [point["payload"] for point in tracks] == [{"id": row_id, **name} for row_id, name in expected]
    assert [point["id"] for point in customers] == [str(uuid.uuid5(uuid.NAMESPACE_OID, text)) for text in CUSTOMER_IDS]
    assert [point["payload"] for point in customers] == [{"id": text} for text in CUSTOMER_IDS]
    for entity, points in ((ITEM, tracks), (QUERY, customers)):
        vectors_ND = np.array([point["vector"] for point in points], np.float32)
        np.testing.assert_array_equal(vectors_ND, run.trained_vectors(entity))


@pytest.mark.parametrize(
    ("score", "distance", "space"),
    [("cosine", "Cosine", "cosinesimil"), ("dot", "Dot", "innerproduct"), ("euclidean", "Euclid", "l2")],
)
def test_distance_is_that_of_the_score(tmp_path: Path, score: str, distance: str, space: str) -> None:
    run = write_run(tmp_path, score=score)
    collection = json.loads((export(run, "qdrant") / ITEM / "collection.json").read_text())
    assert collection == {"vectors": {"size": 4, "distance": distance}}
    mapping = json.loads((export(run, "opensearch") / ITEM / "index.json").read_text())
    assert mapping["settings"] == {"index": {"knn": True}}
    properties = mapping["mappings"]["properties"]
    assert properties["vector"]["dimension"] == 4
    assert properties["vector"]["method"] == {"name": "hnsw", "engine": "lucene", "space_type": space}
    assert properties["id"] == {"type": "long"}


def test_opensearch_documents_have_trained_rows(run: WrittenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported_model, "GROUP_ROWS", 3)
    out = export(run, "opensearch")
    names = {ITEM: named([TRACK_NAMES[row] for row in TRAINED]), QUERY: [{} for _ in CUSTOMER_IDS]}
    for entity in (ITEM, QUERY):
        ids, documents = zip(*documents_of(out / entity), strict=True)
        assert list(ids) == [str(row_id) for row_id in run.trained_ids(entity)]
        assert [document["id"] for document in documents] == run.trained_ids(entity)
        assert [{key: document[key] for key in document.keys() & {"name"}} for document in documents] == names[entity]
        vectors_ND = np.array([document["vector"] for document in documents], np.float32)
        np.testing.assert_array_equal(vectors_ND, run.trained_vectors(entity))


def test_files_stay_below_the_limit(run: WrittenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("_POINTS_BYTES", "_BULK_BYTES"):
        monkeypatch.setattr(search_engines, limit, 400)
    points, bulk = export(run, "qdrant") / QUERY, export(run, "opensearch") / QUERY
    for folder, pattern in ((points, "points-*"), (bulk, "bulk-*")):
        sizes = [file.stat().st_size for file in sorted(folder.glob(pattern))]
        assert len(sizes) > 2
        assert max(sizes) <= 400
        assert min(sizes[:-1]) > 200, "files are filled"
    assert len(points_of(points)) == len(list(documents_of(bulk))) == len(CUSTOMER_IDS)


def run_script(folder: Path, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run load.sh of ``folder`` from another folder. Without curl on this machine, skip the test; in CI, fail."""
    installed("curl", package="curl")
    return subprocess.run(
        [folder / "load.sh"],
        env={**os.environ, **variables},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_qdrant_script_loads_points_then_switches_the_alias(run: WrittenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_engines, "_POINTS_BYTES", 400)
    out = export(run, "qdrant", "--entity", ITEM, "--name", "music")
    actions = json.loads((out / ITEM / "alias.json").read_text())["actions"]
    collection = actions[1]["create_alias"]["collection_name"]
    assert actions == [
        {"delete_alias": {"alias_name": "music_track"}},
        {"create_alias": {"collection_name": collection, "alias_name": "music_track"}},
    ]
    path, secret = f"/collections/{collection}", 'a "key"\\'
    with recording_server({("GET", f"{path}/exists"): '{"result":{"exists":false}}'}) as server:
        result = run_script(out, {"QDRANT_URL": server.url, "QDRANT_API_KEY": secret})
    assert result.returncode == 0, result.stderr
    files = sorted((out / ITEM).glob("points-*.json"))
    assert len(files) > 1
    assert [(request.method, request.path, request.body) for request in server.requests] == [
        ("GET", f"{path}/exists", b""),
        ("PUT", path, (out / ITEM / "collection.json").read_bytes()),
        *(("PUT", f"{path}/points?wait=true", file.read_bytes()) for file in files),
        ("POST", "/collections/aliases", (out / ITEM / "alias.json").read_bytes()),
    ]
    assert {request.headers["api-key"] for request in server.requests} == {secret}


def test_opensearch_script_loads_documents_then_switches_the_alias(run: WrittenRun) -> None:
    out = export(run, "opensearch", "--entity", ITEM)
    actions = json.loads((out / ITEM / "alias.json").read_text())["actions"]
    index = actions[1]["add"]["index"]
    assert actions == [
        {"remove": {"index": "planted_track_*", "alias": "planted_track", "must_exist": False}},
        {"add": {"index": index, "alias": "planted_track"}},
    ]
    bulk = f"/{index}/_bulk?filter_path=errors,items.*.error"
    answers = {("POST", bulk): '{"errors":false}'}
    with recording_server(answers, {("HEAD", f"/{index}"): 404}) as server:
        variables = {"OPENSEARCH_URL": server.url, "OPENSEARCH_USER": "me", "OPENSEARCH_PASSWORD": 'p"a\\s:s'}
        result = run_script(out, variables)
    assert result.returncode == 0, result.stderr
    assert [(request.method, request.path, request.body) for request in server.requests] == [
        ("HEAD", f"/{index}", b""),
        ("PUT", f"/{index}", (out / ITEM / "index.json").read_bytes()),
        ("POST", bulk, (out / ITEM / "bulk-000000.ndjson").read_bytes()),
        ("POST", f"/{index}/_refresh", b""),
        ("POST", "/_aliases", (out / ITEM / "alias.json").read_bytes()),
    ]
    assert {request.headers["Authorization"] for request in server.requests} == {"Basic bWU6cCJhXHM6cw=="}
    assert server.requests[2].headers["Content-Type"] == "application/x-ndjson"


def test_rejected_request_ends_the_script(run: WrittenRun) -> None:
    out = export(run, "opensearch", "--entity", ITEM)
    index = json.loads((out / ITEM / "alias.json").read_text())["actions"][1]["add"]["index"]
    bulk = f"/{index}/_bulk?filter_path=errors,items.*.error"
    with recording_server({("POST", bulk): '{"errors":true}'}) as server:
        result = run_script(out, {"OPENSEARCH_URL": server.url})
    assert result.returncode != 0
    assert '"errors":true' in result.stdout
    assert server.requests[-1].path == bulk, "the alias is not switched"
    points = export(run, "qdrant", "--entity", ITEM)
    with recording_server({}, {("POST", "/collections/aliases"): 500}) as server:
        assert run_script(points, {"QDRANT_URL": server.url}).returncode != 0


def rejected(cause: str, *arguments: object) -> str:
    result = crossfade_here(*arguments)
    line = result.stderr.splitlines()[-1]
    return documented(cause, line.removeprefix("crossfade: error: "), result.returncode)


def test_limits_of_databases_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path)
    monkeypatch.setattr(search_engines, "_MAX_ID_BYTES", 3)
    rejected(
        "an ID that is too long for OpenSearch",
        *("export", run.path, "--to", "opensearch", "--out", tmp_path / "out"),
    )
    wide = write_run(tmp_path / "wide", dim=16_001)
    rejected("an export of too many columns", "export", wide.path, "--to", "pgvector", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", DATABASES)
def test_table_without_trained_rows_is_rejected(tmp_path: Path, to: str) -> None:
    untrained = write_run(tmp_path / "other", untrained=range(len(TRACK_NAMES)))
    rejected(
        "an export of an entity without trained rows",
        *("export", untrained.path, "--to", to, "--out", tmp_path / "out", "--entity", ITEM),
    )
