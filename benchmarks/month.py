"""Measure a month of increments against new trainings: what they recommend, and the processor time they take.

    .venv/bin/python benchmarks/month.py [--drift moods] [--events 6e5] [--windows 30] [--every 5] [--seed 0]
    .venv/bin/python benchmarks/month.py --file events.parquet --set replay=10 --set increment_job.train.epochs=2

The first version of a service is made of the first half of the events, and each window of the other half becomes an
increment by ``crossfade refresh``. At every fifth, another service is made of all events so far at once. Both recommend
ten tracks to the customers of the next window: the ndcg@10 is over what a customer plays there for the first time, of
the customers and tracks that have been seen. Costs are processor seconds of the whole command, with preparing; that of
an increment is the median so far.

``--drift`` says how the drawn events change: with ``moods``, customers turn to another genre six times; with
``releases``, tracks are released at any time, and most plays are of recent ones; with ``none``, nothing changes.
``--file`` has the columns customer, track, and timestamp instead.

Shapes: N events, in order of time; G genres.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from refresh import CROSSFADE
from suite.timed_command import run

import crossfade

GENRES, TURNS, K = 40, 6, 10
SPAN_MS, START_MS = 60 * 86_400_000, 1_700_000_000_000
Integers = npt.NDArray[np.int64]


def draw_events(drift: str, events: int, seed: int) -> pa.Table:
    """Draw events in order of time: an active few of the customers play most, each in some genres."""
    random = np.random.default_rng(seed)
    customers, per_genre = events // 100, events // (75 * GENRES)
    activity = random.pareto(1.5, customers) + 0.2
    customer_N = random.choice(customers, events, p=activity / activity.sum())
    elapsed_N = np.arange(events) / events
    turn_N = elapsed_N * TURNS + random.random(customers)[customer_N] if drift == "moods" else np.zeros(events)
    own = random.integers(0, GENRES, (customers, TURNS + 2))
    genre_N = np.where(random.random(events) < 0.3, own[customer_N, -1], own[customer_N, turn_N.astype(int)])
    genre_N = np.where(random.random(events) < 0.1, random.integers(0, GENRES, events), genre_N)
    if drift == "releases":
        place_N = _recent_places(random, genre_N, elapsed_N, per_genre)
    else:
        place_N = (per_genre * random.random(events) ** 2.2).astype(int)
    track_N = genre_N * per_genre + place_N
    ids = {name: pa.array(rows_N).cast(pa.string()) for name, rows_N in (("customer", customer_N), ("track", track_N))}
    times = pa.array(START_MS + (elapsed_N * SPAN_MS).astype(np.int64), pa.timestamp("ms"))
    return pa.table({**ids, "timestamp": times})


def _recent_places(
    random: np.random.Generator, genre_N: Integers, elapsed_N: npt.NDArray[np.float64], per_genre: int
) -> Integers:
    """Draw which track of its genre each event plays: the newest, or one that was the newest some time before."""
    age_N = random.exponential(0.15, len(genre_N)) * random.choice([0.3, 1, 4], len(genre_N))
    place_N = np.zeros(len(genre_N), np.int64)
    for released_T, genre in zip(np.sort(random.random((GENRES, per_genre)) * 1.6 - 0.6), range(GENRES), strict=True):
        of_genre_N = genre_N == genre
        place_N[of_genre_N] = np.searchsorted(released_T, (elapsed_N - age_N)[of_genre_N]) - 1
    return np.maximum(place_N, 0)


class MeasuredService:
    """A service whose versions are made one by one, and timed.

    Attributes:
        costs: processor seconds of each version.
    """

    def __init__(self, folder: Path, keys: Mapping[str, Any]) -> None:
        """Write the file of the service into ``folder``."""
        self.folder, self.costs = folder, list[float]()
        (folder / "events").mkdir(parents=True)
        (folder / "service.yaml").write_text(json.dumps(keys))

    def take(self, events: pa.Table) -> None:
        """Make the next version, of ``events``."""
        pq.write_table(events, self.folder / "events" / f"{len(self.costs):03}.parquet")
        self.costs.append(run([*CROSSFADE, "refresh", str(self.folder / "service.yaml")])["cpu_seconds"])

    def ndcg(self, seen: pa.Table, window: pa.Table) -> tuple[float, int]:
        """Return the ndcg@10 of recommendations over what customers play first in ``window``, and of how many."""
        model = crossfade.load(self.folder / "services" / "month", frame="arrow")
        known = [pc.is_in(window[name], pa.array(map(str, model.ids(name)))) for name in ("customer", "track")]
        before, new = set(_pairs(seen)), defaultdict[str, set[str]](set)
        for customer, track in _pairs(window.filter(pc.and_(*known))):
            if (customer, track) not in before:
                new[customer].add(track)
        ranked, gains = defaultdict[str, list[str]](list), 1 / np.log2(np.arange(2, K + 2))
        for customer, track in _pairs(model.recommend(sorted(new), k=K)):
            ranked[customer].append(track)
        found = [
            sum(gain for gain, track in zip(gains, ranked[customer], strict=False) if track in tracks)
            / gains[: len(tracks)].sum()
            for customer, tracks in new.items()
        ]
        return mean(found), len(found)


def _pairs(table: pa.Table) -> zip[tuple[str, str]]:
    return zip(*(table[name].cast(pa.string()).to_pylist() for name in ("customer", "track")), strict=True)


def measure(events: pa.Table, windows: int, every: int, keys: Mapping[str, Any], folder: Path) -> None:
    """Make all versions, and print how both services do at every ``every``-th window."""
    ends = np.linspace(len(events) // 2, len(events), windows + 2).astype(int)
    service, shares, costs = MeasuredService(folder / "service", keys), list[float](), list[float]()
    service.take(events[: ends[0]])
    for window in range(1, windows + 1):
        seen, following = events[: ends[window]], events[ends[window] : ends[window + 1]]
        service.take(events[ends[window - 1] : ends[window]])
        if window % every == 0:
            anew = MeasuredService(folder / f"anew-{window}", keys)
            anew.take(seen)
            (found, queries), (best, _) = service.ndcg(seen, following), anew.ndcg(seen, following)
            shares.append(found / best)
            costs.append(median(service.costs[1:]) / anew.costs[0])
            figures = f"ndcg@10 {found:.4f}, anew {best:.4f} ({queries:,} queries)"
            print(f"window {window}: {figures}; {service.costs[-1]:.1f} s, anew {anew.costs[0]:.1f} s", flush=True)
    print(f"means: {mean(shares):.3f} of the ndcg@10 of new trainings, for {mean(costs):.3f} of their processor time")


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drift", choices=["moods", "releases", "none"], default="moods", help="(default: moods)")
    for name, default in (("events", 6e5), ("windows", 30), ("every", 5), ("seed", 0)):
        parser.add_argument(f"--{name}", type=float, default=default, metavar="N", help=f"(default: {default:g})")
    parser.add_argument("--file", metavar="FILE", help="events as Parquet, in place of those that are drawn")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the service")
    given = parser.parse_args()
    if given.file is None:
        events = draw_events(given.drift, int(given.events), int(given.seed))
    else:
        events = pq.read_table(given.file, columns=["customer", "track", "timestamp"]).sort_by("timestamp")
    keys: dict[str, Any] = {"name": "month", "events": ["events/*.parquet"], "publish_if": None, "settle_seconds": 0}
    keys["prepare"] = {"query": "customer", "item": "track", "timestamp": "timestamp", "seed": int(given.seed)}
    keys["job"] = {"train": {"seed": int(given.seed)}}
    for key, value in (each.split("=", 1) for each in given.set):
        section, (*path, last) = keys, key.split(".")
        for name in path:
            section = section.setdefault(name, {})
        section[last] = yaml.safe_load(value)
    with tempfile.TemporaryDirectory(prefix="month-") as folder:
        measure(events, int(given.windows), int(given.every), keys, Path(folder))


if __name__ == "__main__":
    main()
