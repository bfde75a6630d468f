"""``crossfade refresh`` and ``rollback``: each event is taken once, into versions that continue each other."""

import json
import os
import shlex
import time
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from command_here import crossfade_here
from refreshed_service import EVENTS, ServiceFolder, current, plays, rejected
from run_results import assert_same_bits, report_of
from running_command import records, succeeded

from crossfade.deploy.serving.options import ServeOptions
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
    assert text[0] == "0 event files waiting"
    assert text[1] == f"versions: crossfade status {undisturbed.path}"


def test_popularity_keeps_its_factor_and_is_counted_anew(tmp_path: Path) -> None:
    """Every customer plays what is played by most, at random; the second day, other tracks than on the first."""
    service = ServiceFolder(tmp_path, job={"model": {"dim": 8}, "train": {"epochs": 2, "batch_size": 64}})
    offsets = []
    for day, number in enumerate(range(2), 1):
        draw = np.random.default_rng(day)
        customer_N, track_N = draw.integers(0, 300, 2500), draw.geometric(0.1, 2500) + 30 * number
        columns = {"user": [f"c{each}" for each in customer_N], "track": [f"t{each}" for each in track_N]}
        service.add(day, pa.table({**columns, "at": np.arange(2500) + 2500 * day}))
        succeeded(service.command("refresh"))
        embeddings = EmbeddingFiles(service.run(day) / "embeddings")
        term = read_term(embeddings, embeddings.rows("track"))
        assert term is not None
        offsets.append((term.card.factor, dict(zip(ids(service, day, "track"), term.offset_I.tolist(), strict=True))))
    (first, before), (second, after) = offsets
    assert first == second > 0
    assert after["t31"] > before["t31"]
    report = report_of(service.run(2))
    assert service.record(2)["after"] == report["popularity"]["without"]["ndcg@10"]


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
    assert f"changed since taken, and not read again (give further events another name): {taken}" in result.stderr
    assert service.statuses() == ["published"] * 3


def test_local_file_is_left_until_it_has_settled(tmp_path: Path) -> None:
    service = ServiceFolder(tmp_path, settle_seconds=100)
    service.configure(events=[str(tmp_path / "events" / "*"), "arrived/*"])
    for name in ("events", "arrived"):
        rejected(service.command("refresh"), f"music.yaml: events: no file matches {tmp_path / name}/*")
        (tmp_path / "events" / "first.csv").touch()
    (tmp_path / "events" / "first.csv").unlink()
    now = time.time()
    for name, age in (("future.csv", -4000), ("whole.csv", 200), ("young.csv", 50)):
        (tmp_path / "events" / name).write_text("user,track,at\nc1,t1,3\n")
        os.utime(tmp_path / "events" / name, (now - age, now - age))
    status = service.status()
    assert {Path(name).name: round(seconds, -1) for name, seconds in status["settling"].items()} == {
        "future.csv": 4100,
        "young.csv": 50,
    }
    assert Path(status["waiting"][0]).name == "whole.csv"
    shown = service.command("refresh", "--status").stdout
    assert "2 files settle for another 1 h 8 min" in shown
    assert f": {service.file}: events: no file matches " in shown.splitlines()[0]
    assert f"\n3 event files waiting: {tmp_path / 'events' / 'whole.csv'}, " in shown
    (tmp_path / "events" / "other.csv").write_text("user,track,at\nc1,t1,3\n")
    assert ", and 1 more\n" in service.command("refresh", "--status").stdout


def test_single_call_waits_for_a_file_that_was_just_written(tmp_path: Path) -> None:
    service = ServiceFolder(tmp_path, settle_seconds=2)
    service.add(1)
    result = succeeded(service.command("refresh"))
    assert "files were written a moment ago (settle_seconds): waiting for " in result.stderr
    assert service.statuses() == ["published"]


def test_events_of_a_rejected_version_wait_for_the_next_file(
    service: ServiceFolder, undisturbed: ServiceFolder
) -> None:
    service.configure(publish_if=NEVER)
    service.add(3)
    result = service.command("refresh")
    assert (result.returncode, result.stdout.split(":")[0]) == (1, "version 3 rejected")
    assert "; version 2 is still served, and the next new file takes these events again" in result.stdout
    assert service.current()["version"] == 2
    assert len(service.status()["waiting"]) == 1
    for _ in range(2):
        assert "1 file of versions that were rejected or withdrawn: " in succeeded(service.command("refresh")).stdout
    assert [path.name for path in service.path.glob("version-000003*")] == ["version-000003.json"]
    service.add(4)
    assert service.command("refresh").returncode == 1
    assert service.files(4) == ["day-003.parquet", "day-004.parquet"]
    (service.event_file(4)).unlink()
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
    rejected(service.command("rollback", "--to", 9), "--to 9: is no earlier version that is kept; expected 1 or 2")
    result = succeeded(service.command("rollback"))
    assert result.stdout.startswith("withdrawn: 3; version 2 is served\nthe next new file takes the withdrawn events")
    assert recommended(service.path) == recommended(service.run(2))
    assert service.statuses() == ["published", "published", "withdrawn"]
    assert "at once with --publish" in succeeded(service.command("refresh")).stdout
    assert not service.run(3).exists()
    assert not service.data(3).exists()
    result = succeeded(service.command("rollback", "--to", 1))
    assert result.stdout.startswith("withdrawn: 2; version 1 is served\n")
    assert recommended(service.path) == recommended(service.run(1))
    assert succeeded(service.command("rollback", "--to", 1)).stdout == "withdrawn: none; version 1 is served\n"
    rejected(service.command("rollback"), "has no earlier version to return to")
    waiting = [Path(name).name for name in service.status()["waiting"]]
    assert waiting == ["day-002.parquet", "day-003.parquet"]
    assert succeeded(service.command("refresh")).stdout.startswith("no new event files\n")
    service.add(4)
    succeeded(service.command("refresh"))
    assert service.files(4) == ["day-002.parquet", "day-003.parquet", "day-004.parquet"]
    assert service.times(4) == [at for day in (2, 3, 4) for at in plays(day)["at"].to_pylist()]
    assert (service.record(4)["base"], service.current()["version"]) == (1, 4)


def typed(line: str, folder: Path) -> CompletedProcess[str]:
    """Run a command that another one has printed, in a folder."""
    program, *words = shlex.split(line)
    assert program.endswith("crossfade")
    return succeeded(crossfade_here(*words, cwd=folder))


def test_service_is_named_by_its_file_or_folder_and_printed_commands_run_anywhere(
    service: ServiceFolder, tmp_path: Path
) -> None:
    elsewhere, ids = tmp_path / "else where", tmp_path / "ids.txt"
    elsewhere.mkdir()
    rejected(crossfade_here("refresh", elsewhere), "is a folder without a service; expected the YAML file")
    assert succeeded(crossfade_here("rollback", service.path)).stdout.startswith("withdrawn: 2; ")
    *_, show = succeeded(crossfade_here("refresh", "music", "--status", cwd=tmp_path)).stdout.splitlines()
    assert show.startswith("versions: ")
    assert "withdrawn  ndcg@10" in typed(show.removeprefix("versions: "), elsewhere).stdout
    assert ServeOptions.of(source=str(service.file)).located().source == str(service.path)
    ids.write_text("c1\n")
    *_, line = succeeded(crossfade_here("forget", service.file, "--ids", ids)).stdout.splitlines()
    error = service.command("rollback").stderr.splitlines()[-1].rpartition(": ")[2]
    for command in (line.removeprefix("next: "), error):
        assert typed(command, elsewhere).stdout.startswith(("version 3 published: without", "no new event files"))


def test_moved_service_and_files_that_lose_forgotten_events_take_nothing_twice(
    service: ServiceFolder, tmp_path: Path
) -> None:
    events = tmp_path / "events"
    taken = service.add(3)
    service.configure(folder="music", events=[json.loads(service.file.read_text())["events"][0], "events/*.parquet"])
    succeeded(service.command("refresh"))
    (tmp_path / "ids.txt").write_text("c1\n")
    succeeded(crossfade_here("forget", service.file, "--ids", tmp_path / "ids.txt"))
    succeeded(service.command("refresh"))
    pq.write_table(plays(3).filter(pc.not_equal(plays(3)["user"], "c1")), taken)
    assert succeeded(service.command("refresh")).stderr == ""
    taken.unlink()
    service.add(4)
    succeeded(service.command("refresh"))
    other = tmp_path / "moved"
    other.mkdir()
    for path in (service.file, service.path, events):
        path.rename(other / path.name)
    result = succeeded(crossfade_here("refresh", other / "music"))
    assert result.stdout == "no new event files\n"


def test_older_versions_are_deleted_with_their_datasets(undisturbed: ServiceFolder, tmp_path: Path) -> None:
    service = undisturbed.copied(tmp_path, keep_versions=2)
    service.add(4)
    succeeded(service.command("refresh"))
    assert sorted(path.name for path in service.path.iterdir() if path.is_dir()) == [
        *(name for number in (3, 4) for name in (f"version-{number:06}", f"version-{number:06}-data")),
    ]
    assert service.statuses() == ["published"] * 4
    assert "expected 3" in service.command("rollback", "--to", 2).stderr
    succeeded(service.command("rollback"))
    rejected(service.command("rollback"), "has no earlier version to return to")
    service.add(5)
    succeeded(service.command("refresh"))
    assert service.files(5) == ["day-004.parquet", "day-005.parquet"]
    assert not service.run(4).exists()
    assert recommended(service.path) == recommended(service.run(5))
