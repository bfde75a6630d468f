"""``crossfade refresh`` and ``rollback`` that are killed, stopped, or disturbed: nothing is lost, or counted twice."""

import gzip
import json
import os
import re
import signal
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_here import crossfade_here
from crashing_storage import Crash
from metric_groups import PROCESS, REFRESH
from paced_training import pace
from refreshed_service import EVENTS, ServiceFolder, crash_at, current, plays, rejected
from run_results import assert_same_bits
from running_command import records, started, succeeded
from scraping import ask, families, samples, scrape, value
from waiting import wait_until

from crossfade.deploy.refresh import increment
from crossfade.trainer.prepare.pipeline import prepare
from crossfade.trainer.runs.run_lock import RunLock

pytestmark = pytest.mark.slow
STEPS = 7
"""Steps of a refresh that change something in the folder of the service, see ``crash_at``."""


def assert_as_undisturbed(service: ServiceFolder, undisturbed: ServiceFolder) -> None:
    """Assert that version 3 is the one of ``undisturbed``, and that nothing else is left."""
    assert_same_bits(service.run(3), undisturbed.run(3))
    assert service.times(3) == plays(3)["at"].to_pylist()
    found, expected = service.record(3), undisturbed.record(3)
    for name in ("number", "status", "base", "events", "newest", "before", "after"):
        assert found[name] == expected[name]
    assert (service.statuses(), service.files(3)) == (["published"] * 3, ["day-003.parquet"])
    assert service.current() == current(3)
    assert {path.name for path in service.path.iterdir()} - {"plan.json"} == {
        path.name for path in undisturbed.path.iterdir()
    }


def test_crash_at_any_step_is_continued_by_the_same_command(
    history: ServiceFolder, undisturbed: ServiceFolder, tmp_path: Path
) -> None:
    for call in count(1):
        folder = tmp_path / f"step-{call}"
        folder.mkdir()
        service = history.copied(folder)
        service.add(3)
        try:
            with crash_at(call):
                succeeded(service.command("refresh"))
        except Crash:
            succeeded(service.command("refresh"))
            assert_as_undisturbed(service, undisturbed)
        else:
            break
    assert call == STEPS + 1


def paced_refresh(service: ServiceFolder) -> tuple[dict[str, str], Path]:
    """Return the environment of a refresh whose steps are slow until a file exists, and that file."""
    release = service.folder / "release"
    return pace(service.folder, release, step_seconds=0.5), release


def training(service: ServiceFolder, number: int) -> Callable[[], bool]:
    """Return whether the training of a version has taken a step."""
    return lambda: any(record["event"] == "step" for record in records(service.run(number)))


def test_killed_training_is_continued_and_only_one_command_runs_at_a_time(
    service: ServiceFolder, undisturbed: ServiceFolder
) -> None:
    service.add(3)
    variables, release = paced_refresh(service)
    with started("refresh", service.file, cwd=service.folder, variables=variables) as command:
        wait_until(training(service, 3), "a step of version 3")
        for name in ("refresh", "rollback"):
            rejected(service.command(name), f"process {command.process.pid} ")
        assert service.status()["current"] == 2
        command.process.send_signal(signal.SIGKILL)
        command.process.wait()
        release.touch()
        result = succeeded(service.command("refresh"))
    assert "took over the lock" in result.stderr
    assert_as_undisturbed(service, undisturbed)


def test_failed_training_leaves_the_version_that_is_served(service: ServiceFolder, undisturbed: ServiceFolder) -> None:
    service.add(3)
    service.configure(increment_job={"model": {"dim": 9}, "train": {"epochs": 1}})
    result = service.command("refresh")
    failed = "version 3: the training failed: "
    assert (result.returncode, failed in result.stderr) == (1, True)
    assert service.current()["version"] == 2
    assert failed in service.status()["failure"]
    for shown in (service.command("refresh", "--status"), crossfade_here("status", service.file)):
        assert f": {failed}" in re.findall("the last attempt at a version failed, .*", succeeded(shown).stdout)[0]
    service.configure(increment_job={"train": {"epochs": 1}})
    succeeded(service.command("refresh"))
    assert_as_undisturbed(service, undisturbed)
    assert "last attempt" not in succeeded(crossfade_here("status", service.path)).stdout


def test_next_command_waits_for_a_training_that_has_survived_its_command(
    service: ServiceFolder, undisturbed: ServiceFolder
) -> None:
    service.add(3)
    with pytest.raises(Crash), crash_at(5):  # trained, and not decided
        service.command("refresh")
    with ExitStack() as running:
        lock = running.enter_context(ExitStack())
        lock.enter_context(RunLock(service.run(3)).held())
        command = running.enter_context(started("refresh", service.file, cwd=service.folder))
        lines_to(command.process.stderr, f"{service.path}: waiting for the training of a command that was killed")
        lock.close()
        result = command.finish()
    assert result.stdout.startswith("version 3 published: ")
    assert_as_undisturbed(service, undisturbed)


def test_file_that_changes_while_it_is_read_is_named_and_read_again(
    service: ServiceFolder, undisturbed: ServiceFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare_and_change(*arguments: object) -> object:
        manifest = prepare(*arguments)  # type: ignore[arg-type]
        service.add(3)
        return manifest

    service.add(3, plays(3).slice(0, EVENTS // 2))
    with monkeypatch.context() as patch:
        patch.setattr(increment, "prepare", prepare_and_change)
        rejected(service.command("refresh"), f"{service.event_file(3)}: was changed or deleted while it was read")
    succeeded(service.command("refresh"))
    assert_as_undisturbed(service, undisturbed)


def test_refresh_at_intervals_takes_files_as_they_arrive_and_serves_metrics(tmp_path: Path) -> None:
    service = ServiceFolder(tmp_path)
    variables, release = paced_refresh(service)
    release.touch()
    table = plays(2)
    bad = table.set_column(0, "user", pa.array([None, *table["user"].to_pylist()[1:]]))
    bad = bad.set_column(1, "track", pa.array([*table["track"].to_pylist()[:-1], None]))
    with started("refresh", service.file, "--every", "0.1s", cwd=tmp_path, variables=variables) as command:
        assert command.process.stderr is not None
        [address] = re.findall(r"metrics: http://(\S+)/metrics", command.process.stderr.readline())
        service.add(1)
        wait_until(lambda: "crossfade_refresh_version" in samples(scrape(address)), "version 1")
        wait_until(lambda: value(scrape(address), "crossfade_refresh_waiting_files") == 0, "no file waits")
        assert families(scrape(address)) == PROCESS | REFRESH
        service.add(2, bad)
        lines = lines_to(command.process.stderr, "and the next attempt follows")
        for column in ("user", "track"):
            assert any(f"column '{column}'" in line and "day-002.parquet" in line for line in lines), "all faults"
        assert value(scrape(address), "crossfade_refresh_consecutive_failures") >= 1
        status, answer = ask(address, "/healthz")
        assert (status, json.loads(answer)["run"]) == (200, "music")
        release.unlink()
        service.add(2)
        wait_until(training(service, 2), "a step of version 2")
        command.process.terminate()
        result = command.finish()
    assert result.returncode == 128 + signal.SIGTERM
    assert "the same command continues" in result.stderr
    assert result.stdout.startswith("version 1 published: ")
    assert service.statuses() == ["published"]
    succeeded(service.command("refresh"))
    assert (service.record(2)["base"], service.times(2)) == (1, table["at"].to_pylist())


def test_files_without_events_wait_for_the_next_one(service: ServiceFolder) -> None:
    service.add(3, plays(3).slice(0, 0))
    result = succeeded(service.command("refresh"))
    assert f"no events are in new files, which wait for the next one: {service.event_file(3)}" in result.stderr
    assert service.statuses() == ["published"] * 2
    service.add(4)
    assert " 300 new events of 2 files" in succeeded(service.command("refresh")).stdout
    assert service.files(3) == ["day-003.parquet", "day-004.parquet"]


def write_hostile(folder: Path) -> dict[str, bool]:
    """Write event files of kinds that others may leave, and return whether each has events, by name."""
    text = "user,track,at\nc1,t1,5\nc1,t2,6\n"
    events = b"".join(b'{"user": "c2", "track": "t%d", "at": 7}\n' % (number % 9) for number in range(30))
    files = {
        "pair.jsonl": (events + b'{"user": "\\ud800x", "track": "t1", "at": 7}\n', True),
        "deep.jsonl": (events + b'{"user": ' + b"[" * 50_000 + b"\n", True),
        "a[*]'--.csv": (text, True),
        "bytes.csv": (text + "\xff,t1,1\n", True),  # its bad line is one of few of all files
        "empty.csv": ("", False),
        "column.csv": (text.replace("user", "usr"), False),
        "endless.jsonl.gz": (gzip.compress(b'{"user": "' + b"x" * 20_000_000), False),
        "cut.csv.gz": (gzip.compress(text.encode())[:-4], False),
        "types.parquet": (b"", False),
        "notes.txt": (text, False),
        os.fsdecode(b"\xff.csv"): (text, False),
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode("latin-1"))
    pq.write_table(pa.table({"user": [1], "track": [1], "at": [1]}), folder / "types.parquet")
    (folder / "folder.csv").mkdir()
    os.mkfifo(folder / "fifo.csv")
    (folder / "gone.csv").symlink_to(folder / "nothing")
    (folder / "loop.csv").symlink_to(folder / "loop.csv")
    return {name: has_events for name, (_, has_events) in files.items()}


def test_daemon_goes_on_without_what_it_cannot_read(service: ServiceFolder, tmp_path: Path) -> None:
    folder = tmp_path / "arrived"
    folder.mkdir()
    options = {"query": "customer=user", "item": "track", "timestamp": "at", "hold_out_valid": "random:0.2"}
    service.configure(events=[f"{folder}/*"], prepare={**options, "on_bad_line": "skip"})
    hostile = write_hostile(folder)
    pq.write_table(plays(3), folder / "good.parquet")
    with started("refresh", service.file, "--every", "0.2s", cwd=tmp_path) as command:
        wait_until(lambda: service.current()["version"] == 3, "version 3")
        sound = {"good.parquet", *(name for name, has_events in hostile.items() if has_events)}
        taken = service.record(3)["files"]
        assert {Path(file["uri"]).name for file in taken if not file["is_faulty"]} == sound
        (folder / "column.csv").write_text("user,track,at\n" + "".join(f"c5,t{item},9\n" for item in range(20)))
        wait_until(lambda: service.current()["version"] == 4, "version 4")
        assert service.files(4) == ["column.csv"]
        command.process.terminate()
        result = command.finish()
    assert f"{folder}/cut.csv.gz: is set aside until it changes: is a corrupt or truncated gzip" in result.stderr
    assert all(line.startswith("crossfade: ") for line in result.stderr.splitlines())
    assert "attempt follows" not in result.stderr
    found = {Path(name).name for name in service.status()["set_aside"]}
    unread = {name for name, has_events in hostile.items() if not has_events} - {"column.csv"}
    assert found == {*unread, "fifo.csv"}
    assert f"{folder}/fifo.csv: is set aside: is a FIFO, socket, or device; expected a " in result.stderr


def test_files_are_set_aside_unless_all_are_faulty_until_they_change(service: ServiceFolder) -> None:
    options = {"query": "customer=user", "item": "track", "timestamp": "at", "on_bad_line": "skip"}
    service.configure(prepare=options)
    service.add(3, plays(3).rename_columns(["usr", "track", "at"]))
    assert service.command("refresh").returncode == 2
    assert service.status()["set_aside"] == []
    service.add(4)
    assert "day-003.parquet: is set aside until it changes: " in succeeded(service.command("refresh")).stderr
    assert (service.record(3)["events"], service.status()["set_aside"]) == (EVENTS, [str(service.event_file(3))])
    assert succeeded(service.command("refresh")).stdout.startswith("no new event files\n")
    service.add(3)
    succeeded(service.command("refresh"))
    assert (service.files(4), service.status()["set_aside"]) == (["day-003.parquet"], [])
    succeeded(service.command("rollback"))
    assert service.status()["waiting"] == [str(service.event_file(3))]
    service.add(5, plays(5).rename_columns(["usr", "track", "at"]))
    assert service.command("refresh").returncode == 2  # a faulty file does not bring back what was withdrawn
    assert service.statuses() == ["published"] * 3 + ["withdrawn"]
    succeeded(service.command("refresh", "--publish"))
    assert service.files(5) == ["day-003.parquet", "day-005.parquet"]


def lines_to(stream: IO[str] | None, text: str) -> list[str]:
    """Return the next lines, to the first that has ``text``."""
    assert stream is not None
    lines = []
    for line in stream:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"no line has '{text}'")
