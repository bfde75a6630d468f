"""``crossfade refresh`` and ``rollback``: each event is taken once, into versions that continue each other."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_here import crossfade_here
from error_table import documented
from object_store import BUCKET, ObjectStore
from refreshed_service import EVENTS, ServiceFolder, current, plays
from run_results import assert_same_bits, report_of
from running_command import records, succeeded

from crossfade.deploy.refresh.popularity import add_popularity
from crossfade.trainer.embeddings.files import EmbeddingFiles
from crossfade.trainer.embeddings.popularity import read_term

pytestmark = pytest.mark.slow
NEVER = "ndcg@10 >= 9 * last"


def ids(service: ServiceFolder, number: int, entity: str) -> list[str]:
    """Return the IDs of an entity in a version, in the order of rows."""
    paths = sorted((service.run(number) / "embeddings" / entity).glob("*.parquet"))
    found: list[str] = pa.concat_tables([pq.read_table(path, columns=["id"]) for path in paths])["id"].to_pylist()
    return found


def recommended(source: Path, customer: str = "c1") -> str:
    """Return what ``crossfade recommend`` prints for a customer."""
    return succeeded(crossfade_here("recommend", source, "--customer", customer, "--json")).stdout


def rejected(cause: str, service: ServiceFolder, name: str, *options: object) -> str:
    """Run a command that ends with the documented error of ``cause``; return its message."""
    result = service.command(name, *options)
    assert result.stdout == ""
    return documented(cause, result.stderr.splitlines()[-1].removeprefix("crossfade: error: "), result.returncode)


def test_pattern_that_has_matched_no_file_is_an_error_until_it_has(history: ServiceFolder, tmp_path: Path) -> None:
    service = ServiceFolder(tmp_path)
    cause = "a pattern of a service that has matched no file"
    assert f"looked in {tmp_path / 'events'}, which has none" in rejected(cause, service, "refresh")
    status = service.status()
    assert (status["current"], status["versions"], status["waiting"]) == (None, [], [])
    assert f"looked in {tmp_path / 'events'}" in status["never_matched"][0]
    assert status["last_failure"]["message"] == status["never_matched"][0]
    assert "no earlier version" in service.command("rollback").stderr
    (tmp_path / "copy").mkdir()
    copy = history.copied(tmp_path / "copy")
    copy.configure(events=["evnts/*.cvs"])
    reason = f"looked in {copy.folder / 'evnts'}, which does not exist"
    assert reason in rejected(cause, copy, "refresh")
    taken = str(history.folder / "**" / "day-*[12].parquet")
    copy.configure(events=[taken, f"file://{taken}", "evnts/*.cvs"])
    files = [history.event_file(day) for day in (1, 2)]
    gone = [file.rename(file.with_suffix(".gone")) for file in files]
    first, second = succeeded(copy.command("refresh")).stdout.splitlines()
    assert (first, reason in second) == ("no new event files", True)
    for path, file in zip(gone, files, strict=True):
        path.rename(file)


def test_versions_continue_each_other_and_count_each_event_once(undisturbed: ServiceFolder) -> None:
    for number in (1, 2, 3):
        record, report = undisturbed.record(number), report_of(undisturbed.run(number))
        assert undisturbed.files(number) == [f"day-{number:03d}.parquet"]
        assert undisturbed.times(number) == plays(number)["at"].to_pylist()
        assert (record["status"], record["events"], record["newest"]) == ("published", EVENTS, number * 1000 + 299)
        assert (record["base"], record["metric"]) == (number - 1 or None, "ndcg@10")
        assert record["after"] == report["metrics"]["valid"]["ndcg@10"] > 0
        assert record["before"] == (report["valid_at_start"] or {}).get("ndcg@10")
        assert (record["before"] is None) == (number == 1)
        assert set(record["seconds"]) == {"prepare", "train"}
    # The first version is trained by job, and later ones by increment_job.
    events = [[record["event"] for record in records(undisturbed.run(number))] for number in (1, 2, 3)]
    assert [names.count("epoch") for names in events] == [2, 1, 1]
    for entity in ("customer", "track"):
        second, third = ids(undisturbed, 2, entity), ids(undisturbed, 3, entity)
        assert second[: len(ids(undisturbed, 1, entity))] == ids(undisturbed, 1, entity)
        assert third[: len(second)] == second
    assert len(ids(undisturbed, 3, "customer")) > len(ids(undisturbed, 1, "customer"))
    assert undisturbed.current() == current(3)
    assert undisturbed.status()["current"] == 3
    text = succeeded(undisturbed.command("refresh", "--status")).stdout.splitlines()
    assert [line.split()[3] for line in text[1:4]] == ["published", "published", "served"]
    assert text[4] == "0 files of events wait"


def rising_plays(first: int, tracks: Sequence[int], events: int, customers: int) -> pa.Table:
    """Return plays from the time ``first`` on, of ``tracks`` alone."""
    draw = np.random.default_rng(first)
    customer_N, track_N = draw.integers(0, customers, events), draw.choice(tracks, events)
    columns = {"user": [f"c{each}" for each in customer_N], "track": [f"t{each}" for each in track_N]}
    return pa.table({**columns, "at": np.arange(first, first + events)})


def test_popularity_is_chosen_by_new_events_kept_without_many_and_counted_anew(tmp_path: Path) -> None:
    """Valid, a random part of few new events, shows none of this."""
    service = ServiceFolder(tmp_path, job={"model": {"dim": 8}, "train": {"epochs": 2, "batch_size": 64}})
    many, risen = rising_plays(0, range(100), 2400, 200), rising_plays(2400, range(20), 500, 200)
    for day, table in enumerate((pa.concat_tables([many, risen]), rising_plays(3000, range(20), 500, 200)), 1):
        service.add(day, table)
        succeeded(service.command("refresh"))
    service.add(3, rising_plays(4000, range(50, 55), 80, 20))
    succeeded(service.command("refresh"))
    terms = {}
    for number in (2, 3):
        embeddings = EmbeddingFiles(service.run(number) / "embeddings")
        term = read_term(embeddings, embeddings.rows("track"))
        assert term is not None
        terms[number] = term.card, dict(zip(ids(service, number, "track"), term.offset_I.tolist(), strict=True))
    assert terms[2][0] == terms[3][0]
    assert terms[2][0].factor > 0.1
    assert terms[2][0].share < 1
    assert terms[3][1]["t50"] > terms[2][1]["t50"]
    assert [service.record(number)["after"] for number in (2, 3)] == [
        report_of(service.run(number))["metrics"]["valid"]["ndcg@10"] for number in (2, 3)
    ]
    # An attempt that is repeated does not touch the file: a kill meanwhile would leave one that is listed and damaged.
    file = service.run(3) / "embeddings" / "popularity.parquet"
    written = file.stat().st_mtime_ns
    add_popularity(service.run(2), service.run(3), takes_events=True)
    assert file.stat().st_mtime_ns == written


def test_file_is_taken_once_and_a_changed_one_is_only_warned_of(service: ServiceFolder) -> None:
    """Its events are older than the versions there, and two names lead to it."""
    late = plays(3).set_column(2, "at", pa.array(np.arange(500, 500 + EVENTS)))
    taken = service.add(3, late)
    taken.with_name("day-003-link.parquet").symlink_to(taken)
    assert service.status()["waiting"] == [str(taken)]
    line = json.loads(succeeded(service.command("refresh", "--json")).stdout)
    assert (line["number"], line["events"], line["newest"]) == (3, EVENTS, 799)
    assert (service.files(3), service.times(3)) == (["day-003.parquet"], late["at"].to_pylist())
    assert succeeded(service.command("refresh")).stderr == ""
    service.add(3, plays(3, events=EVENTS + 1))
    result = succeeded(service.command("refresh"))
    assert result.stdout == "no new event files\n"
    assert f"{taken}: has changed since its events were taken, and is not read again" in result.stderr
    assert service.statuses() == ["published"] * 3


def test_local_file_is_left_until_it_has_settled(service: ServiceFolder) -> None:
    service.configure(settle_seconds=3600)
    settling = service.add(3)
    (settling.with_name("day-004.parquet")).write_bytes(settling.read_bytes())
    ahead = settling.rename(settling.with_name("day-005.parquet"))
    os.utime(ahead, (time.time() + 36_000, time.time() + 36_000))
    for options in ((), ("--status",)):
        result = succeeded(service.command("refresh", *options))
        assert "1 file settles for another 59 min" in result.stdout
        assert f"{ahead}: was written 9 h 59 min in the future by this clock" in result.stdout
    status = service.status()
    assert (len(status["waiting"]), list(status["settling"].values()), list(status["ahead"])) == (
        2,
        [pytest.approx(3600, abs=60)],
        [str(ahead)],
    )


def test_text_without_a_final_newline_is_taken_after_twelve_times_as_long(tmp_path: Path) -> None:
    service = ServiceFolder(tmp_path, settle_seconds=100)
    service.configure(events=[str(tmp_path / "events" / "*")])
    now = time.time()
    for name, text, age in (
        ("cut.csv", "user,track,at\nc1,t1", 200),
        ("long.csv", "user,track,at\nc1,t1,3", 1300),
        ("whole.csv", "user,track,at\nc1,t1,3\n", 200),
        ("young.csv", "user,track,at\nc1,t1,3\n", 50),
    ):
        (tmp_path / "events" / name).write_text(text)
        os.utime(tmp_path / "events" / name, (now - age, now - age))
    result = service.command("refresh", "--status", "--json")
    status = json.loads(result.stdout)
    assert {Path(name).name: round(seconds, -1) for name, seconds in status["settling"].items()} == {
        "cut.csv": 1000,
        "young.csv": 50,
    }
    assert [Path(name).name for name in status["waiting"][:2]] == ["long.csv", "whole.csv"]
    assert "cut.csv: has no newline at its end, and may be half written; taken in 16 min" in result.stderr


def test_events_of_a_rejected_version_wait_for_the_next_file(
    service: ServiceFolder, undisturbed: ServiceFolder
) -> None:
    service.configure(publish_if=NEVER)
    service.add(3)
    result = service.command("refresh")
    assert (result.returncode, result.stdout.split(":")[0]) == (1, "version 3 rejected")
    assert service.current()["version"] == 2
    assert len(service.status()["waiting"]) == 1
    for _ in range(2):
        assert "1 file of versions that were rejected or withdrawn: " in succeeded(service.command("refresh")).stdout
    assert sorted(path.name for path in service.path.glob("version-000003*")) == [
        "version-000003.json",
        "version-000003.log",
    ]
    service.add(4)
    assert service.command("refresh").returncode == 1
    assert service.files(4) == ["day-003.parquet", "day-004.parquet"]
    (service.event_file(4)).unlink()
    assert "at once with --publish" in succeeded(service.command("refresh")).stdout
    assert "at once with --publish" in succeeded(service.command("refresh", "--status")).stdout
    assert service.status()["unpublished"] == [str(service.event_file(3))]
    succeeded(service.command("refresh", "--publish"))
    assert (service.files(5), service.record(5)["events"]) == (["day-003.parquet"], EVENTS)
    assert service.statuses() == ["published", "published", "rejected", "rejected", "published"]
    assert_same_bits(service.run(5), undisturbed.run(3))
    assert service.current() == current(5)


def test_rollback_returns_to_an_earlier_version_and_its_events_wait(undisturbed: ServiceFolder, tmp_path: Path) -> None:
    service = undisturbed.copied(tmp_path)
    before = recommended(service.path)
    assert before == recommended(service.run(3)) != recommended(service.run(2))
    assert "expected 1 or 2" in rejected("a rollback to a version that is not kept", service, "rollback", "--to", 9)
    result = succeeded(service.command("rollback"))
    assert result.stdout == "withdrawn: 3; version 2 is served\n"
    assert recommended(service.path) == recommended(service.run(2))
    assert service.statuses() == ["published", "published", "withdrawn"]
    assert "at once with --publish" in succeeded(service.command("refresh")).stdout
    assert not service.run(3).exists()
    assert not service.data(3).exists()
    result = succeeded(service.command("rollback", "--to", 1))
    assert result.stdout == "withdrawn: 2; version 1 is served\n"
    assert recommended(service.path) == recommended(service.run(1))
    assert succeeded(service.command("rollback", "--to", 1)).stdout == "withdrawn: none; version 1 is served\n"
    rejected("a rollback without an earlier version", service, "rollback")
    waiting = [Path(name).name for name in service.status()["waiting"]]
    assert waiting == ["day-002.parquet", "day-003.parquet"]
    assert succeeded(service.command("refresh")).stdout.startswith("no new event files\n")
    service.add(4)
    succeeded(service.command("refresh"))
    assert service.files(4) == ["day-002.parquet", "day-003.parquet", "day-004.parquet"]
    assert service.times(4) == [at for day in (2, 3, 4) for at in plays(day)["at"].to_pylist()]
    assert (service.record(4)["base"], service.current()["version"]) == (1, 4)


def test_workers_that_hold_the_tables_train_versions(tmp_path: Path) -> None:
    job = {"model": {"dim": 8}, "train": {"epochs": 2, "batch_size": 64}, "cluster": {"workers": 2}}
    service = ServiceFolder(tmp_path, job=job)
    for day in (1, 2):
        service.add(day)
        succeeded(service.command("refresh"))
    report = json.loads((service.run(2) / "report.json").read_text())
    assert (report["workers"], report["store"]) == (2, "ShardedStore")
    assert service.record(2)["before"] == report["valid_at_start"]["ndcg@10"]
    assert service.current()["version"] == 2


def test_older_versions_are_deleted_but_not_the_datasets_that_are_read(
    undisturbed: ServiceFolder, tmp_path: Path
) -> None:
    service = undisturbed.copied(tmp_path, keep_versions=2)
    service.add(4)
    succeeded(service.command("refresh"))
    assert sorted(path.name for path in service.path.iterdir() if path.is_dir()) == [
        *(f"version-{number:06}-data" for number in (1, 2)),
        *(name for number in (3, 4) for name in (f"version-{number:06}", f"version-{number:06}-data")),
    ]
    assert service.statuses() == ["published"] * 4
    assert "expected 3" in service.command("rollback", "--to", 2).stderr
    succeeded(service.command("rollback"))
    rejected("a rollback without an earlier version", service, "rollback")
    service.add(5)
    succeeded(service.command("refresh"))
    assert service.files(5) == ["day-004.parquet", "day-005.parquet"]
    assert not service.run(4).exists()
    assert recommended(service.path) == recommended(service.run(5))


def test_events_are_taken_from_s3_once_they_are_there(tmp_path: Path, s3: ObjectStore) -> None:
    service = ServiceFolder(tmp_path)
    service.configure(events=[f"{s3.uri('refresh')}/*/*.parquet"])
    rejected("a pattern of a service that has matched no file", service, "refresh")
    for day in (1, 2):
        source = service.add(day)
        with s3.client().open_output_stream(f"{BUCKET}/refresh/2026/{source.name}") as out:
            out.write(source.read_bytes())
        waiting = service.status()["waiting"]
        assert waiting == [f"{s3.uri('refresh')}/2026/{source.name}"]
        succeeded(service.command("refresh"))
        assert [file["uri"] for file in service.record(day)["files"]] == waiting
        assert service.times(day) == plays(day)["at"].to_pylist()
    assert succeeded(service.command("refresh")).stdout == "no new event files\n"
