"""Exports as numpy, safetensors, and FAISS: values, rows, and the example in the model card, which is run."""

import json
import re
import shutil
import struct
import sys
from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import ITEM, QUERY
from command_here import crossfade_here
from error_table import documented
from object_store import running_object_store
from running_command import succeeded
from safetensors import safe_open
from safetensors.numpy import load_file
from written_runs import (
    CUSTOMER_IDS,
    TRACK_IDS,
    TRACK_NAMES,
    TRAINED,
    UNTRAINED,
    WrittenRun,
    save_checkpoint,
    write_run,
)

from crossfade.base.arrays import FloatArray
from crossfade.trainer.formats import exported_model

pytestmark = pytest.mark.slow

SCORES = ("cosine", "dot", "euclidean")


@pytest.fixture
def run(tmp_path: Path) -> WrittenRun:
    return write_run(tmp_path)


def export(run: WrittenRun, to: str, *options: object) -> Path:
    """Export ``run``, and return the folder."""
    out = run.path.parent / f"{to}-out"
    succeeded(crossfade_here("export", run.path, "--to", to, "--out", out, *options))
    return out


def run_example(folder: Path) -> str:
    """Run the Python of the model card in ``folder``, and return what it prints."""
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    printed = StringIO()
    with chdir(folder), redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    return printed.getvalue()


def scores_of(score: str, query_D: FloatArray, vectors_ND: FloatArray) -> FloatArray:
    """Compute scores by their definitions, in float64."""
    query_D, vectors_ND = query_D.astype(np.float64), vectors_ND.astype(np.float64)
    if score == "euclidean":
        return -((vectors_ND - query_D) ** 2).sum(axis=1)
    dots_N = vectors_ND @ query_D
    if score == "dot":
        return dots_N
    return dots_N / np.sqrt((vectors_ND**2).sum(axis=1) * (query_D**2).sum())


def assert_complete_rows(folder: Path) -> None:
    rows = pq.read_table(folder / ITEM / "rows.parquet").to_pydict()
    assert rows["row"] == list(range(len(TRACK_IDS)))
    assert rows["id"] == TRACK_IDS
    assert rows["name"] == TRACK_NAMES
    assert [row for row, trained in enumerate(rows["trained"]) if not trained] == UNTRAINED
    customers = pq.read_table(folder / QUERY / "rows.parquet").to_pydict()
    assert list(customers) == ["row", "id", "trained"]
    assert customers["id"] == CUSTOMER_IDS
    assert all(customers["trained"])


def test_numpy_has_all_vectors_in_order(run: WrittenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported_model, "GROUP_ROWS", 3)
    out = export(run, "numpy")
    for entity in (QUERY, ITEM):
        vectors_ND = np.load(out / entity / "vectors.npy", mmap_mode="r")
        assert isinstance(vectors_ND, np.memmap)
        assert vectors_ND.dtype == np.float32
        np.testing.assert_array_equal(vectors_ND, run.vectors[entity])
    assert_complete_rows(out)


def test_safetensors_are_read_by_their_library(run: WrittenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported_model, "GROUP_ROWS", 3)
    out = export(run, "safetensors")
    for entity in (QUERY, ITEM):
        path = out / entity / "vectors.safetensors"
        tensors = load_file(path)
        assert list(tensors) == ["vectors"]
        assert tensors["vectors"].dtype == np.float32
        np.testing.assert_array_equal(tensors["vectors"], run.vectors[entity])
        with safe_open(path, framework="numpy") as file:
            np.testing.assert_array_equal(file.get_slice("vectors")[2:5], run.vectors[entity][2:5])
            metadata = file.metadata()
        assert (metadata["entity"], metadata["job"], metadata["score"]) == (entity, "planted", "cosine")
        [length] = struct.unpack("<Q", path.read_bytes()[:8])
        assert (8 + length) % 8 == 0
    assert_complete_rows(out)


def assert_ranked(printed: str, names: list[str | None], score_N: FloatArray) -> None:
    """Assert that ``printed`` begins with lines of ``names`` and their scores, best first."""
    for place in np.argsort(-score_N):
        match = re.match(rf"(\S+) {re.escape(str(names[place]))}\n", printed)
        assert match is not None, printed
        assert float(match[1]) == pytest.approx(score_N[place], rel=1e-4, abs=1e-3)
        printed = printed[match.end() :]


@pytest.mark.parametrize(("to", "score"), [("numpy", "cosine"), ("safetensors", "dot"), ("numpy", "euclidean")])
def test_example_ranks_items_for_the_first_query(tmp_path: Path, to: str, score: str) -> None:
    run = write_run(tmp_path, score=score)
    score_N = scores_of(score, run.vectors[QUERY][0], run.trained_vectors(ITEM))
    assert_ranked(run_example(export(run, to)), [TRACK_NAMES[row] for row in TRAINED], score_N)


def test_example_of_one_entity_ranks_its_rows(run: WrittenRun) -> None:
    printed = run_example(export(run, "numpy", "--entity", QUERY))
    assert printed.startswith(f"1.000 {CUSTOMER_IDS[0]}\n")


def test_parquet_example_ranks_all_rows(run: WrittenRun, tmp_path: Path) -> None:
    weights = save_checkpoint(run, 7)
    succeeded(crossfade_here("export", run.path, "--out", tmp_path / "out"))
    assert_ranked(run_example(tmp_path / "out"), TRACK_NAMES, scores_of("cosine", weights[QUERY][0], weights[ITEM]))


def recommended_tracks(run: WrittenRun, *options: object) -> list[int]:
    """Return the tracks that are recommended to a customer, best first."""
    result = crossfade_here("recommend", run.path, "--customer", "ü5", "--json", "--exclude", *options)
    return [track["track"] for track in json.loads(succeeded(result).stdout)[0]["recommendations"]]


@pytest.mark.parametrize("score", SCORES)
def test_faiss_index_finds_the_nearest(tmp_path: Path, score: str) -> None:
    run = write_run(tmp_path, score=score)
    out = export(run, "faiss", "--entity", ITEM)
    assert json.loads((out / ITEM / "card.json").read_text())["metric"] == score
    assert pq.read_table(out / ITEM / "rows.parquet").column("row").to_pylist() == TRAINED
    first = re.match(rf"(\S+) {TRACK_NAMES[0]}\n", run_example(out))
    vectors_ND = run.trained_vectors(ITEM)
    assert first is not None, "the nearest to the first track is the track"
    assert float(first[1]) == pytest.approx(scores_of(score, vectors_ND[0], vectors_ND)[0], rel=1e-4)
    found = [recommended_tracks(run, *index) for index in ((), ("--index", out / ITEM))]
    assert found[0] == found[1]
    assert len(found[0]) == len(TRAINED)


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


def test_corrupt_checkpoint_is_skipped_without_leftovers(run: WrittenRun, tmp_path: Path) -> None:
    older, _ = save_checkpoint(run, 7), save_checkpoint(run, 8)
    [file] = (run.path / "checkpoints" / "step-000000008" / ITEM).glob("weights.*")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    command = ("export", run.path / "checkpoints", "--to", "numpy", "--out", tmp_path / "out")
    result = succeeded(crossfade_here(*command))
    assert f"skipped a checkpoint: {file}: its CRC-32 does not match" in result.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "out" / ITEM / "vectors.npy"), older[ITEM])
    other = tmp_path / "other"
    for name, *options in (
        ("export", "--to", "safetensors", "--out", other),
        ("index", "--out", other),
        ("recommend", "--all", "--out", other.with_suffix(".csv")),
        ("similar", "1007"),
    ):
        corrupt = crossfade_here(name, file.parents[1], *options)
        message = corrupt.stderr.splitlines()[-1].removeprefix("crossfade: error: ")
        documented("a corrupt checkpoint", message, corrupt.returncode)
    resumable = ".other.csv.partial"  # the same command continues with it
    assert sorted(path.name for path in tmp_path.iterdir()) == [resumable, "data", "out", "run"]


@pytest.mark.slow
def test_only_files_of_exports_are_replaced(run: WrittenRun, tmp_path: Path) -> None:
    save_checkpoint(run, 7)
    out = tmp_path / "out"
    command = ("export", run.path, "--out", out, "--entity", ITEM)
    succeeded(crossfade_here(*command))
    for to in ("numpy", "pgvector", "parquet", "qdrant"):
        rejected("an existing export", *command, "--to", to)
        succeeded(crossfade_here(*command, "--to", to, "--overwrite"))
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == [
        "README.md",
        "export.json",
        "load.sh",
        "track/alias.json",
        "track/collection.json",
        "track/points-000000.json",
    ]
    (out / "track" / "notes.json").write_text("{}")
    rejected("--overwrite of an export with other files", *command, "--to", "numpy", "--overwrite")
    (out / "track" / "notes.json").unlink()
    succeeded(crossfade_here(*command, "--overwrite"))
    (out / "README.md").write_text("My own notes.\n")
    rejected("--overwrite of an export with other files", *command, "--overwrite")
    assert (out / "README.md").read_text() == "My own notes.\n"


def test_list_of_another_program_permits_nothing(run: WrittenRun, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "export.json").write_text(json.dumps({"files": {"notes.txt": 1, "export.json": 1}}))
    (out / "notes.txt").touch()
    command = ("export", run.path, "--to", "numpy", "--out", out, "--overwrite")
    rejected("--overwrite of an export with other files", *command)
    (out / "export.json").write_text("not JSON")
    rejected("--overwrite of an export with other files", *command)
    assert (out / "notes.txt").exists()


def rejected(cause: str, *arguments: object) -> str:
    result = crossfade_here(*arguments)
    assert result.stdout == ""
    line = result.stderr.splitlines()[-1]
    return documented(cause, line.removeprefix("crossfade: error: "), result.returncode)


def test_invalid_options_are_rejected(run: WrittenRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, out = ("export", run.path, "--to"), ("--out", tmp_path / "out")
    rejected("an export without a folder", *command, "numpy")
    rejected("an export to S3", *command, "numpy", "--out", "s3://music/exports")
    rejected("shards of another format", *command, "numpy", *out, "--shard", "1/2")
    rejected("shards of an export with --overwrite", *command, "parquet", *out, "--merge", "--overwrite")
    rejected("an export of an unknown entity", *command, "numpy", *out, "--entity", "artist")
    rejected("a name in databases with other letters", *command, "qdrant", *out, "--name", "Music-1")
    rejected("a name in databases that is too long", *command, "qdrant", *out, "--name", "a" * 43)
    rejected("a name in databases for files", *command, "numpy", *out, "--name", "music")
    rejected("--push of another format", "export", run.path, "--push")
    rejected("--push with a folder", *command, "pgvector", "--push", *out)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    rejected("--push without psycopg", *command, "pgvector", "--push")
    monkeypatch.setitem(sys.modules, "faiss", None)
    result = crossfade_here(*command, "faiss", *out)
    assert "'crossfade export --to faiss' needs the package 'faiss-cpu'" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "run"]


@pytest.mark.slow
def test_run_and_checkpoints_on_s3_are_exported(run: WrittenRun, tmp_path: Path) -> None:
    weights = save_checkpoint(run, 7)
    (run.path / "report.json").write_text(json.dumps({"steps": 7, "epochs": 1, "best_epoch": 1, "metrics": {}}))
    (tmp_path / "server").mkdir()
    with running_object_store(tmp_path / "server") as server, pytest.MonkeyPatch.context() as environment:
        for name, value in server.variables.items():
            environment.setenv(name, value)
        uri = server.upload(run.path, "runs/planted")
        for number, (source, expected) in enumerate(((uri, run.vectors), (f"{uri}/checkpoints", weights))):
            out = tmp_path / str(number)
            result = succeeded(crossfade_here("export", source, "--to", "numpy", "--out", out))
            np.testing.assert_array_equal(np.load(out / ITEM / "vectors.npy"), expected[ITEM])
            origin = ("embeddings of epoch 1, the best on valid", "checkpoint of step 7")[number]
            assert f": {origin} of job 'planted'" in result.stderr
