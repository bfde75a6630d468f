"""The index command, and recommendations and similar items by an index: compared with exact ones, and rejected."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from cluster_data import CUSTOMERS, GENRES, TRACKS, write_job, write_planted
from command_here import crossfade_here, rejected_here
from running_command import succeeded
from written_runs import ArrayVectors

from crossfade.base.arrays import FloatArray
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.recommend import index_search
from crossfade.trainer.recommend.faiss_lists import ListOptions, VectorLists
from crossfade.trainer.recommend.index_build import EarlierIndex, build_index
from crossfade.trainer.recommend.options import IndexOptions
from crossfade.trainer.recommend.trained_model import TrainedModel, with_trained_model
from crossfade.trainer.runs.options import ModelSource

pytestmark = pytest.mark.slow

FILES = ["card.json", "index.faiss", "rows.parquet"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on planted data; one track has no plays. Index it, once scanning all lists and once only the nearest."""
    folder = tmp_path_factory.mktemp("index")
    write_job(
        folder / "job.yaml",
        write_planted(folder / "data", named=True, held_out=False, tracks=TRACKS + 1),
        train={"epochs": 4},
        checkpoint={"interval_steps": 40, "keep_latest": 2},
    )
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=folder))
    assert len(list((folder / "run" / "checkpoints").glob("step-*"))) == 2
    for name, recall in (("all", 1), ("nearest", 0.01)):
        succeeded(crossfade_here("index", "run", "--out", name, "--recall", recall, cwd=folder))
    return folder


@pytest.fixture
def run(workspace: Path, tmp_path: Path) -> Path:
    """Copy the run, so that a test may change it."""
    return Path(shutil.copytree(workspace / "run", tmp_path / "run"))


def card_of(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "card.json").read_text())
    return card


def output(*arguments: object, cwd: Path) -> str:
    return succeeded(crossfade_here(*arguments, cwd=cwd)).stdout


def tracks(*arguments: object, cwd: Path) -> list[list[int]]:
    results = json.loads(output("recommend", *arguments, "--json", cwd=cwd))
    return [[item["track"] for item in found["recommendations"]] for found in results]


def test_folder_has_card_and_rows(workspace: Path) -> None:
    assert sorted(path.name for path in (workspace / "all").iterdir()) == FILES
    card = card_of(workspace / "all")
    assert (card["entity"], card["metric"], card["rows"], card["dim"]) == ("track", "cosine", TRACKS, 8)
    assert (card["model"]["job"], card["model"]["uri"]) == ("planted", "run/embeddings")
    assert (card["measured"]["query_entity"], card["measured"]["queries"]) == ("customer", CUSTOMERS)
    assert (card["measured"]["recall_at_10"], card["measured"]["recall_at_100"]) == (1.0, 1.0)
    assert card["files"]["index.faiss"]["bytes"] == (workspace / "all" / "index.faiss").stat().st_size
    rows = pq.read_table(workspace / "all" / "rows.parquet").to_pylist()
    assert rows == [{"row": row, "id": 5000 + row, "name": f"Genre {row % GENRES} Song {row}"} for row in range(TRACKS)]


def test_index_keeps_its_lists_until_searches_would_scan_more(workspace: Path, tmp_path: Path) -> None:
    def centroids(name: str) -> FloatArray:
        index = VectorLists.read(tmp_path / name / "index.faiss", ListOptions("cosine"))._index
        found: FloatArray = index.quantizer.reconstruct_n(0, index.nlist)
        return found

    def build(model: TrainedModel) -> None:
        draw = np.random.default_rng(4)
        tables = {table.name: np.arange(table.rows) for table in model.spec.vectors}
        arrays = {name: model.vectors.vectors(name, rows_N) for name, rows_N in tables.items()}
        before = replace(model, vectors=ArrayVectors(arrays))
        cards = [build_index(before, IndexOptions(out=str(tmp_path / "before"), recall=0.9), NullReporter())]
        moved_RD = arrays["track"].copy()
        moved_RD[::2] += 0.05 * draw.standard_normal(moved_RD[::2].shape)
        other = {name: draw.standard_normal(array.shape).astype(np.float32) for name, array in arrays.items()}
        for name, changed in (("moved", {**arrays, "track": moved_RD}), ("other", other)):
            options = IndexOptions(out=str(tmp_path / name), recall=0.9)
            now = replace(model, vectors=ArrayVectors(changed))
            cards.append(build_index(now, options, NullReporter(), EarlierIndex(before, tmp_path / "before")))
            assert cards[-1].measured.recall_at_100 >= 0.9
            rows_N = np.arange(TRACKS)
            lists = VectorLists.read(tmp_path / name / "index.faiss", ListOptions("cosine"))
            rows_N1, score_N1 = lists.search(changed["track"][:TRACKS], 1, lists.lists)
            np.testing.assert_array_equal(rows_N1[:, 0], rows_N)
            np.testing.assert_allclose(score_N1, 1, rtol=1e-6)
        assert cards[1].index == cards[0].index
        assert cards[2].index.probes > cards[0].index.probes

    with_trained_model(ModelSource.of(source=str(workspace / "run")), print, build)
    np.testing.assert_array_equal(centroids("moved"), centroids("before"))
    assert (centroids("other") != centroids("before")).all()


def test_fewer_lists_are_scanned_for_less_recall(workspace: Path) -> None:
    every, nearest = card_of(workspace / "all"), card_of(workspace / "nearest")
    assert nearest["index"]["probes"] == 1
    assert every["index"]["probes"] == every["index"]["lists"] == 12
    assert nearest["measured"]["recall_at_100"] < 0.95


def test_similar_tracks_are_those_of_exact_search(workspace: Path, tmp_path: Path) -> None:
    songs = "".join(f"{5000 + row},a{row % GENRES}\n" for row in range(TRACKS))
    (tmp_path / "songs.csv").write_text("track,artist\n" + songs)
    limited = ("--max-per", "artist=2", "--metadata", tmp_path / "songs.csv")
    for options in (("--where", "count > 0"), ("-k", 20, "--where", "count > 20"), (*limited, "--where", "count > 0")):
        command = ("similar", "run", "5000", "5007", "genre 3 song 13", *options)
        assert output(*command, "--index", "all", cwd=workspace) == output(*command, cwd=workspace)


@pytest.mark.parametrize("index", [(), ("--index", "all")], ids=["exact", "index"])
def test_untrained_track_is_not_similar(workspace: Path, index: tuple[str, ...]) -> None:
    printed = output("similar", "run", "5000", "-k", TRACKS + 1, *index, cwd=workspace)
    assert len(printed.splitlines()) == TRACKS
    assert f"Song {TRACKS}\n" not in printed


def test_recommendations_are_those_of_exact_search(workspace: Path) -> None:
    for options in (("-k", 6), ("-k", 30, "--exclude"), ("-k", 5, "--where", "id > 5100")):
        customers = ("run", "--customer", "c010", "c003", "c200", *options)
        assert tracks(*customers, "--index", "all", cwd=workspace) == tracks(*customers, cwd=workspace)
    new = ("run", "--history", "5008", "5013", "-k", 8)
    assert tracks(*new, "--index", "all", cwd=workspace) == tracks(*new, cwd=workspace)


def test_search_deepens_until_there_are_enough(workspace: Path) -> None:
    customer = ("run", "--customer", "c010", "c003", "-k", TRACKS)
    found = tracks(*customer, "--index", "nearest", cwd=workspace)
    assert found == tracks(*customer, cwd=workspace)
    assert len(found[0]) > TRACKS - 30
    rare = ("run", "--customer", "c010", "-k", 3, "--where", "id IN (5003, 5011, 5199)", "--exclude")
    assert tracks(*rare, "--index", "nearest", cwd=workspace) == tracks(*rare, cwd=workspace)


def test_filter_scans_more_lists(workspace: Path) -> None:
    customers = ("run", "--customer", *(f"c{row:03d}" for row in range(60)), "-k", 3, "--where", "id % 20 = 3")
    exact, found = tracks(*customers, cwd=workspace), tracks(*customers, "--index", "nearest", cwd=workspace)
    # A twentieth of the tracks, so all of twelve lists: the nearest one would have three of them for some customers.
    assert found == exact


def test_moved_run_and_its_checkpoint_use_the_index(workspace: Path, run: Path) -> None:
    expected = output("similar", "run", "5007", cwd=workspace)
    for source in (run, run / "checkpoints"):
        assert output("similar", source, "5007", "--index", "all", cwd=workspace) == expected


def test_index_of_another_entity_and_metric_is_searched(workspace: Path, tmp_path: Path) -> None:
    options = ("--entity", "customer", "--codes", "sq8", "--recall", 1)
    result = crossfade_here("index", "run", "--out", tmp_path / "customers", *options, "--json", cwd=workspace)
    card = json.loads(succeeded(result).stdout)
    assert card == card_of(tmp_path / "customers")
    assert card["measured"]["query_entity"] == "customer"
    # 8 bits per column do not give all neighbors, with whatever number of lists.
    assert 0.9 < card["measured"]["recall_at_100"] < 1
    assert (
        f"recall@100 is {card['measured']['recall_at_100']:.4f} with all {card['index']['lists']} lists"
        in result.stderr
    )
    printed = output(
        "similar", "run", "c010", "--entity", "customer", "-k", 5, "--index", tmp_path / "customers", cwd=workspace
    )
    assert sum(int(line.split()[1][1:]) % GENRES == 0 for line in printed.splitlines()[1:]) >= 4
    euclidean = json.loads(
        output("index", "run", "--out", tmp_path / "distances", "--metric", "euclidean", "--json", cwd=workspace)
    )
    assert (euclidean["metric"], euclidean["measured"]["query_entity"]) == ("euclidean", "track")


def test_product_quantization_has_a_recall_that_more_lists_do_not_raise(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("index", "run", "--codes", "pq", "--metric", "cosine", "--out", tmp_path / "pq")
    rejected_here("pq: needs 256 vectors, but", *command, cwd=workspace)
    monkeypatch.setattr(index_search, "_RERANKED", 1)
    monkeypatch.setattr(index_search, "_MORE_RERANKED", 0)
    of_customers = (*command, "--entity", "customer", "--columns-per-byte", 4, "--recall", 1, "--json")
    result = crossfade_here(*of_customers, cwd=workspace)
    card = json.loads(succeeded(result).stdout)
    assert card == card_of(tmp_path / "pq")
    index, measured = card["index"], card["measured"]
    assert (index["codes"], index["columns"]) == ("pq", 8)
    assert 0.5 < measured["recall_at_100"] < 1
    assert index["probes"] < index["lists"]
    assert f"with {index['probes']} of {index['lists']} lists; --codes flat is exact" in result.stderr
    # Two bytes and the row, beside the lists and the values of a byte.
    assert card["files"]["index.faiss"]["bytes"] - CUSTOMERS * 10 < 2 * 4 * 8 * (index["lists"] + 256)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_product_quantization_finds_what_the_vectors_rank(workspace: Path, tmp_path: Path, metric: str) -> None:
    options = ("--entity", "customer", "--codes", "pq", "--columns-per-byte", 4, "--metric", metric, "--recall", 1)
    card = json.loads(output("index", "run", *options, "--out", tmp_path / "pq", "--json", cwd=workspace))
    assert card["measured"]["recall_at_10"] > 0.98
    if metric == "cosine":
        similar = ("similar", "run", "c010", "--entity", "customer", "-k", 20)
        exact = output(*similar, cwd=workspace)
        assert output(*similar, "--index", tmp_path / "pq", cwd=workspace) == exact


def test_corrupt_checkpoint_is_skipped(run: Path, workspace: Path, tmp_path: Path) -> None:
    older, newest = sorted((run / "checkpoints").glob("step-*"))
    [file] = (newest / "track").glob("weights.*")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    result = crossfade_here("index", run / "checkpoints", "--out", tmp_path / "index", cwd=workspace)
    assert f"skipped a checkpoint: {file}" in succeeded(result).stderr
    assert card_of(tmp_path / "index")["model"]["uri"] == str(older)
    rejected_here("was built from other vectors", "similar", run, "5007", "--index", tmp_path / "index", cwd=workspace)


def test_forgotten_customer_is_not_indexed(workspace: Path, run: Path, tmp_path: Path) -> None:
    data = shutil.copytree(workspace / "data", tmp_path / "data")
    command = ("index", run, "--data", data, "--entity", "customer", "--out", tmp_path / "index")
    output(*command, cwd=workspace)
    (tmp_path / "ids.txt").write_text("c010\n")
    output("forget", data, "--ids", tmp_path / "ids.txt", cwd=workspace)
    search = ("similar", run, "c003", "--data", data, "--entity", "customer", "--index", tmp_path / "index")
    rejected_here("was built with another dataset than", *search, cwd=workspace)
    output(*command, "--overwrite", cwd=workspace)
    ids = pq.read_table(tmp_path / "index" / "rows.parquet").column("id").to_pylist()
    assert ids == [f"c{row:03d}" for row in range(CUSTOMERS) if row != 10]
    assert "c010" not in output(*search, "-k", CUSTOMERS, cwd=workspace)


def test_failed_build_keeps_the_previous_index(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(workspace / "nearest", tmp_path / "index"))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    command = ("index", "run", "--overwrite", "--out")
    write = VectorLists.write

    def interrupted(self: VectorLists, path: Path) -> None:
        write(self, path)
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(VectorLists, "write", interrupted)
        for name in ("index", "new"):
            assert crossfade_here(*command, tmp_path / name, cwd=workspace).returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    output(*command, out, cwd=workspace)
    assert card_of(out)["index"]["probes"] > 1


def test_invalid_options_are_rejected(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("index", "run", "--out")
    rejected_here(
        "2: expected a number above 0 and at most 1", *command, tmp_path / "new", "--recall", 2, cwd=workspace
    )
    columns = ("--columns-per-byte", 4)
    rejected_here("4: is for product quantization", *command, "new", *columns, cwd=workspace)
    rejected_here("expected a local path", *command, "s3://music/index", cwd=workspace)
    rejected_here("already exists; choose another, or replace an index with", *command, "all", cwd=workspace)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    rejected_here("which is not part of an index and which", *command, tmp_path / "other", "--overwrite", cwd=workspace)
    assert (tmp_path / "other" / "notes.txt").exists()
    monkeypatch.setitem(sys.modules, "faiss", None)
    rejected_here(
        "crossfade index needs the package 'faiss-cpu', which is not", *command, tmp_path / "new", cwd=workspace
    )
    assert not (tmp_path / "new").exists()


def test_index_that_does_not_fit_is_rejected(workspace: Path, run: Path, tmp_path: Path) -> None:
    similar = ("similar", "run", "5007", "--index")
    rejected_here("has no card.json", *similar, "data", cwd=workspace)
    output("index", "run", "--out", tmp_path / "dot", "--metric", "dot", cwd=workspace)
    rejected_here("searches by dot, but the ranking is by cosine", *similar, tmp_path / "dot", cwd=workspace)
    rejected_here(
        "has the vectors of", "similar", "run", "c010", "--entity", "customer", "--index", "all", cwd=workspace
    )
    older, _ = sorted((run / "checkpoints").glob("step-*"))
    rejected_here("was built from other vectors", "similar", older, "5007", "--index", "all", cwd=workspace)
    broken = Path(shutil.copytree(workspace / "all", tmp_path / "broken"))
    for name in ("index.faiss", "rows.parquet"):
        content = (broken / name).read_bytes()
        (broken / name).write_bytes(content[:-1])
        rejected_here("bytes, but card.json lists", *similar, broken, cwd=workspace)
        for place in (0, len(content) // 2, len(content) - 1):
            damaged = bytearray(content)
            damaged[place] ^= 1
            (broken / name).write_bytes(damaged)
            rejected_here("is damaged: its CRC-32 is not the one in card.json", *similar, broken, cwd=workspace)
        (broken / name).unlink()
        rejected_here("no such file, but card.json lists it", *similar, broken, cwd=workspace)
        (broken / name).write_bytes(content)
    succeeded(crossfade_here(*similar, broken, cwd=workspace))
    (broken / "card.json").write_text(json.dumps(card_of(broken) | {"version": 1}))
    rejected_here("is not the card of an index: version", *similar, broken, cwd=workspace)
