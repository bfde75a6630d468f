"""Replacing a folder: killed at any system call, the old or the new one is complete, and leftovers are deleted."""

import os
from pathlib import Path

import pytest
from killed_process import killed_at

from crossfade.base.io import replacing as module
from crossfade.base.io.output import staged_folder
from crossfade.base.io.replacing import replace_folder

FILES = ("manifest.json", "train/part-0")


def write(folder: Path, text: str) -> None:
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def content(folder: Path) -> set[str]:
    """Return the different contents of the files of ``folder``, which must be complete."""
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == list(FILES)
    return {(folder / name).read_text() for name in FILES}


def replace(target: Path) -> None:
    with staged_folder(target) as staging:
        write(staging, "new")
        replace_folder(target, staging)


@pytest.fixture(params=["exchange", "two renames"])
def one_step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Replace folders in one step, or as on a system that cannot."""
    if request.param == "two renames":
        monkeypatch.setattr(module, "_exchange", lambda first, second: False)
    return request.param == "exchange"


@pytest.mark.slow
def test_kill_at_any_system_call_leaves_old_or_new_folder(tmp_path: Path, one_step: bool) -> None:
    found, aside = [], False
    for point in range(1, 1000):
        target = tmp_path / str(point) / "data"
        write(target, "old")
        was_killed = killed_at(point, lambda target=target: replace(target))  # type: ignore[misc]
        if not one_step and not target.exists():
            aside = True
            (target.parent / ".data.old").rename(target)
        [text] = content(target)
        found.append(text)
        # The next command writes, and deletes what the killed one has left.
        with staged_folder(target):
            assert content(target) == {text}
        assert {path.name for path in target.parent.iterdir()} <= {"data", ".data.old"}
        if not was_killed:
            break
    assert found == sorted(found, reverse=True)
    assert found.count("old") > 10
    assert found.count("new") > 10
    assert aside is not one_step


def test_files_and_folders_are_synced_before_and_after_the_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_step: bool
) -> None:
    target, fsync = tmp_path / "data", os.fsync
    write(target, "old")
    synced: list[tuple[str, str]] = []

    def record(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((path.name, (target / "manifest.json").read_text()))

    monkeypatch.setattr(os, "fsync", record)
    replace(target)
    names = [name for name, text in synced if text == "old"]
    assert {"manifest.json", "train", "part-0"} < set(names)
    assert synced[-1] == (tmp_path.name, "new")
