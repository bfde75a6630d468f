"""A service whose datasets have become many merges them into one; versions go on as before."""

from contextlib import nullcontext
from pathlib import Path

import pytest
from command_here import crossfade_here
from crashing_storage import Crash
from refreshed_service import EVENTS, ServiceFolder, plays
from run_results import assert_same_bits
from running_command import succeeded

from crossfade.base.errors import CrossfadeError
from crossfade.base.io.folder import Folder
from crossfade.deploy.refresh import increment
from crossfade.trainer.data.lineage import open_bases
from crossfade.trainer.data.manifest import read_manifest

pytestmark = pytest.mark.slow


def bases(data: Path) -> list[str]:
    """Return the names of the datasets that a dataset extends."""
    return [str(base.folder.path.name) for base in open_bases(Folder(data), read_manifest(Folder(data)))]  # type: ignore[union-attr]


def folders(service: ServiceFolder) -> list[str]:
    return sorted(path.name for path in service.path.iterdir() if path.is_dir())


def test_compacted_service_goes_on_and_deletes_the_datasets_of_old_versions(
    undisturbed: ServiceFolder, tmp_path: Path
) -> None:
    service = undisturbed.copied(tmp_path, compact_after=3, keep_versions=2)
    service.add(4)
    succeeded(service.command("refresh"))
    compacted = service.path / "version-000004-compacted"
    assert sum(split.rows for split in read_manifest(Folder(compacted)).splits.values()) == 4 * EVENTS
    service.add(5)
    succeeded(service.command("refresh"))
    assert bases(service.data(5)) == ["version-000004-compacted"]
    assert service.times(5) == plays(5)["at"].to_pylist()
    service.add(6)
    succeeded(service.command("refresh"))
    assert {"version-000001-data", "version-000004", "version-000004-data"}.isdisjoint(folders(service))
    for number in (6, 5):
        assert service.current()["version"] == number
        succeeded(crossfade_here("recommend", service.path, "--customer", "c1"))
        if number == 6:
            succeeded(service.command("rollback"))
    service.add(7)
    succeeded(service.command("refresh"))
    assert (service.record(7)["base"], service.files(7)) == (5, ["day-006.parquet", "day-007.parquet"])
    assert {"version-000005", "version-000007"} <= set(folders(service))


def test_failed_compaction_is_reported_and_tried_again_before_the_next_version(
    undisturbed: ServiceFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = undisturbed.copied(tmp_path, compact_after=3)
    service.add(4)
    with monkeypatch.context() as patch:
        patch.setattr(increment, "compact", _fail)
        result = succeeded(service.command("refresh"))
    assert "could not be compacted and cleaned up: no room" in result.stderr
    assert (service.current()["version"], "version-000004-compacted" in folders(service)) == (4, False)
    service.add(5)
    succeeded(service.command("refresh"))
    assert bases(service.data(5)) == ["version-000004-compacted"]


@pytest.mark.parametrize("is_done", [False, True])
def test_compaction_that_was_interrupted_is_done_before_the_next_version(
    undisturbed: ServiceFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_done: bool
) -> None:
    real, found = increment.compact, []

    def crashing(*arguments: object) -> None:
        if is_done:
            real(*arguments)  # type: ignore[arg-type]
        raise Crash

    for crashes in (False, True):
        folder = tmp_path / str(crashes)
        folder.mkdir()
        service = undisturbed.copied(folder, compact_after=3)
        service.add(4)
        with monkeypatch.context() as patch, pytest.raises(Crash) if crashes else nullcontext():
            if crashes:
                patch.setattr(increment, "compact", crashing)
            service.command("refresh")
        assert service.current()["version"] == 4
        service.add(5)
        succeeded(service.command("refresh"))
        found.append(service)
    assert bases(found[1].data(5)) == ["version-000004-compacted"]
    assert_same_bits(found[0].run(5), found[1].run(5))


def _fail(*_: object) -> None:
    raise CrossfadeError("no room")
