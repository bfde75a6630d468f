"""The version that the server answers from is kept, whatever happens to the one that it replaced."""

import asyncio
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crossfade.deploy.serving import current as current_module
from crossfade.deploy.serving import refresher
from crossfade.deploy.serving.current import CurrentVersion
from crossfade.deploy.serving.options import ServeOptions
from crossfade.deploy.serving.refresher import Refresher
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.serving.copies_folder import CopiesFolder


def test_version_that_cannot_be_deleted_is_deleted_later_and_the_new_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = SimpleNamespace(warm_up=lambda: None, close=lambda: None, card=SimpleNamespace(number=None), model=None)
    monkeypatch.setattr(current_module, "open_version", lambda path: opened)
    monkeypatch.setattr(refresher, "_write", lambda source, path, reporter: path.mkdir())
    monkeypatch.setattr(Refresher, "_write_in_process", lambda self, path: path.mkdir())
    fingerprints, failures, delete = iter("abbb"), iter([True, True, False]), shutil.rmtree
    monkeypatch.setattr(refresher, "source_fingerprint", lambda source: next(fingerprints))

    def delete_later(path: Path, **options: Any) -> None:
        if Path(path).name == "000001" and next(failures):
            raise OSError("a file is still open")
        delete(path, **options)

    monkeypatch.setattr(shutil, "rmtree", delete_later)
    folder = CopiesFolder(tmp_path)
    refreshing = Refresher(ServeOptions.of(source="run"), folder)

    async def follow() -> list[list[str]]:
        found = []
        for _ in range(3):
            await refreshing._refresh(current)
            found.append(sorted(path.name for path in folder.path.iterdir() if path.is_dir()))
        return found

    current = CurrentVersion(refreshing.write_first(NullReporter()))
    with caplog.at_level(logging.WARNING):
        assert asyncio.run(follow()) == [["000001", "000002"], ["000001", "000002"], ["000002"]]
    assert current.answers.version == 2
    problem = "could not be deleted, which is tried again: a file is still open"
    assert caplog.messages == [f"{folder.path / '000001'}: {problem}"]
    current.close()
    folder.delete()
