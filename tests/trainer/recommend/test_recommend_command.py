"""The recommend command: to named customers and to all, from embeddings and checkpoints, resumed, and rejected."""

import csv
import json
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import make_interactions, write_data_set
from cluster_data import CUSTOMERS, GENRES, TRACKS, planted_splits, train_rows
from command_here import crossfade_here, rejected_here
from running_command import succeeded
from written_runs import write_run

from crossfade.trainer.recommend import bulk

pytestmark = pytest.mark.slow

Recommended = dict[str, list[int]]
"""The IDs of the tracks recommended to each customer."""


def recommend(source: object, *arguments: object, cwd: Path) -> list[dict[str, Any]]:
    """Return what the command prints as JSON."""
    result: list[dict[str, Any]] = json.loads(
        succeeded(crossfade_here("recommend", source, *arguments, "--json", cwd=cwd)).stdout
    )
    return result


def tracks(result: list[dict[str, Any]]) -> Recommended:
    return {found["customer"]: [item["track"] for item in found["recommendations"]] for found in result}


def played() -> dict[str, set[int]]:
    customer_N, track_N = (column[: train_rows()] for column in planted_splits()["train"])
    pairs: dict[str, set[int]] = {}
    for customer, track in zip(customer_N.tolist(), track_N.tolist(), strict=True):
        pairs.setdefault(f"c{customer:03d}", set()).add(5000 + track)
    return pairs


def test_recommended_tracks_are_new_and_of_the_customers_genre(workspace: Path) -> None:
    found = recommend("run", "--customer", "c010", "c003", "c004", "-k", 6, cwd=workspace)
    assert [result["customer"] for result in found] == ["c010", "c003", "c004"]
    for result in found:
        customer = result["customer"]
        ids = [item["track"] for item in result["recommendations"]]
        scores = [item["score"] for item in result["recommendations"]]
        assert len(set(ids)) == 6
        assert not set(ids) & played()[customer]
        assert scores == sorted(scores, reverse=True)
        assert all(-1 <= score <= 1 for score in scores)
        assert sum((track - 5000) % GENRES == int(customer[1:]) % GENRES for track in ids) >= 5
        assert {item["track"] for item in result["history"]} <= played()[customer]
        assert all(
            item["name"] == f"Genre {(item['track'] - 5000) % GENRES} Song {item['track'] - 5000}"
            for item in result["recommendations"]
        )


def test_text_shows_recommendations_and_the_history(workspace: Path) -> None:
    printed = succeeded(crossfade_here("recommend", "run", "--customer", "c010", "-k", 3, cwd=workspace)).stdout
    title, *lines, history = printed.splitlines()
    assert title == "customer c010"
    assert history.startswith("  history, by weight: Genre 0 Song")
    assert len(lines) == 3
    assert all(line.count("Genre 0 Song") >= 1 for line in lines)


def genres_of(found: Recommended) -> float:
    return float(np.mean([len({(track - 5000) % GENRES for track in ids}) for ids in found.values()]))


def test_re_ranked_lists_are_diverse_keep_filters_and_are_the_same_in_a_file(workspace: Path, tmp_path: Path) -> None:
    rows = "".join(f"{5000 + row},g{row % GENRES}\n" for row in range(TRACKS))
    (tmp_path / "songs.csv").write_text("track,genre\n" + rows)
    (tmp_path / "allowed.txt").write_text("".join(f"{5000 + row}\n" for row in range(0, TRACKS, 3)))
    (tmp_path / "denied.csv").write_text("track,why\n5030,x\n5060,x\n")
    filters = ("--where", "id > 5020", "--allow", tmp_path / "allowed.txt", "--deny", tmp_path / "denied.csv")
    options = (*filters, "--max-per", "genre=3", "--metadata", tmp_path / "songs.csv", "-k", 6)
    customers = ("--customer", *(f"c{number:03d}" for number in range(20)))
    diverse = (*options, "--diversity", 0.9)
    found, out = tracks(recommend("run", *customers, *diverse, cwd=workspace)), tmp_path / "recs.parquet"
    assert genres_of(found) > 1.3 * genres_of(tracks(recommend("run", *customers, *options, cwd=workspace)))
    for customer, ids in found.items():
        assert len(set(ids)) == 6
        assert max(Counter((track - 5000) % GENRES for track in ids).values()) <= 3
        assert all(track > 5020 and (track - 5000) % 3 == 0 for track in ids)
        assert not set(ids) & (played()[customer] | {5030, 5060})
    succeeded(crossfade_here("recommend", "run", "--all", *diverse, "--out", out, cwd=workspace))
    everyone = read_file(out)
    assert {customer: everyone[customer] for customer in found} == found


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_written_format_is_that_of_the_name(tmp_path: Path, ending: str) -> None:
    run = write_run(tmp_path / "written").path
    command = ("recommend", run, "--exclude", "--all", "-k", "2", "--out")
    succeeded(crossfade_here(*command, tmp_path / "expected.parquet", cwd=tmp_path))
    expected = pq.read_table(tmp_path / "expected.parquet").to_pylist()
    out = tmp_path / f"recs{ending}"
    succeeded(crossfade_here(*command, out, cwd=tmp_path))
    if ending == ".csv":
        with out.open(encoding="utf-8", newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
        assert list(rows[0]) == list(expected[0])
        expected = [{key: "" if value is None else str(value) for key, value in row.items()} for row in expected]
        scores = [
            (float(row.pop("score")), float(wanted.pop("score"))) for row, wanted in zip(rows, expected, strict=True)
        ]
        np.testing.assert_array_equal(*np.array(scores, np.float32).T)
    elif ending == ".jsonl":
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n")[:-1]]
    else:
        rows = pq.read_table(out).to_pylist()
    assert rows == expected


def read_file(path: Path) -> Recommended:
    table = pq.read_table(path)
    assert table.column_names == ["customer", "rank", "track", "score", "track_name"]
    found: Recommended = {}
    for row in table.to_pylist():
        found.setdefault(row["customer"], []).append(row["track"])
        assert row["rank"] == len(found[row["customer"]])
    return found


def test_file_has_the_same_recommendations(workspace: Path, tmp_path: Path) -> None:
    out, ids = tmp_path / "recs.parquet", tmp_path / "ids.csv"
    printed = succeeded(crossfade_here("recommend", "run", "--all", "-k", 4, "--out", out, cwd=workspace)).stdout
    assert printed == f"{4 * CUSTOMERS:,} recommendations to {CUSTOMERS} of customer: {out}\n"
    everyone = read_file(out)
    assert list(everyone) == [f"c{row:03d}" for row in range(CUSTOMERS)]
    some = ["c250", "c007", "c010"]
    assert tracks(recommend("run", "--customer", *some, "-k", 4, cwd=workspace)) == {
        name: everyone[name] for name in some
    }
    ids.write_text("customer\n" + "\n".join([*some, "stranger"]))
    command = ("recommend", "run", "--customers", ids, "-k", 4, "--out", out, "--overwrite")
    result = crossfade_here(*command, cwd=workspace)
    left_out = "crossfade: 1 of 4 of customer have no trained vector, such as stranger; left out\n"
    assert succeeded(result).stderr == left_out
    assert read_file(out) == {name: everyone[name] for name in sorted(some)}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def most_popular(count: int) -> list[int]:
    counts = Counter(track for of_customer in played().values() for track in of_customer)
    return sorted(counts, key=lambda track: (-counts[track], track))[:count]


def test_unknown_customers_are_left_out_or_get_popular_tracks(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    customers = ("run", "--customer", "x", "c010", "y", "-k", 4, "--on-unknown")
    some = ("--customer", "c010", "-k", 4)
    result = crossfade_here("recommend", *customers, "skip", "--json", cwd=workspace)
    assert json.loads(succeeded(result).stdout) == recommend("run", *some, cwd=workspace)
    assert result.stderr == "crossfade: 2 of 3 of customer have no trained vector, such as x, y; left out\n"
    assert crossfade_here("recommend", *customers[:3], *customers[-3:], "skip", cwd=workspace).stdout == ""
    found = recommend(*customers, "popular", cwd=workspace)
    assert [(each["customer"], each["is_fallback"], each["history"] == []) for each in found] == [
        ("x", True, True),
        ("c010", False, False),
        ("y", True, True),
    ]
    [known] = recommend("run", *some, cwd=workspace)
    expected = {"c010": tracks([known])["c010"], **dict.fromkeys("xy", most_popular(4))}
    assert tracks(found) == expected
    printed = succeeded(crossfade_here("recommend", *customers, "popular", cwd=workspace)).stdout.splitlines()
    assert printed[0] == "customer x (unknown or untrained: popular track)"
    assert "customer c010" in printed
    ids, out = tmp_path / "ids.csv", tmp_path / "recs.parquet"
    ids.write_text("customer\n" + "\n".join(customers[2:5]))
    command = ("recommend", "run", "--customers", ids, "-k", 4, "--on-unknown", "popular", "--out")
    monkeypatch.setattr(bulk, "MAX_PART_QUERIES", 2)
    succeeded(crossfade_here(*command, out, cwd=workspace))
    rows = pq.read_table(out).to_pylist()
    assert [(row["customer"], row["track"]) for row in rows] == [
        (customer, track) for customer in ("x", "y", "c010") for track in expected[customer]
    ]
    assert [row["is_fallback"] for row in rows] == 8 * [True] + 4 * [False]


def test_new_customer_gets_recommendations_by_history(workspace: Path, tmp_path: Path) -> None:
    [found] = recommend("run", "--history", "genre 3 song 8", "5013", "-k", 8, cwd=workspace)
    assert found["customer"] is None
    assert [item["track"] for item in found["history"]] == [5008, 5013]
    ids = [item["track"] for item in found["recommendations"]]
    assert not {5008, 5013} & set(ids)
    assert sum((track - 5000) % GENRES == 3 for track in ids) >= 7
    [again] = recommend("run", "--history", "5008", "5013", "-k", 8, "--exclude", cwd=workspace)
    assert {5008, 5013} <= {item["track"] for item in again["recommendations"]}


INVALID = {
    "expected a number from 0 to 1": "--customer c010 --diversity 1.5",
    "FILE.parquet": "--all",
    "x.csv: has no effect without": "--customer c010 --metadata x.csv",
    "expected one of": "",
    "was given, and so was": "--customer c010 --all",
    "genre: expected COLUMN=N with N of 1 or more, such as artist=2": "--customer c010 --max-per genre",
    "there is no customer with the ID or name 'c999": "--customer c999",
    "the model has no customer with these": "--customer c999 c998",
    "there is no customer with the ID or name 'x": "--customers some.txt --on-unknown error --out new.parquet",
    "skip: is for customers by ID, and a history has none": "--history 5008 --on-unknown skip",
    "the filters leave no track: relax": "--customer c010 --where 'count > 1e9'",
    "IDs is one of track": "--customer c010 --allow ids.txt",
    "IDs has a trained vector": "--customers ids.txt --out new.parquet",
    "is a folder; name a file in it": "--all --out folder --overwrite",
    "already exists; choose another, or replace it with": "--all --out existing.parquet",
    "expected a name that ends in .parquet, .csv, .jsonl": "--all --out recs.csv.gz",
}


def test_invalid_options_are_rejected(workspace: Path) -> None:
    (workspace / "ids.txt").write_text("x\ny\n")
    (workspace / "some.txt").write_text("x\nc010\n")
    (workspace / "existing.parquet").touch()
    (workspace / "folder").mkdir()
    for cause, words in INVALID.items():
        rejected_here(cause, "recommend", "run", *shlex.split(words), cwd=workspace)
    assert (workspace / "existing.parquet").read_bytes() == b""
    assert (workspace / "folder").is_dir()


def test_model_or_dataset_that_is_not_there_is_rejected(workspace: Path, run: Path, tmp_path: Path) -> None:
    customer = ("--customer", "c010")
    rejected_here("no such folder, or an empty one", "recommend", "nowhere", *customer, cwd=workspace)
    for name, customers in (("smaller", CUSTOMERS - 1), ("other", CUSTOMERS)):
        train = {"train": [[make_interactions([0], [0])]]}
        write_data_set(tmp_path / name, train, queries=customers, items=TRACKS + 1)
        command = ("recommend", run, *customer, "--data", tmp_path / name)
        rejected_here("it was prepared again, or is another dataset", *command, cwd=workspace)
