"""The old dataset when the new one cannot take its place."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crossfade.kvstore.io.folder import Folder
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.pipeline import prepare


def prepare_customers(out: Path, customers: list[str], **options: bool) -> None:
    raw = out.with_name("raw.parquet")
    pq.write_table(pa.table({"customer": customers, "item": list(range(len(customers)))}), raw)
    prepare(PrepareOptions(out=out, train=[raw], threads=1, **options))


def test_failed_swap_restores_the_old_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "data"
    prepare_customers(out, ["a", "b"])
    before = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    rename = Path.rename

    def fail_rename_to_target(self: Path, target: Path) -> Path:
        if Path(target) == out and ".old-" not in self.name:
            raise OSError(5, "Input/output error", str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_rename_to_target)
    with pytest.raises(OSError, match="Input/output error"):
        prepare_customers(out, ["a", "b", "c"], overwrite=True)
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert read_manifest(Folder(out)).entities["customer"].rows == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "raw.parquet"]
