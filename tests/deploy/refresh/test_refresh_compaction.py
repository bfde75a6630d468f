"""A service whose datasets have become many merges them into one; versions go on as before."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from command_here import crossfade_here
from crashing_storage import Crash
from refreshed_service import EVENTS, ServiceFolder, plays, training_there
from running_command import succeeded

from crossfade.base.errors import CrossfadeError
from crossfade.base.io.folder import Folder
from crossfade.deploy.launch.trial_run import TrialProcess
from crossfade.deploy.refresh import increment
from crossfade.trainer.data.lineage import open_bases
from crossfade.trainer.data.manifest import read_manifest

pytestmark = pytest.mark.slow


def bases(data: Path) -> list[str]:
    """Return the names of the datasets that a dataset extends."""
    return [str(base.folder.path.name) for base in open_bases(Folder(data), read_manifest(Folder(data)))]  # type: ignore[union-attr]


def folders(service: ServiceFolder) -> list[str]:
    return sorted(path.name for path in service.path.iterdir() if path.is_dir())


@pytest.fixture(autouse=True, scope="module")
def _soon() -> Iterator[None]:
    """Merge three datasets, not dozens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(increment, "_COMPACT_AFTER", 3)
        yield


@pytest.fixture(scope="module")
def compacted(
    process: TrialProcess, undisturbed: ServiceFolder, tmp_path_factory: pytest.TempPathFactory
) -> ServiceFolder:
    """Make a service whose datasets become one with version 4, and that goes on with version 5."""
    service = undisturbed.copied(tmp_path_factory.mktemp("compacted"), keep_versions=2)
    with training_there(process):
        for day in (4, 5):
            service.add(day)
            succeeded(service.command("refresh"))
    return service


def test_compacted_service_goes_on_and_deletes_the_datasets_of_old_versions(
    compacted: ServiceFolder, tmp_path: Path
) -> None:
    service = compacted.copied(tmp_path, keep_versions=2)
    manifest = read_manifest(Folder(service.path / "version-000004-compacted"))
    assert sum(split.rows for split in manifest.splits.values()) == 4 * EVENTS
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


@pytest.mark.parametrize("how", ["fails", "is killed before it", "is killed after it"])
def test_compaction_that_fails_or_is_interrupted_is_done_after_the_next_version(
    undisturbed: ServiceFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    real = increment.compact

    def end(*arguments: object) -> None:
        if how == "fails":
            raise CrossfadeError("no room")
        if how == "is killed after it":
            real(*arguments)  # type: ignore[arg-type]
        raise Crash

    service = undisturbed.copied(tmp_path, keep_versions=2)
    service.add(4)
    with monkeypatch.context() as patch:
        patch.setattr(increment, "compact", end)
        if how == "fails":
            result = succeeded(service.command("refresh"))
            assert "could not be compacted and cleaned up: no room" in result.stderr
        else:
            with pytest.raises(Crash):
                service.command("refresh")
    assert service.current()["version"] == 4
    is_compacted = how == "is killed after it"
    assert ("version-000004-compacted" in folders(service)) == is_compacted
    service.add(5)
    succeeded(service.command("refresh"))
    assert ("version-000005-compacted" in folders(service)) != is_compacted
    assert (len(bases(service.data(5))) == 1) == is_compacted
    assert service.times(5) == plays(5)["at"].to_pylist()
