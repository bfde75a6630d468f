"""A model of a second day recommends nothing that was heard on the first.

What counts as known is tested by ``tests/trainer/prepare/test_earlier.py``.
"""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cluster_data import CUSTOMERS, planted_plays, write_job
from command_here import crossfade_here
from running_command import succeeded

pytestmark = pytest.mark.slow

PLAYS_A_DAY = 14
Known = dict[str, set[int]]


def write_day(workspace: Path, day: int) -> None:
    """Write what customers play on ``day``: other tracks each day, but one in three plays a track of day 1 again."""
    tracks_CP = planted_plays(2 * PLAYS_A_DAY)
    plays = tracks_CP[:, (day - 1) * PLAYS_A_DAY : day * PLAYS_A_DAY]
    lines = [f"c{customer:03d},{track}" for customer, row in enumerate(plays) for track in row]
    if day == 2:
        lines += [f"c{customer:03d},{tracks_CP[customer, 0]}" for customer in range(0, CUSTOMERS, 3)]
    (workspace / f"day{day}.csv").write_text("\n".join(["customer,track", *lines, ""]))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on a day, and on the next with a warm start."""
    folder = tmp_path_factory.mktemp("known")
    columns = ("--query", "customer", "--item", "track", "--hold-out", "random:0.1")
    for day, base in ((1, ()), (2, ("--base", "data1"))):
        write_day(folder, day)
        prepare = ("prepare", "--events", f"day{day}.csv", *columns, *base, "--out", f"data{day}")
        succeeded(crossfade_here(*prepare, cwd=folder))
        write_job(folder / f"job{day}.yaml", f"data{day}", train={"epochs": 4})
        start = ("--set", "checkpoint.warm_start_from=run1/checkpoints") if base else ()
        succeeded(crossfade_here("train", f"job{day}.yaml", "--run-dir", f"run{day}", *start, cwd=folder))
    return folder


@pytest.fixture(scope="module")
def heard(workspace: Path) -> Known:
    """Return what each customer has heard on both days."""
    found: Known = {}
    for day in (1, 2):
        for line in (workspace / f"day{day}.csv").read_text().splitlines()[1:]:
            customer, track = line.split(",")
            found.setdefault(customer, set()).add(int(track))
    return found


def recommended(path: Path) -> dict[str, list[int]]:
    lists: dict[str, list[int]] = {}
    for row in pq.read_table(path).to_pylist():
        lists.setdefault(row["customer"], []).append(row["track"])
    return lists


def known_again(lists: dict[str, list[int]], heard: Known) -> int:
    """Count the recommendations that their customer has heard."""
    assert lists
    assert all(lists.values())
    return sum(track in heard[customer] for customer, tracks in lists.items() for track in tracks)


def test_command_recommends_nothing_known(workspace: Path, heard: Known, tmp_path: Path) -> None:
    succeeded(crossfade_here("recommend", "run2", "--all", "-k", 20, "--out", tmp_path / "all.parquet", cwd=workspace))
    lists = recommended(tmp_path / "all.parquet")
    assert len(lists) == CUSTOMERS
    assert known_again(lists, heard) == 0
    by_checkpoint = ("recommend", "run2/checkpoints", "--all", "-k", 20, "--out", tmp_path / "checkpoint.parquet")
    succeeded(crossfade_here(*by_checkpoint, cwd=workspace))
    assert known_again(recommended(tmp_path / "checkpoint.parquet"), heard) == 0
