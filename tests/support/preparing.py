"""Write and prepare raw files, and read prepared datasets.

train = write_parquet(tmp_path / "events.parquet", **random_events(1000))
manifest = prepare_files(tmp_path / "out", train, hold_out="random:0.1")
assert interactions(tmp_path / "out", "train")
"""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import DatasetManifest, read_manifest
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.prepare.forget import ForgetReport, staged_deletion
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.pipeline import prepare

Row = tuple[Any, ...]


def write_parquet(path: Path, **columns: Sequence[Any] | pa.Array) -> Path:
    """Write ``columns`` to the Parquet file ``path`` and return it; parent folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path)
    return path


def write_text(path: Path, text: str | bytes) -> Path:
    """Write ``text`` to ``path`` and return it."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def random_events(count: int, seed: int = 7) -> dict[str, list[Any]]:
    """Return ``count`` events as columns: ``customer`` of 60, ``item`` of 100 and ``when``."""
    draw = random.Random(seed)
    return {
        "customer": [f"c{draw.randrange(60)}" for _ in range(count)],
        "item": [draw.randrange(1000, 1100) for _ in range(count)],
        "when": [draw.randrange(50) for _ in range(count)],
    }


def prepare_files(out: Path | str, *train: Path | str, **options: Any) -> DatasetManifest:
    """Prepare the files ``train`` with two threads, unless ``options`` (of ``PrepareOptions``) give another number."""
    return prepare(PrepareOptions.of(out=out, train=train, threads=options.pop("threads", 2), **options))


def forget_dataset(folder: Folder, ids: pa.StringArray, entity: str, progress: ProgressReporter) -> ForgetReport:
    """Delete ``ids`` of ``entity`` from the dataset in ``folder``."""
    with staged_deletion(folder, ids, entity, progress) as deletion:
        return deletion.publish()


def vocabulary(out: Path, entity: str) -> list[dict[str, Any]]:
    """Read all columns of the vocabulary files of ``entity``."""
    manifest = read_manifest(Folder(out))
    return [row for file in manifest.entities[entity].files for row in pq.read_table(out / file.path).to_pylist()]


def vocabulary_tuples(data: Path | Folder, entity: str) -> list[Row]:
    """Return row, ID, count and, if the entity has names, the name of each row of a vocabulary."""
    folder = Folder(data) if isinstance(data, Path) else data
    manifest = read_manifest(folder)
    reader = Vocabulary(folder, manifest, entity)
    columns = ["row", "id", "count", *(["name"] if manifest.entities[entity].has_names else [])]
    return [tuple(row.values()) for row in reader.read(0, reader.rows, columns).to_pylist()]


def interactions(out: Path | Folder, split: str) -> list[Row]:
    """Return the interactions of a split with IDs instead of rows, in the order of the files."""
    folder = Folder(out) if isinstance(out, Path) else out
    manifest = read_manifest(folder)
    ids = {entity: [row[1] for row in vocabulary_tuples(folder, entity)] for entity in manifest.entities}
    rows = []
    for file in manifest.splits[split].files:
        with folder.open_random(file.path) as source:
            table = pq.read_table(source)
        for row in table.to_pylist():
            query, item, *rest = row.values()
            rows.append((ids[manifest.query][query], ids[manifest.item][item], *rest))
    return rows


def checksums(out: Path) -> dict[str, str]:
    """Return the SHA-256 of each Parquet file below ``out``, by its path."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*.parquet"))
    }


def entries(folder: Path) -> list[str]:
    """Return the paths of all files and folders below ``folder``, sorted."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class InterruptingReporter:
    """A progress reporter that raises ``KeyboardInterrupt`` when ``phase`` begins."""

    def __init__(self, phase: str) -> None:
        self._phase = phase

    def phase(self, name: str, total: int | None, unit: str) -> None:
        """Raise if ``name`` is the phase to interrupt."""
        if name == self._phase:
            raise KeyboardInterrupt

    def advance(self, amount: int) -> None:
        """Ignore progress."""
