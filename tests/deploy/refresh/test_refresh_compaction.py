"""A service whose datasets have become many merges them into one; versions go on as before."""

from collections.abc import Callable
from pathlib import Path

import pytest
from command_here import crossfade_here
from crashing_storage import Crash
from refreshed_service import EVENTS, ServiceFolder, plays
from run_results import assert_same_bits
from running_command import succeeded

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
    service = undisturbed.copied(tmp_path, compact_after=2, keep_versions=2)
    service.add(4)
    succeeded(service.command("refresh"))
    compacted = service.path / "version-000003-compacted"
    assert bases(service.data(4)) == ["version-000003-compacted"]
    assert sum(split.rows for split in read_manifest(Folder(compacted)).splits.values()) == 3 * EVENTS
    assert service.times(4) == plays(4)["at"].to_pylist()
    service.add(5)
    succeeded(service.command("refresh"))
    assert "version-000001-data" not in folders(service)
    assert {"version-000004", "version-000004-data", "version-000005"} <= set(folders(service))
    for number in (5, 4):
        assert service.current()["version"] == number
        succeeded(crossfade_here("recommend", service.path, "--customer", "c1"))
        if number == 5:
            succeeded(service.command("rollback"))
    service.add(6)
    succeeded(service.command("refresh"))
    assert (service.record(6)["base"], service.files(6)) == (4, ["day-005.parquet", "day-006.parquet"])


def test_compaction_that_was_interrupted_is_done_again(
    undisturbed: ServiceFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = increment.compact

    def crashing(name: str) -> Callable[..., object]:
        def compact(*arguments: object) -> None:
            if name == "after":
                real(*arguments)
            raise Crash

        return compact

    found = []
    for name in ("never", "before", "after"):
        (tmp_path / name).mkdir()
        service = undisturbed.copied(tmp_path / name, compact_after=2)
        service.add(4)
        if name != "never":
            monkeypatch.setattr(increment, "compact", crashing(name))
            with pytest.raises(Crash):
                service.command("refresh")
            monkeypatch.undo()
        succeeded(service.command("refresh"))
        found.append(service)
    for service in found[1:]:
        assert_same_bits(service.run(4), found[0].run(4))
