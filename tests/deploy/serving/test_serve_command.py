"""The serve command: routes, limits, versions that are swapped under load, processes, signals, and rejected input."""

import asyncio
import http.client
import json
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from browser import browsing, checked_visit
from cluster_data import GENRES, TRACKS, write_job, write_planted
from command_here import crossfade_here
from playwright.sync_api import expect
from running_command import succeeded
from serving import RunningServer, running_server
from waiting import wait_until

from crossfade.base.io.checksums import FileChecksum
from crossfade.deploy.serving import app, metrics, refresher
from crossfade.deploy.serving.current import CurrentVersion
from crossfade.deploy.serving.options import ServeOptions
from crossfade.deploy.serving.schemas import RecommendQuery
from crossfade.deploy.topology import Address
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.serving.copies_folder import CopiesFolder
from crossfade.trainer.serving.version_folder import CARD_FILE, NAMES

TOKEN = "a-secret-of-this-test-alone"
NOT_G0 = {"column": "genre", "op": "ne", "value": "g0"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    data = write_planted(folder / "data", named=True, tracks=TRACKS + 1)
    write_job(folder / "job.yaml", data, train={"epochs": 4})
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=folder))
    lines = "".join(f"{5000 + row},g{row % GENRES}\n" for row in range(TRACKS))
    (folder / "songs.csv").write_text(f"track,genre\n{lines}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def server(workspace: Path) -> Iterator[RunningServer]:
    with running_server("run", "--metadata", "songs.csv", cwd=workspace) as running:
        yield running


def near(score: float) -> Any:
    """Return what equals ``score`` but for rounding: sums in a matrix product depend on its shape."""
    return pytest.approx(score, abs=1e-6)


def recommended(workspace: Path, *arguments: object) -> list[dict[str, Any]]:
    """Return what ``crossfade recommend`` prints."""
    printed = succeeded(crossfade_here("recommend", "run", *arguments, "--json", cwd=workspace)).stdout
    return [
        {"id": item["track"], "name": item["name"], "score": near(item["score"])}
        for item in json.loads(printed)[0]["recommendations"]
    ]


def test_recommendations_are_those_of_the_command(workspace: Path, server: RunningServer) -> None:
    status, found = server.get("recommend", id="c010", k=5)
    assert (status, found["version"]) == (200, 1)
    assert found["result"] == {
        "id": "c010",
        "name": None,
        "items": recommended(workspace, "--customer", "c010", "-k", 5),
        "error": None,
        "is_fallback": False,
    }
    body = {"ids": ["c011", "c010"], "k": 5, "where": [NOT_G0], "max_per": {"column": "genre", "count": 2}}
    status, both = server.post("recommend", body)
    assert status == 200
    options = ("-k", 5, "--where", "genre <> 'g0'", "--metadata", "songs.csv", "--max-per", "genre=2")
    assert [result["items"] for result in both["results"]] == [
        recommended(workspace, "--customer", customer, *options) for customer in ("c011", "c010")
    ]
    assert server.post("invocations", body) == (200, both)
    options = {"popularity_damping": 0.3, "diversity": 0.6}
    words = (word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value))
    reranked = recommended(workspace, "--customer", "c010", "-k", 5, *words)
    assert server.post("recommend", {"ids": ["c010"], "k": 5, **options})[1]["results"][0]["items"] == reranked
    assert reranked != found["result"]["items"]
    everything = recommended(workspace, "--customer", "c010", "-k", 5, "--exclude")
    assert server.get("recommend", id="c010", k=5, exclude="")[1]["result"]["items"] == everything
    assert server.post("recommend", {"ids": ["c010"], "k": 5, "exclude": []})[1]["results"][0]["items"] == everything


def test_new_customers_get_recommendations_by_history(workspace: Path, server: RunningServer) -> None:
    history = [{"id": "genre 3 song 8"}, {"id": 5013, "weight": 1.0}, {"id": "unknown"}]
    status, found = server.post("recommend", {"histories": [history], "k": 4})
    assert status == 200
    assert found["results"][0]["items"] == recommended(workspace, "--history", "5008", "5013", "-k", 4)


def test_similar_rows_and_vectors(workspace: Path, server: RunningServer) -> None:
    status, found = server.get("similar", id="Genre 2 Song 7", k=4)
    printed = succeeded(crossfade_here("similar", "run", "5007", "-k", 4, "--json", cwd=workspace)).stdout
    [listed] = json.loads(printed)
    assert (status, listed["track"], listed["name"]) == (200, 5007, "Genre 2 Song 7")
    assert found["result"]["items"] == [
        {"id": row["track"], "name": row["name"], "score": near(row["cosine"])} for row in listed["neighbors"]
    ]
    assert server.post("similar", {"ids": [5007], "k": 4})[1]["results"] == [found["result"]]
    status, vectors = server.get("vector", id=["c010", "c011"], entity="customer")
    assert (status, vectors["score"], len(vectors["vectors"][1]["vector"])) == (200, "cosine", 8)
    status, model = server.get("model")
    assert (status, model["columns"], model["entities"]["customer"]["rows"]) == (
        200,
        ["id", "name", "count", "genre"],
        300,
    )


def test_unknown_customers_get_popular_items_unless_they_are_left_out(workspace: Path, server: RunningServer) -> None:
    popular = recommended(workspace, "--customer", "c999", "-k", 3, "--on-unknown", "popular")
    fallback = {"id": "c999", "name": None, "items": popular, "error": None, "is_fallback": True}
    metric = 'crossfade_serve_unknown_queries_total{on_unknown="%s"}'
    before = {name: server.metric(metric % name) for name in ("error", "skip", "popular")}
    for _ in range(2):  # which is computed in the event loop
        assert server.get("recommend", id="c999", k=3) == (200, {"version": 1, "result": fallback})
    known = server.get("recommend", id="c010", k=3)[1]["result"]
    body = {"ids": ["c010", "c999"], "k": 3}
    assert server.post("recommend", body)[1]["results"] == [known, fallback]
    limits = {"where": [NOT_G0], "allow": list(range(5000, 5100)), "deny": [5001, 5002]}
    [limited] = server.post("recommend", {"ids": ["c999"], "k": 50, **limits})[1]["results"]
    assert [item["id"] for item in limited["items"]] == [
        item["id"]
        for item in recommended(workspace, "--customer", "c999", "-k", 200, "--on-unknown", "popular")
        if item["id"] < 5100 and item["id"] not in (5001, 5002) and item["id"] % GENRES
    ][:50]
    assert server.post("recommend", {**body, "on_unknown": "skip"})[1]["results"] == [known]
    assert server.get("recommend", id="c999", on_unknown="skip")[0] == 422, "a GET is not a batch"
    server.post("recommend", {**body, "on_unknown": "error"})
    counted = {name: server.metric(metric % name) - before[name] for name in before}
    assert counted == {"error": 1, "skip": 1, "popular": 4}


def test_unknown_rows_are_named(server: RunningServer) -> None:
    unknown = {"detail": "there is no customer with the ID or name 'c999'"}
    assert server.get("recommend", id="c999", on_unknown="error") == (404, unknown)
    untrained = f"track '{5000 + TRACKS}' has no interaction of positive weight in train, so its vector is not trained"
    assert server.get("similar", id=5000 + TRACKS) == (404, {"detail": untrained})
    status, found = server.post("recommend", {"ids": ["c999", "c010"], "k": 2, "on_unknown": "error"})
    assert (status, [len(result["items"]) for result in found["results"]]) == (200, [0, 2])
    assert found["results"][0]["error"] == "there is no customer with the ID or name 'c999'"
    assert server.post("recommend", {"ids": ["c999"], "on_unknown": "error"})[0] == 200, "a batch of one ID"
    assert server.get("vector", id=1, entity="song") == (
        404,
        {"detail": "there is no entity 'song'; expected customer or track"},
    )


def test_invalid_requests_are_rejected(server: RunningServer) -> None:
    for route, body, status, message in (
        ("recommend", {"ids": []}, 422, "at least 1 item"),
        ("recommend", {"ids": ["c010"], "where": [{**NOT_G0, "column": "year"}]}, 400, "are id, name, count, genre"),
        ("recommend", {"ids": ["c010"], "allow": ["none"]}, 404, "allow: none of its 1 IDs is one of track: none"),
        ("recommend", {"histories": [[{"id": "none"}]]}, 404, "none of 1 items is a track, such as none"),
        ("recommend", {"ids": ["c010"], "count": 5}, 422, "Extra inputs are not permitted"),
        ("recommend", {"ids": ["a\nb"]}, 422, "expected one line of text, without control characters"),
        ("recommend", b"{", 422, "JSON decode error"),
        ("recommend", b'{"ids": [NaN]}', 422, "JSON decode error"),
        ("recommend", b'{"ids": ["c010"], "popularity_damping": 1e999}', 422, "should be a finite number"),
        ("recommend", {"ids": ["c010"] * 3, "k": 1000, "diversity": 0.1}, 422, "at most 2,000,000, which is 3,000,000"),
        ("recommend", {"histories": [[{"id": 5001}]] * 3, "k": 1000, "diversity": 0.1}, 422, "at most 2,000,000"),
        ("recommend", b'{"ids": [1e999]}', 422, "should be a valid integer"),
        ("recommend", b'{"ids": ["\\ud800"]}', 422, "JSON decode error"),
        ("recommend", b'{"ids": [' + b"1" * 5000 + b"]}", 422, "JSON decode error"),
        ("recommend", b"[" * 100_000, 422, "recursion limit"),
        ("recommend", {"ids": ["c010"], "where": [NOT_G0] * 9}, 422, "at most 8 items"),
        ("recommend", {"ids": ["c010"], "where": [{**NOT_G0, "value": 5}]}, 400, "Could not convert string"),
        ("recommend", {"ids": ["c010"], "exclude": ["train"]}, 400, "expected all splits, train valid test, or none"),
        ("similar", {"ids": ["c010"], "entity": "customer"}, 400, "neighbors of 'customer' are not served"),
    ):
        found, answer = server.post(route, body)
        assert (found, message in json.dumps(answer)) == (status, True), answer
    assert server.get("recommend", **{f"p{number}": 1 for number in range(200)})[0] == 400
    # What diversity compares is bounded.
    for count, k in ((2, 1000), (20, 100)):
        assert server.post("recommend", {"ids": ["c010"] * count, "k": k, "diversity": 0.1})[0] == 200, (count, k)
    # The largest valid bodies, and bodies with a fault in each of many places, which are not repeated.
    histories = [[{"id": 5000 + row % TRACKS, "weight": 1.5} for row in range(1000)]] * 4
    body = json.dumps({"histories": histories, "k": 1}).encode()
    assert server.post("recommend", body.ljust(app.MAX_BODY_BYTES))[0] == 200
    assert server.post("recommend", body.ljust(app.MAX_BODY_BYTES + 1))[0] == 413
    for body in (
        {f"unknown {number}": "secret" for number in range(5000)},
        {"histories": [[{f"unknown {number}": "secret" for number in range(5000)}]]},
        {"ids": ["secret" * 200] * 100, "k": "secret", "where": ["secret"], "unknown": "secret"},
        {"histories": [[{"secret": "secret"}] * 70] * 80},
        {"ids": [[]] * 30_000},
        [[]] * 30_000,
    ):
        found, answer = server.post("recommend", body)
        text = json.dumps(answer)
        assert (found, len(answer["detail"]) <= 5, len(text) < 2000) == (422, True, True), text
        assert '"input"' not in text
        assert text.count("secret") <= 1  # a name of a field at most


def test_pages_of_other_sites_send_no_request(server: RunningServer) -> None:
    address = Address.parse(server.url.split("/")[2], "the server")
    for headers, route, status in (
        ({"Sec-Fetch-Site": "cross-site"}, "recommend?id=c010", 403),
        ({"Sec-Fetch-Site": "same-site"}, "model", 403),
        ({"Sec-Fetch-Site": "cross-site"}, "metrics", 403),
        ({"Sec-Fetch-Site": "cross-site"}, "", 307),
        ({"Sec-Fetch-Site": "cross-site"}, "docs", 200),
        ({"Sec-Fetch-Site": "cross-site"}, "healthz", 200),
        ({}, "recommend?id=c010&diversity=0.1", 422),
        ({}, "recommend?id=c010", 200),
    ):
        assert status_of(address, route, headers) == status, (headers, route)
    for media_type in (None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"):
        with closing(http.client.HTTPConnection(address.host, address.port, timeout=60)) as connection:
            headers = {} if media_type is None else {"Content-Type": media_type}
            connection.request("POST", "/recommend", b'{"ids": ["c010"]}', headers)
            assert connection.getresponse().status == 415, media_type


def test_metrics_count_requests_and_versions(server: RunningServer) -> None:
    name = 'crossfade_serve_requests_total{route="/model",status="200"}'
    before = server.metric(name)
    for _ in range(3):
        assert server.get("model")[0] == 200
    # A request is counted after its answer.
    wait_until(lambda: server.metric(name) == before + 3, "the last request is counted")
    assert server.metric('crossfade_serve_request_seconds_count{route="/model"}') == before + 3
    assert server.metric("crossfade_serve_version") == 1
    assert server.metric('crossfade_serve_refreshes_total{result="success"}') == 1


def test_token_is_needed_and_the_page_asks_for_it(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    with running_server("run", "--token-file", tmp_path / "token", cwd=workspace) as server, browsing() as browser:
        address = Address.parse(server.url.split("/")[2], "the server")
        for headers, route, status in (
            ({}, "model", 401),
            ({}, "metrics", 401),
            ({}, "", 307),
            ({"Authorization": f"Bearer {TOKEN}"}, "model", 200),
            ({"Authorization": f"Bearer {TOKEN}", "Host": "evil.example"}, "model", 421),
            ({"Host": "evil.example"}, "healthz", 200),
        ):
            assert status_of(address, route, headers) == status
        for process in server.command.mark.processes():
            assert TOKEN not in " ".join([*process.cmdline(), *process.environ().values()])
        with checked_visit(browser, f"{server.url}docs") as visit:
            expect(visit.page.get_by_role("button", name="Authorize")).to_be_visible(timeout=60_000)
            expect(visit.page.locator(".opblock").first).to_be_visible(timeout=60_000)
        server.command.process.send_signal(signal.SIGTERM)
        assert TOKEN not in server.command.finish().stderr


def status_of(address: Address, route: str, headers: dict[str, str]) -> int:
    with closing(http.client.HTTPConnection(address.host, address.port, timeout=60)) as connection:
        connection.request("GET", f"/{route}", headers=headers)
        return connection.getresponse().status


class Load:
    """Sends request after request, by one connection, until it is stopped. Pauses leave the processors to the rest."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(url.split("/")[2])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.versions: list[int] = []
        self.failures: list[str] = []

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            try:
                self._connection.request("GET", "/recommend?id=c010")
                response = self._connection.getresponse()
                body = json.loads(response.read())
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                return
            if response.status == 200:
                self.versions.append(body["version"])
            else:
                self.failures.append(f"{response.status}: {body}")

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._connection.close()


def test_newer_model_is_swapped_in_without_a_failure(workspace: Path, tmp_path: Path) -> None:
    run, *newer = [tmp_path / name for name in ("run", "run-2", "run-3")]
    for seed, folder in enumerate([run, *newer]):
        options = ("--set", f"train.seed={seed}", "--set", "train.epochs=1")
        succeeded(crossfade_here("train", "job.yaml", "--run-dir", folder, *options, cwd=workspace))
    with running_server(run, "--refresh", 0.1, cwd=workspace) as server, Load(server.url) as load:
        wait_until(lambda: 1 in load.versions, "the first version answers")
        for number, folder in enumerate(newer, start=2):
            # Written elsewhere and moved, as a job does.
            (run / "embeddings").rename(tmp_path / f"old-{number}")
            (folder / "embeddings").rename(run / "embeddings")
            wait_until(lambda number=number: number in load.versions, f"version {number} answers")
        status, _ = server.get("recommend", id="c010")
        assert status == 200
        folder = server.work_folder()
        wait_until(lambda: [path.name for path in folder.glob("0*")] == ["000003"], "others are deleted")
        (run / "embeddings" / "track" / "rows-000000000000.parquet").write_bytes(b"no Parquet")
        failed = 'crossfade_serve_refreshes_total{result="failure"}'
        wait_until(lambda: server.metric(failed) > 0, "a version cannot be written")
        assert server.get("recommend", id="c010")[0] == 200
    assert load.failures == []
    assert load.versions == sorted(load.versions)


def test_version_that_cannot_be_opened_is_counted_and_the_next_one_is_served(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, written = shutil.copytree(workspace / "run", tmp_path / "run"), refresher._write
    folder, versions, failed = CopiesFolder(tmp_path), iter([False, True]), metrics._FAILED._value
    refreshing = refresher.Refresher(ServeOptions.of(source=run, refresh=0.01), folder)

    def write(self: object, path: Path) -> None:
        written(ServeOptions.of(source=run), path, NullReporter())
        if not next(versions):
            write_names_that_are_no_database(path)  # not foreseen: neither an error of the project nor of the system

    async def follow(current: CurrentVersion) -> None:
        following = asyncio.create_task(refreshing.follow(current))
        while current.answers.version == 1:
            await asyncio.sleep(0.01)
            assert not current.answers.recommend(RecommendQuery(id="c010")).results[0].error
        following.cancel()

    before = failed.get()
    current = CurrentVersion(refreshing.write_first(NullReporter()))
    monkeypatch.setattr(refresher.Refresher, "_write_in_process", write)
    (run / "embeddings" / "track" / "rows-000000000000.parquet").touch()
    asyncio.run(follow(current))
    assert (current.answers.version, failed.get() - before) == (3, 1)
    [record] = [each for each in caplog.records if "no new version, the last one is still served" in each.message]
    assert record.exc_info is not None
    current.close()
    folder.delete()


def write_names_that_are_no_database(version: Path) -> None:
    """Replace the database of names by a file that has the checksum listed for it."""
    (version / NAMES).write_bytes(b"no database" * 100)
    card = json.loads((version / CARD_FILE).read_text())
    card["files"][NAMES] = FileChecksum.of(version / NAMES).model_dump()
    (version / CARD_FILE).write_text(json.dumps(card))


def test_signal_ends_the_server_and_the_process_that_writes(workspace: Path, tmp_path: Path) -> None:
    run = shutil.copytree(workspace / "run", tmp_path / "run")
    with running_server(run, "--refresh", 0.05, "--work-dir", tmp_path / "work", cwd=workspace) as server:
        (run / "embeddings" / "track" / "rows-000000000000.parquet").touch()
        wait_until(lambda: list((tmp_path / "work").glob("*/000002")), "a newer version being written")
        server.command.process.send_signal(signal.SIGTERM)
        result = server.command.finish()
        assert (result.returncode, result.stdout) == (0, "")
        assert "Error" not in result.stderr
        assert server.command.mark.processes() == []
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        ((), "FROM is missing"),
        (("run", "--refresh", "-1"), "--refresh -1"),
        (("run", "--port", "USED"), "--port: cannot listen on "),
        (("run", "--work-dir", "job.yaml", "--port", 0), "--work-dir job.yaml"),
    ],
)
def test_invalid_options_are_rejected(
    workspace: Path, server: RunningServer, options: tuple[object, ...], phrase: str
) -> None:
    used = server.url.split(":")[2].rstrip("/")
    result = crossfade_here("serve", *(used if word == "USED" else word for word in options), cwd=workspace)
    assert (result.returncode, result.stdout) == (2, "")
    assert phrase in result.stderr.splitlines()[-1]
