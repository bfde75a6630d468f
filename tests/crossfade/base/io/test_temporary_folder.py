"""Temporary folders are deleted at the end, and the folders of killed processes by the next one."""

import os
from pathlib import Path

from killed_process import holding

from crossfade.base.io.temporary_folder import temporary_folder


def test_folders_of_killed_processes_are_deleted_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    foreign = tmp_path / "crossfade-notes"
    foreign.mkdir()
    with temporary_folder("vectors", tmp_path) as living:
        (living / "rows").touch()
        with holding(lambda: temporary_folder("vectors", tmp_path)):
            assert len(list(tmp_path.glob("crossfade-vectors-*"))) == 2
        assert len(list(tmp_path.glob("crossfade-vectors-*"))) == 2, "it was killed"
        with temporary_folder("histories", tmp_path) as other:
            assert set(tmp_path.iterdir()) == {foreign, living, other}
        assert (living / "rows").exists()
    assert list(tmp_path.iterdir()) == [foreign]


def test_link_or_fifo_in_place_of_a_lock_is_left(tmp_path: Path) -> None:
    names = [tmp_path / f"crossfade-{kind}" / ".crossfade.lock" for kind in ("link", "fifo")]
    for path in names:
        path.parent.mkdir()
    names[0].symlink_to(Path(__file__))
    os.mkfifo(names[1])
    with temporary_folder("vectors", tmp_path):
        assert names[0].is_symlink()
