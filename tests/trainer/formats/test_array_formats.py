"""Exports as files: values, rows, and what may be replaced."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import ITEM, QUERY
from command_here import crossfade_here
from running_command import succeeded
from safetensors.numpy import load_file
from written_runs import (
    CUSTOMER_IDS,
    TRACK_IDS,
    TRACK_NAMES,
    UNTRAINED,
    WrittenRun,
    save_checkpoint,
    write_run,
)

from crossfade.base.errors import MissingExtraError, OptionError
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.formats import exported_model
from crossfade.trainer.formats.export import export as run_export
from crossfade.trainer.formats.options import ExportOptions

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path: Path) -> WrittenRun:
    return write_run(tmp_path)


def export(run: WrittenRun, to: str, *options: object) -> Path:
    """Export ``run``, and return the folder."""
    out = run.path.parent / f"{to}-out"
    succeeded(crossfade_here("export", run.path, "--to", to, "--out", out, *options))
    return out


def load(folder: Path, to: str) -> tuple[Any, dict[str, list[Any]]]:
    """Return the vectors and the rows in ``folder``."""
    if to == "parquet":
        rows = pq.read_table(folder)
        return np.stack(rows["vector"].to_numpy()), rows.to_pydict()
    path = folder / f"vectors.{'npy' if to == 'numpy' else to}"
    vectors = np.load(path) if to == "numpy" else load_file(path)["vectors"]
    return vectors, pq.read_table(folder / "rows.parquet").to_pydict()


@pytest.mark.parametrize("to", ["numpy", "safetensors", "parquet"])
def test_files_have_all_vectors_and_rows(run: WrittenRun, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported_model, "GROUP_ROWS", 3)
    vectors = save_checkpoint(run, 7) if to == "parquet" else run.vectors
    for entity, ids, names in ((ITEM, TRACK_IDS, TRACK_NAMES), (QUERY, CUSTOMER_IDS, None)):
        out = export(run, to, "--entity", entity, "--overwrite")
        found, rows = load(out / entity, to)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, vectors[entity])
        assert (rows["id"], rows.get("name")) == (ids, names)
        if to != "parquet":
            assert [row for row, trained in enumerate(rows["trained"]) if not trained] == (UNTRAINED if names else [])


def test_embeddings_are_exported_before_checkpoints(run: WrittenRun, tmp_path: Path) -> None:
    weights = save_checkpoint(run, 7)
    checkpoints = run.path / "checkpoints"
    sources = ((run.path, run.vectors), (checkpoints, weights), (checkpoints / "step-000000007", weights))
    for number, (source, expected) in enumerate(sources):
        out = tmp_path / str(number)
        result = crossfade_here("export", source, "--to", "numpy", "--out", out, "--json")
        assert json.loads(succeeded(result).stdout)["step"] == (None if number == 0 else 7)
        np.testing.assert_array_equal(np.load(out / ITEM / "vectors.npy"), expected[ITEM])
    shutil.rmtree(run.path / "embeddings")
    out = tmp_path / "without"
    result = succeeded(crossfade_here("export", run.path, "--to", "numpy", "--out", out))
    np.testing.assert_array_equal(np.load(out / QUERY / "vectors.npy"), weights[QUERY])
    assert result.stdout.splitlines() == [
        f"customer  {11:>13} x 4      {out}/customer",
        f"track     {10:>13} x 4      {out}/track, 2 untrained",
    ]


def test_only_files_of_exports_are_replaced(run: WrittenRun, tmp_path: Path) -> None:
    save_checkpoint(run, 7)
    command = ("export", run.path, "--out", tmp_path / "out", "--entity", ITEM)
    succeeded(crossfade_here(*command))
    for to in ("numpy", "safetensors", "parquet", "numpy"):
        assert "already exists; choose another" in crossfade_here(*command, "--to", to).stderr
        succeeded(crossfade_here(*command, "--to", to, "--overwrite"))
    files = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(files) == ["track/rows.parquet", "track/vectors.npy"]
    foreign = tmp_path / "out" / "track" / "notes.json"
    foreign.write_text("{}")
    assert "notes.json', which is not part of an export" in crossfade_here(*command, "--overwrite").stderr
    assert foreign.read_text() == "{}"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({}, "out"),
        ({"to": "numpy"}, "to"),
        ({"to": "numpy", "out": "s3://music/exports"}, "out"),
        ({"to": "numpy", "out": "out", "name": "music"}, "name"),
        ({"to": "numpy", "push": ""}, "push"),
        ({"to": "qdrant", "out": "out"}, "to"),
        ({"to": "qdrant", "push": "", "out": "out"}, "push"),
        ({"to": "qdrant", "push": "", "overwrite": True}, "push"),
        ({"to": "qdrant", "push": "", "name": "Music-1"}, "name"),
        ({"to": "mlflow", "out": "out", "name": "music"}, "name"),
        ({"to": "mlflow", "out": "out", "entity": ("track",)}, "entity"),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, Any], field: str) -> None:
    with pytest.raises(OptionError) as rejected:
        ExportOptions.of(source="run", **options)
    assert rejected.value.field[0] == field


@pytest.mark.parametrize(
    ("to", "module", "extra"),
    [
        ("pgvector", "psycopg", "export"),
        ("qdrant", "qdrant_client", "export"),
        ("opensearch", "opensearchpy", "export"),
        ("s3-vectors", "boto3", "aws"),
        ("mlflow", "mlflow.pyfunc", "mlflow"),
    ],
)
def test_missing_client_is_named(to: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    options = ExportOptions.of(source="nowhere", to=to, push="")
    with pytest.raises(MissingExtraError, match=rf"crossfade\[{extra}\]"):
        run_export(options, print, NullReporter())
