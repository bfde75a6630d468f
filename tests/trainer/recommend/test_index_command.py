"""The index command, and recommendations and similar items by an index: compared with exact ones, and rejected."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster_data import CUSTOMERS, GENRES, TRACKS
from command_here import crossfade_here, rejected_here
from running_command import succeeded

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _indexes(workspace: Path) -> None:
    """Index the model, once scanning all lists and once only the nearest."""
    for name, recall in (("all", 1), ("nearest", 0.01)):
        succeeded(crossfade_here("index", "run", "--out", name, "--recall", recall, cwd=workspace))


def card_of(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "card.json").read_text())
    return card


def output(*arguments: object, cwd: Path) -> str:
    return succeeded(crossfade_here(*arguments, cwd=cwd)).stdout


def tracks(*arguments: object, cwd: Path) -> list[list[int]]:
    results = json.loads(output("recommend", *arguments, "--json", cwd=cwd))
    return [[item["track"] for item in found["recommendations"]] for found in results]


def test_card_says_what_was_indexed_and_how_well_it_searches(workspace: Path) -> None:
    card, nearest = card_of(workspace / "all"), card_of(workspace / "nearest")
    assert (card["entity"], card["metric"], card["rows"], card["dim"]) == ("track", "cosine", TRACKS, 8)
    assert card["model"]["uri"] == "run/embeddings"
    measured = {"query_entity": "customer", "queries": CUSTOMERS, "recall_at_100": 1.0}
    assert (card["measured"], card["probes"], card["lists"]) == (measured, 12, 12)
    assert nearest["probes"] == 1
    assert nearest["measured"]["recall_at_100"] < 0.95


def test_similar_tracks_are_those_of_exact_search(workspace: Path, tmp_path: Path) -> None:
    songs = "".join(f"{5000 + row},a{row % GENRES}\n" for row in range(TRACKS))
    (tmp_path / "songs.csv").write_text("track,artist\n" + songs)
    limited = ("--max-per", "artist=2", "--metadata", tmp_path / "songs.csv")
    for options in (("--where", "count > 0"), ("-k", 20, "--where", "count > 20"), (*limited, "--where", "count > 0")):
        command = ("similar", "run", "5000", "5007", "genre 3 song 13", *options)
        assert output(*command, "--index", "all", cwd=workspace) == output(*command, cwd=workspace)


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


def test_moved_run_and_its_checkpoint_use_the_index(workspace: Path, run: Path) -> None:
    expected = output("similar", "run", "5007", cwd=workspace)
    for source in (run, run / "checkpoints"):
        assert output("similar", source, "5007", "--index", "all", cwd=workspace) == expected


def test_index_of_another_entity_and_metric_is_searched(workspace: Path, tmp_path: Path) -> None:
    options = ("--entity", "customer", "--metric", "euclidean", "--out", tmp_path / "distances", "--json")
    card = json.loads(output("index", "run", *options, cwd=workspace))
    assert card == card_of(tmp_path / "distances")
    assert (card["metric"], card["measured"]["query_entity"]) == ("euclidean", "customer")
    output("index", "run", "--entity", "customer", "--recall", 1, "--out", tmp_path / "customers", cwd=workspace)
    similar = ("similar", "run", "c010", "--entity", "customer", "-k", 5)
    expected = output(*similar, cwd=workspace)
    assert output(*similar, "--index", tmp_path / "customers", cwd=workspace) == expected


def test_forgotten_customer_is_not_indexed(workspace: Path, run: Path, tmp_path: Path) -> None:
    data = shutil.copytree(workspace / "data", tmp_path / "data")
    command = ("index", run, "--data", data, "--entity", "customer", "--out", tmp_path / "index")
    output(*command, cwd=workspace)
    (tmp_path / "ids.txt").write_text("c010\n")
    output("forget", data, "--ids", tmp_path / "ids.txt", cwd=workspace)
    search = ("similar", run, "c003", "--data", data, "--entity", "customer", "--index", tmp_path / "index")
    rejected_here("was built with another dataset than", *search, cwd=workspace)
    output(*command, "--overwrite", cwd=workspace)
    assert card_of(tmp_path / "index")["rows"] == CUSTOMERS - 1
    assert "c010" not in output(*search, "-k", CUSTOMERS, cwd=workspace)


def test_invalid_options_are_rejected(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("index", "run", "--out")
    rejected_here(
        "2: expected a number above 0 and at most 1", *command, tmp_path / "new", "--recall", 2, cwd=workspace
    )
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
    damped = ("recommend", "run", "--customer", "c010", "--popularity-damping", 0.5)
    rejected_here("ranks without --popularity-damping", *damped, "--index", "all", cwd=workspace)
    older, _ = sorted((run / "checkpoints").glob("step-*"))
    rejected_here("was built from other vectors", "similar", older, "5007", "--index", "all", cwd=workspace)
    broken = Path(shutil.copytree(workspace / "all", tmp_path / "broken"))
    content = bytearray((broken / "index.faiss").read_bytes())
    content[len(content) // 2] ^= 1
    (broken / "index.faiss").write_bytes(content)
    rejected_here("is damaged: its CRC-32 is not the one in card.json", *similar, broken, cwd=workspace)
    (broken / "index.faiss").unlink()
    rejected_here("no such file, but card.json lists it", *similar, broken, cwd=workspace)
    (broken / "card.json").write_text(json.dumps(card_of(broken) | {"version": 3}))
    rejected_here("is not the card of an index: version", *similar, broken, cwd=workspace)
