"""Services on the page and in 'crossfade status', from recorded versions and without a browser."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from command_here import crossfade_here
from recorded_service import make_record
from run_folders import state, write_run

from crossfade.deploy.dashboard.run_reader import Runs
from crossfade.deploy.dashboard.service_reader import ServiceReader, ServiceSummary
from crossfade.deploy.refresh.versions import EventFile, ServiceVersions
from crossfade.trainer.monitoring.thresholds import STALE_EVENTS_SECONDS

NEWEST = 1_790_000_000


def write_music(folder: Path, *records: dict[str, Any]) -> Path:
    """Write a service with ``records``, the versions from 1, and the runs of those that are published."""
    folder.mkdir(parents=True)
    for number, values in enumerate(records, 1):
        record = make_record(number, **values)
        ServiceVersions(folder).write(record)
        if record.status == "published":
            write_run(folder / f"version-{number:06}", state=state("done", at=number))
    return folder


def look(folder: Path, *, age: float = 60.0) -> ServiceSummary:
    """Summarize a service ``age`` seconds after the event at ``NEWEST``."""
    return ServiceReader(folder, folder.name).summarize(NEWEST + age)


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """Write a service of which the version 2 was rejected and version 3 is served."""
    files = [EventFile(uri="/events/day-002.parquet", state="1", bytes=1)]
    rejected = {"status": "rejected", "newest": NEWEST + 50, "after": 0.125, "files": files}
    return write_music(tmp_path / "services" / "music", {"newest": NEWEST - 99}, rejected, {"newest": NEWEST})


def test_services_and_the_runs_of_their_versions_are_found(music: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = music.parents[1]
    (music / "version-000003-data").mkdir()
    write_run(root / "runs" / "plays", state=state("done", at=1))
    versions = [f"version-{number:06}" for number in (1, 3)]
    for paths, name, runs in (
        ([music], "music", versions),
        ([music.parent], "music", [f"music/{each}" for each in versions]),
        ([root], "services/music", ["runs/plays", *(f"services/music/{each}" for each in versions)]),
    ):
        found = Runs(paths)
        assert [service.name for service in found.services()] == [name]
        assert [run.name for run in found.readers()] == runs
    monkeypatch.chdir(root)
    found = Runs([Path("runs")], Path("services"))
    assert [service.name for service in found.services()] == ["music"]
    assert [run.name for run in found.readers()] == ["plays", *(f"services/music/{each}" for each in versions)]
    first = found.services()[0]
    write_music(root / "services" / "books", {})
    assert [service.name for service in found.services()] == ["books", "music"]
    assert found.services()[1] is first


def test_summary_has_what_is_served_since_when_and_how_fresh_it_is(music: Path) -> None:
    found = look(music)
    assert (found.state, found.served, found.newest, found.age_seconds) == ("fresh", 3, NEWEST, 60.0)
    assert found.since == make_record(3).decided
    assert (found.alerts, [found.status(record) for record in found.records]) == (
        [],
        ["published", "rejected", "served"],
    )


def test_rejected_version_and_old_events_are_alerts(music: Path) -> None:
    assert look(music, age=STALE_EVENTS_SECONDS).alerts == []
    stale = look(music, age=STALE_EVENTS_SECONDS + 1)
    assert stale.state == "stale"
    assert [alert.text for alert in stale.alerts] == ["the newest event in the served version is 1 d 12 h old"]
    ServiceVersions(music).write(make_record(4, status="rejected", before=0.25, after=0.125))
    [alert] = look(music).alerts
    text = "version 4 was rejected: ndcg@10 0.1250 ± 0.0100 after training, 0.2500 before; version 3 is still served"
    assert (alert.level, alert.text) == ("warning", text)
    assert look(music).state == "rejected"


def test_files_behind_links_that_lead_out_of_the_service_are_not_read(music: Path) -> None:
    ServiceVersions(music).mark_forgotten(complete=True)
    for name in ("current.json", "forgotten.json", "version-000003.json"):
        (music / name).rename(music.parent / name)
        (music / name).symlink_to(music.parent / name)
    found = look(music)
    assert (found.served, found.forgotten, [record.number for record in found.records]) == (1, None, [1, 2])
    assert sum("a link leads out of the folder" in alert.text for alert in found.alerts) == 3


def test_damaged_files_are_alerts_and_what_can_be_read_is_shown(music: Path) -> None:
    (music / "version-000001.json").write_text('{"number": 1')
    os.mkfifo(music / "version-000004.json")
    copied = json.loads((music / "version-000003.json").read_text())
    (music / "version-000005.json").write_text(json.dumps(copied))
    (music / "version-000006.json").write_text(json.dumps({**copied, "number": 6, "decided": 1e300}))
    (music / "version-000007.json").mkdir()
    (music / "current.json").write_text("[]")
    found = look(music)
    assert (found.served, [record.number for record in found.records]) == (3, [2, 3])
    problems = " ".join(alert.text for alert in found.alerts)
    for name in ("current.json", *(f"version-00000{number}.json" for number in (1, 4, 5, 6, 7))):
        assert name in problems
    # A record that is restored in place, which does not change the folder's time, is read.
    reader = ServiceReader(music, "music")
    reader.summarize(NEWEST)
    os.utime(music, (NEWEST, NEWEST))
    reader.summarize(NEWEST)
    (music / "version-000001.json").write_text(make_record(1).model_dump_json())
    assert reader.summarize(NEWEST).records[0].number == 1


@pytest.mark.slow
def test_status_has_the_service_and_its_runs(music: Path) -> None:
    ServiceVersions(music).write(make_record(4, newest=int(time.time()) - 60))
    head, served, newest, _, titles, *lines = crossfade_here("status", music, cwd=music.parent).stdout.splitlines()
    assert head == f"music: fresh  ({music})"
    assert served.startswith("served       version 4, since 20")
    assert newest.startswith("newest event 1 min")
    assert titles.split() == ["version", "decided", "status", "metric", "events", "files", "before", "after", "took"]
    assert lines[1].split()[3:] == ["rejected", "ndcg@10", "100", "1", "0.2200", "0.1250", "±", "0.0100", "42", "s"]
    assert any(line.startswith("version-000003 ") for line in lines)
    # Without folders named, what is in services/ is shown beside the runs, which need not be there.
    ServiceVersions(music).mark_forgotten(complete=True)
    printed = json.loads(crossfade_here("status", "--json", cwd=music.parents[1]).stdout)
    assert "services/music/version-000003" in {run["name"] for run in printed["runs"]}
    [service] = printed["services"]
    assert [service[key] for key in ("name", "path", "state", "served")] == ["music", "services/music", "fresh", 4]
    assert service["forgotten"] == {"through": 4, "complete": True}
    assert [(each["number"], each["status"], each["files"]) for each in service["versions"][1:3]] == [
        (2, "rejected", 1),
        (3, "published", 0),
    ]
