"""The order in which a checkpoint is completed."""

from pathlib import Path

import pytest

from crossfade.base.io.folder import Folder
from crossfade.kvstore.checkpoint.file_names import MANIFEST_NAME
from crossfade.kvstore.checkpoint.format import CheckpointManifest
from crossfade.kvstore.checkpoint.lifecycle import commit
from crossfade.kvstore.optimizer_spec import OptimizerSpec


def test_commit_writes_the_manifest_after_all_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = Folder.write

    def record_and_write(self: Folder, name: str, data: bytes) -> None:
        written.append(name)
        write(self, name, data)

    monkeypatch.setattr(Folder, "write", record_and_write)
    manifest = CheckpointManifest(step=1, tables=[], optimizer=OptimizerSpec("sgd", 0.1), seed=1, parts=[])
    commit(str(tmp_path), manifest, {"dense.npz": b"layers", "more.npz": b""})
    assert written == ["dense.npz", "more.npz", MANIFEST_NAME]
