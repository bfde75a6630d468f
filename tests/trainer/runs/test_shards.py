"""Shards of recommendations, evaluations, and indexes: together they are the whole, and what is not is rejected."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import random_rows
from cluster_data import CUSTOMERS, TRACKS, write_job, write_planted
from command_here import crossfade_here, rejected_here
from object_store import running_object_store
from running_command import succeeded
from written_runs import write_vectors

from crossfade.base.errors import OptionError
from crossfade.base.io.folder import Folder
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.recommend import bulk
from crossfade.trainer.recommend.faiss_lists import VectorLists
from crossfade.trainer.recommend.index_build import Indexing
from crossfade.trainer.recommend.model import Selection
from crossfade.trainer.runs.job_inputs import load_inputs
from crossfade.trainer.runs.options import Shard, ShardOptions

SHARDS = 3
TRAIN_FILES = [[120, 50], [30]]
"""Less than all of train, so that some tracks are cold."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write planted data and a run with random vectors: none is trained, which costs nothing."""
    folder = tmp_path_factory.mktemp("shards")
    data, run = write_planted(folder / "data", train_files=TRAIN_FILES, tracks=TRACKS), folder / "run"
    run.mkdir()
    job = load_job(write_job(folder / "job.yaml", data, evaluate={"k": [5, 20], "best_metric": "ndcg@5"}))
    (run / "job.yaml").write_text(json.dumps(load_inputs(job).job.model_dump(mode="json")))
    arrays = {"customer": random_rows(CUSTOMERS, 8, 1), "track": random_rows(TRACKS, 8, 2)}
    write_vectors(run / "embeddings", data, arrays)
    return folder


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "MAX_PART_QUERIES", 40)


def rows_of(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])


@pytest.mark.parametrize("length", [0, 1, 5, 299, 300])
def test_shards_divide_rows_evenly(length: int) -> None:
    parts = [Shard(number, 7).part(length) for number in range(1, 8)]
    assert [row for part in parts for row in range(length)[part]] == list(range(length))
    sizes = {part.stop - part.start for part in parts}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("variable", "text", "number"),
    [("SLURM_ARRAY_TASK_ID", "4", 4), ("JOB_COMPLETION_INDEX", "3", 4), ("AWS_BATCH_JOB_ARRAY_INDEX", "0", 1)],
)
def test_number_of_an_array_task_is_found(
    variable: str, text: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    assert ShardOptions.of(shard="auto/4").shard == Shard(number, 4)
    monkeypatch.setenv(variable, "9")
    with pytest.raises(OptionError, match=rf"is number \d+ by {variable}=9; expected a number from 1 to 4"):
        ShardOptions.of(shard="auto/4")


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts")
def test_shards_of_recommendations_are_the_whole(workspace: Path, tmp_path: Path) -> None:
    command = ("recommend", "run", "--all", "-k", 4, "--diversity", 0.5, "--out")
    succeeded(crossfade_here(*command, tmp_path / "whole.parquet", cwd=workspace))
    whole, out = pq.read_table(tmp_path / "whole.parquet"), tmp_path / "shards"
    for number in (3, 1):
        succeeded(crossfade_here(*command, out, "--shard", f"{number}/{SHARDS}", cwd=workspace))
    rejected_here("missing are", *command, out, "--merge", cwd=workspace)
    printed = succeeded(crossfade_here(*command, out, "--shard", f"2/{SHARDS}", cwd=workspace)).stdout
    assert printed == f"400 recommendations to 100 of customer: {out}, shard 2/3\n"
    printed = succeeded(crossfade_here(*command, out, "--merge", cwd=workspace)).stdout
    assert printed == f"1,200 recommendations to 300 of customer: {out}\n"
    assert rows_of(out).equals(whole)
    assert pq.read_table(out).num_rows == whole.num_rows  # readers leave out entries and manifest
    manifest = json.loads((out / "_manifest.json").read_text())
    assert [file["path"] for file in manifest["files"]] == sorted(path.name for path in out.glob("*.parquet"))
    assert len(manifest["files"]) == 9


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts")
def test_interrupted_shard_continues_and_a_complete_one_is_skipped(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranked: list[int] = []
    rank = Selection.rank

    def interrupted(self: Selection, query_QD: Any, *more: Any) -> Any:
        ranked.append(len(query_QD))
        if len(ranked) == 2:
            raise OSError("the disk is full")
        return rank(self, query_QD, *more)

    monkeypatch.setattr(Selection, "rank", interrupted)
    shard = ("recommend", "run", "--all", "--out", tmp_path / "out", "--shard", f"2/{SHARDS}")
    assert crossfade_here(*shard, cwd=workspace).returncode == 1
    for other in (("-k", 4, *shard[2:]), (*shard[2:-1], "2/4")):
        rejected_here("holds shards of another request", "recommend", "run", *other, cwd=workspace)
    for _ in range(2):
        succeeded(crossfade_here(*shard, cwd=workspace))
    assert ranked == [40, 40, 40, 20]
    (tmp_path / "out" / "recommendations-00002-of-00003-000001.parquet").unlink()
    succeeded(crossfade_here(*shard, cwd=workspace))
    assert ranked == [40, 40, 40, 20, 40]


@pytest.mark.slow
def test_damaged_and_foreign_files_are_found_by_the_merge(workspace: Path, tmp_path: Path) -> None:
    command, out = ("recommend", "run", "--all", "--out", tmp_path / "out"), tmp_path / "out"
    rejected_here("has no shards; add", *command, "--merge", cwd=workspace)
    succeeded(crossfade_here(*command, "--shard", "1/1", cwd=workspace))
    [file] = out.glob("*.parquet")
    content = file.read_bytes()
    pq.write_table(pq.read_table(file), out / "more.parquet")
    rejected_here("has files that are of no shard", *command, "--merge", cwd=workspace)
    (out / "more.parquet").unlink()
    file.write_bytes(content[:-40] + bytes(32) + content[-8:])
    rejected_here("it was corrupted or replaced", *command, "--merge", cwd=workspace)
    file.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    rejected_here("delete it, and repeat its shard", *command, "--merge", cwd=workspace)
    file.unlink()
    succeeded(crossfade_here(*command, "--shard", "1/1", cwd=workspace))
    assert file.read_bytes() == content
    [entry] = (out / "_shards").iterdir()
    entry.write_text("{}")
    rejected_here("is no entry of a shard", *command, "--merge", cwd=workspace)
    assert not (out / "_manifest.json").exists()


@pytest.mark.slow
def test_shards_of_an_evaluation_are_the_whole_to_the_last_bit(workspace: Path, tmp_path: Path) -> None:
    ranked = ("evaluate", "run", "--segments", "--diversity", 0.5, "--max-queries", 200)
    whole = json.loads(succeeded(crossfade_here(*ranked, "--json", cwd=workspace)).stdout)
    assert whole["test"]["queries_cold"] > 0
    command = (*ranked, "--out", tmp_path)
    for number in (2, 3, 1):
        succeeded(crossfade_here(*command, "--shard", f"{number}/{SHARDS}", cwd=workspace))
    merged = json.loads(succeeded(crossfade_here(*command, "--merge", "--json", cwd=workspace)).stdout)
    assert merged == whole
    rejected_here("holds shards of another request", *command, "--merge", "--split", "valid", cwd=workspace)
    sums = tmp_path / "sums-00002-of-00003.npy"
    np.save(sums, 0 * np.load(sums))
    rejected_here("is damaged: its CRC-32 is not that of its shard", *command, "--merge", cwd=workspace)
    sums.unlink()
    rejected_here("no such file; repeat its shard", *command, "--merge", cwd=workspace)
    succeeded(crossfade_here(*command, "--shard", "2/3", cwd=workspace))
    assert json.loads(succeeded(crossfade_here(*command, "--merge", "--json", cwd=workspace)).stdout) == whole


@pytest.mark.slow
def test_shards_of_an_index_are_the_whole(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, out = ("index", "run", "--entity", "customer", "--codes", "pq", "--out"), tmp_path / "index"
    succeeded(crossfade_here(*command, tmp_path / "whole", cwd=workspace))
    found: list[int] = []
    find, write = Indexing.find_lists, VectorLists.write_to

    def counted(self: Indexing) -> VectorLists:
        found.append(1)
        return find(self)

    def interrupted(self: VectorLists, file: Any) -> None:
        monkeypatch.setattr(VectorLists, "write_to", write)
        write(self, file)
        raise OSError("the disk is full")

    monkeypatch.setattr(Indexing, "find_lists", counted)
    monkeypatch.setattr(VectorLists, "write_to", interrupted)
    assert crossfade_here(*command, out, "--shard", "3/3", cwd=workspace).returncode == 1
    rejected_here("missing are", *command, out, "--merge", cwd=workspace)
    for number in (3, 1, 2, 2):
        printed = succeeded(crossfade_here(*command, out, "--shard", f"{number}/3", cwd=workspace)).stdout
        assert printed == f"100 vectors: {out}, shard {number}/3\n"
    assert found == [1]
    rejected_here("holds shards of another request", *command, out, "--merge", "--columns-per-byte", 4, cwd=workspace)
    part = out / "_shards" / "00002-of-00003.faiss"
    content = part.read_bytes()
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    rejected_here("is damaged: its CRC-32 is not the one in its shard", *command, out, "--merge", cwd=workspace)
    part.unlink()
    (out / "_shards" / "lists.npz").unlink()
    succeeded(crossfade_here(*command, out, "--shard", "2/3", cwd=workspace))
    assert part.read_bytes() == content  # the sample, and so the lists, are the same
    succeeded(crossfade_here(*command, out, "--merge", cwd=workspace))
    assert sorted(path.name for path in out.iterdir()) == ["card.json", "index.faiss", "rows.parquet"]
    assert (out / "index.faiss").read_bytes() == (tmp_path / "whole" / "index.faiss").read_bytes()
    merged, whole = (json.loads((folder / "card.json").read_text()) for folder in (out, tmp_path / "whole"))
    for name in ("recall_at_10", "recall_at_100"):
        assert merged["measured"][name] == whole["measured"][name]
    similar = ("similar", "run", "c010", "--entity", "customer", "--index")
    results = [crossfade_here(*similar, folder, cwd=workspace) for folder in (out, tmp_path / "whole")]
    assert succeeded(results[0]).stdout == succeeded(results[1]).stdout


@pytest.mark.slow
def test_shards_are_written_to_s3(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, ranked = ("recommend", "run", "--all", "--out"), ("evaluate", "run", "--json")
    indexed = ("index", "run", "--out")
    succeeded(crossfade_here(*indexed, tmp_path / "index", cwd=workspace))
    succeeded(crossfade_here(*command, tmp_path / "whole.parquet", cwd=workspace))
    whole = json.loads(succeeded(crossfade_here(*ranked, cwd=workspace)).stdout)
    with running_object_store(tmp_path) as server:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        recs, sums, index = server.uri("recs"), server.uri("sums"), server.uri("index")
        for last in (("--shard", "1/2"), ("--shard", "2/2"), ("--merge",)):
            succeeded(crossfade_here(*command, recs, *last, cwd=workspace))
            succeeded(crossfade_here(*indexed, index, *last, cwd=workspace))
            printed = succeeded(crossfade_here(*ranked, "--out", sums, *last, cwd=workspace)).stdout
        assert json.loads(printed) == whole
        assert Folder(index).names() == ["card.json", "index.faiss", "rows.parquet"]
        merged = Folder(index).read("index.faiss")
        found = pq.read_table(recs.removeprefix("s3://"), filesystem=server.client())
    assert found.equals(pq.read_table(tmp_path / "whole.parquet"))
    assert merged == (tmp_path / "index" / "index.faiss").read_bytes()


def test_options_that_contradict_shards_are_rejected(tmp_path: Path) -> None:
    some = ("recommend", "run", "--out", tmp_path, "--shard", "1/2")
    rejected_here("divides many customers", *some, "--customer", "2")
    rejected_here("is for a file; to repeat shards, delete their folder", *some, "--all", "--overwrite")
    rejected_here("was given, and so was", *some, "--all", "--merge")
    rejected_here("2: expected I/N, such as 1/16, or auto/N", *some[:-1], "2", "--all")
    rejected_here("3/2: expected a number from 1 to 2", *some[:-1], "3/2", "--all")
    rejected_here("auto/2: is for a task of an array, but none of", *some[:-1], "auto/2", "--all")
    rejected_here(
        "s3://music/recs.parquet: expected a local path, or",
        "recommend",
        "run",
        "--all",
        "--out",
        "s3://music/recs.parquet",
    )
    of_evaluation = ("evaluate", "run", "--shard", "1/2")
    rejected_here("needs the folder of all shards", *of_evaluation)
    rejected_here("is the folder of shards", "evaluate", "run", "--out", tmp_path)
    rejected_here("is not divided into shards", *of_evaluation, "--out", tmp_path, "--compare", "other")
