"""``crossfade forget SERVICE``: after one further version, nothing in the folder of the service has the customer."""

import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from command_here import crossfade_here
from crashing_storage import Crash
from refreshed_service import EVENTS, ServiceFolder, crash_at, plays, rejected
from running_command import succeeded
from serving import running_server
from waiting import wait_until

from crossfade.trainer.prepare.forget import StagedDeletion

pytestmark = pytest.mark.slow


def forgotten(service: ServiceFolder, *ids: str) -> str:
    """Forget IDs in the service, and return what that prints."""
    (service.folder / "ids.txt").write_text("\n".join(ids))
    return succeeded(crossfade_here("forget", service.path, "--ids", service.folder / "ids.txt")).stdout


def vectors(service: ServiceFolder, customer: str) -> list[bytes]:
    """Return the vectors that versions have of a customer, as checkpoints and embeddings store them."""
    found = []
    for path in service.path.glob("version-*/embeddings/customer/*.parquet"):
        rows = pq.read_table(path).filter(pc.equal(pq.read_table(path)["id"], customer)).to_pylist()
        found += [np.array(row["vector"], np.float32).tobytes() for row in rows]
    return found


def traces(place: ServiceFolder | Path, customer: str, known: list[bytes]) -> Iterator[Path]:
    """Yield the files in a folder that have the ID of a customer, or one of its vectors."""
    folder = place if isinstance(place, Path) else place.path
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.suffix == ".parquet":
            columns = [column.to_pylist() for column in pq.read_table(path).columns]
            values = [value for column in columns for value in column]
            lists = {np.array(value, np.float32).tobytes() for value in values if isinstance(value, list)}
            if customer in values or lists & set(known):
                yield path
        else:
            data = path.read_bytes()
            if any(vector in data for vector in known) or re.search(rb"\b%s\b" % customer.encode(), data):
                yield path


def knows(service: ServiceFolder, customer: str) -> bool:
    """Return whether the version that is served knows a customer."""
    return crossfade_here("recommend", service.path, "--customer", customer).returncode == 0


def test_forgotten_customer_is_nowhere_after_the_next_version(service: ServiceFolder) -> None:
    """It is published whatever its metric is, and before new events."""
    service.configure(publish_if="ndcg@10 >= 9 * last")
    known = vectors(service, "c0")
    assert len(known) == 2
    kinds = {path.relative_to(service.path).parts[:2] for path in traces(service, "c0", known)}
    for number in (1, 2):
        assert {(f"version-{number:06}", "embeddings"), (f"version-{number:06}", "checkpoints")} <= kinds
        assert any(folder == f"version-{number:06}-data" for folder, _ in kinds)
    with running_server(service.path, "--refresh", 0.1, cwd=service.folder) as server:
        assert server.get("recommend", id="c0")[0] == 200
        work = server.work_folder()
        assert {path.name for path in traces(work, "c0", known)} > {"names.sqlite", "customer.npy"}
        output = forgotten(service, "c0")
        assert "versions       up to 2: the next one is made without them" in output
        assert not [path for path in traces(service, "c0", known) if "-data" in str(path)]
        assert server.get("recommend", id="c0")[0] == 200, "until it loads the next version"
        assert (knows(service, "c0"), knows(service, "c1")) == (False, True), "its ID is not in the dataset any more"
        assert "ids were forgotten" in service.command("refresh", "--status").stdout
        line = succeeded(service.command("refresh")).stdout
        assert line.startswith("version 3 published: without the forgotten ids, and without new events, ndcg@10 ")
        assert list(traces(service, "c0", known)) == []
        unknown = {"id": "c0", "on_unknown": "error"}
        wait_until(lambda: server.get("recommend", **unknown)[0] == 404, "an unknown customer")
        wait_until(lambda: not (work / "000001").exists(), "the copy of the version before is deleted")
        assert list(traces(work, "c0", known)) == []
        assert server.metric("crossfade_serve_version_write_seconds_count") == 2
        assert server.get("recommend", id="c1")[0] == 200
    assert not knows(service, "c0")
    assert "ids were forgotten" not in service.command("refresh", "--status").stdout
    assert {path.name for path in service.path.iterdir() if path.is_dir()} == {
        "version-000003",
        "version-000003-data",
    }
    assert (service.record(3)["events"], service.files(3), service.record(3)["base"]) == (0, [], 2)
    assert service.times(3) == [at for at, user in zip(*columns(2), strict=True) if user != "c0"]
    assert "no earlier version" in service.command("rollback").stderr
    assert succeeded(service.command("refresh")).stdout.startswith("no new event files\n")
    assert "\n  versions " not in forgotten(service, "c0"), "no version has it"
    service.configure(publish_if=None)
    service.add(3)
    succeeded(service.command("refresh"))
    assert (service.record(4)["base"], service.files(4)) == (3, ["day-003.parquet"])
    assert list(traces(service, "c0", known)) == []
    assert knows(service, "c1")


def columns(day: int) -> tuple[list[int], list[str]]:
    """Return the times and customers of the plays of a day."""
    table = plays(day)
    return table["at"].to_pylist(), table["user"].to_pylist()


def test_earlier_events_and_an_interrupted_version_are_forgotten_too(service: ServiceFolder) -> None:
    service.add(3)
    succeeded(service.command("refresh"))
    service.add(4, plays(2))
    with pytest.raises(Crash), crash_at(5):  # trained, and not decided
        service.command("refresh")
    known = vectors(service, "c44")
    names = {path.relative_to(service.path).parts[0] for path in traces(service, "c44", known)}
    assert {"version-000002-data", "version-000003-data", "version-000004"} <= names
    assert "version-000003-data: forgot 1 row of customer" in forgotten(service, "c44")
    assert not service.run(4).exists()
    assert not service.data(4).exists()
    succeeded(service.command("refresh"))
    assert list(traces(service, "c44", known)) == []
    table = plays(2)
    service.add(4, table.filter(pc.not_equal(table["user"], "c44")))
    succeeded(service.command("refresh"))
    assert list(traces(service, "c44", known)) == []
    assert service.files(5) == ["day-004.parquet"]
    assert (knows(service, "c1"), knows(service, "c44")) == (True, False)


def test_crash_at_any_step_after_a_deletion_is_continued_by_the_same_command(
    service: ServiceFolder, tmp_path: Path
) -> None:
    known = vectors(service, "c0")
    forgotten(service, "c0")
    for call in count(1):
        (tmp_path / f"step-{call}").mkdir()
        copy = service.copied(tmp_path / f"step-{call}")
        try:
            with crash_at(call):
                succeeded(copy.command("refresh"))
        except Crash:
            succeeded(copy.command("refresh"))
            assert copy.statuses() == ["published"] * 3
            assert list(traces(copy, "c0", known)) == []
            assert not (copy.path / "forgotten.json").exists()
        else:
            break
    assert call > 9


def test_deletion_that_was_interrupted_is_completed_by_the_same_command(
    service: ServiceFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = vectors(service, "c0")
    applied = []

    def apply_once(deletion: StagedDeletion) -> object:
        if applied:
            raise Crash
        applied.append(real(deletion))
        return applied[0]

    real = StagedDeletion.publish
    with monkeypatch.context() as patch:
        patch.setattr(StagedDeletion, "publish", apply_once)
        with pytest.raises(Crash):
            forgotten(service, "c0")
    assert len(applied) == 1
    rejected(service.command("refresh"), "a deletion of IDs was interrupted")
    assert "versions       up to 2: " in forgotten(service, "c0")
    succeeded(service.command("refresh"))
    assert list(traces(service, "c0", known)) == []


def test_service_is_forgotten_as_a_whole(service: ServiceFolder) -> None:
    ids = service.folder / "ids.txt"
    ids.write_text("c0\n")
    rejected(crossfade_here("forget", service.data(2), "--ids", ids), "is a dataset of a service")
    assert "\n  versions " not in forgotten(service, "nobody")
    assert succeeded(service.command("refresh")).stdout.startswith("no new event files\n")
    forgotten(service, "c0")
    rejected(service.command("rollback"), "earlier versions may have vectors of IDs that were forgotten")


def test_version_keeps_events_to_continue_on(service: ServiceFolder) -> None:
    service.add(3, plays(3).set_column(0, "user", pa.array(["c9"] * EVENTS)))
    succeeded(service.command("refresh"))
    known = vectors(service, "c9")
    (service.folder / "ids.txt").write_text("c9\n")
    refused = crossfade_here("forget", service.path, "--ids", service.folder / "ids.txt")
    rejected(refused, "version 3 took events of these IDs only")
    assert knows(service, "c9"), "nothing was deleted"
    service.add(4)
    succeeded(service.command("refresh"))
    assert "version-000003-data: forgot 1 row" in forgotten(service, "c9")
    succeeded(service.command("refresh"))
    assert list(traces(service, "c9", known)) == []
