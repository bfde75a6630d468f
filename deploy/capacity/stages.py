"""The time and memory of each stage of a job: prepare, train, evaluate, index, recommend.

    for stage in plan_stages(Work(queries=1e6, items=2e5, events=2e7, dim=64, train_seconds=9e3, ...), hosts):
        stage.name, stage.seconds, stage.bytes

Core seconds are those of one virtual CPU of the machine on which the constants were measured, as in ``step_time.py``.
Only training uses several hosts by itself. Recommendations and evaluations are divided among them in shards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from crossfade.base.text import counted
from crossfade.deploy.capacity.step_time import POOL_FLOPS, evaluation_seconds
from crossfade.kvstore.store import VALUE_BYTES
from crossfade.trainer.recommend.faiss_lists import ITERATIONS, SAMPLES_PER_LIST, num_lists

GIB = 2**30
PREPARE_CORE_SECONDS, PREPARE_EVENTS, PREPARE_GROWTH = 3.53e-6, 1e8, 1.42
"""Core seconds to prepare one of 100 million events, and how many times as many with five times the events
(docs/scale.md, "Preparing data")."""
PREPARE_BYTES = 107
"""Memory of an event, up to half of what a host has, beyond which the rest is spilled to disk (docs/scale.md)."""
SAVE_BYTES_PER_CORE_SECOND = 15.1 * GIB / 58 / 2
"""What the writer of a checkpoint writes: 15.1 GiB in 50 to 66 s, by two servers (docs/scale.md, "Recovery")."""
PROCESS_BYTES = 0.5 * GIB
"""A process that ranks or prepares, without what grows with its data."""
RANK_FLOPS = 27e9
"""Floating-point operations per second of a core in exact searches of the ten best items: a product, and the choice
among the scores (docs/using-embeddings.md, "Indexes")."""


@dataclass(frozen=True)
class Hosts:
    """Hosts that are alike: how many, and virtual CPUs and memory of each."""

    count: int
    cores: int
    bytes: float = math.inf


@dataclass(frozen=True)
class Stage:
    """What a stage takes: seconds on ``hosts`` hosts, and the memory of each, in bytes."""

    name: str
    what: str
    seconds: float
    hosts: int
    bytes: float


@dataclass(frozen=True)
class Work:
    """The size of the stages.

    Attributes:
        queries: rows of the query table.
        items: rows of the item table.
        events: raw events, or interactions.
        dim: columns.
        epochs: passes over the events.
        train_seconds: of all epochs, with the evaluations between them.
        train_bytes: memory of a host in training.
        evaluated_queries: of the final evaluation.
    """

    queries: int
    items: int
    events: float
    dim: int
    epochs: int
    train_seconds: float
    train_bytes: float
    evaluated_queries: int


def plan_stages(work: Work, hosts: Hosts) -> list[Stage]:
    """Return the stages of ``work`` in their order."""
    vectors, cores = work.items * work.dim * VALUE_BYTES, hosts.cores * hosts.count
    ranking_bytes = PROCESS_BYTES + vectors
    recommend_seconds = recommend_core_seconds(work.queries, work.items, work.dim) / cores
    evaluate_seconds = evaluation_seconds(work.evaluated_queries, work.items, work.dim, cores)
    prepare_bytes = min(PROCESS_BYTES + work.events * PREPARE_BYTES, hosts.bytes / 2)
    index_bytes = PROCESS_BYTES + 2 * vectors
    prepare_seconds = prepare_core_seconds(work.events) / hosts.cores
    return [
        Stage("prepare", f"{work.events:,.0f} events", prepare_seconds, 1, prepare_bytes),
        Stage("train", counted(work.epochs, "epoch"), work.train_seconds, hosts.count, work.train_bytes),
        Stage(
            "evaluate",
            counted(work.evaluated_queries, "query", "queries"),
            evaluate_seconds,
            hosts.count,
            ranking_bytes,
        ),
        Stage(
            "index", counted(work.items, "item"), index_core_seconds(work.items, work.dim) / hosts.cores, 1, index_bytes
        ),
        Stage(
            "recommend",
            f"to {counted(work.queries, 'query', 'queries')}, exactly",
            recommend_seconds,
            hosts.count,
            ranking_bytes,
        ),
    ]


def prepare_core_seconds(events: float) -> float:
    """Return the core seconds of preparing raw events."""
    growth: float = PREPARE_GROWTH ** (math.log(max(1.0, events / PREPARE_EVENTS)) / math.log(5))
    return events * PREPARE_CORE_SECONDS * growth


def index_core_seconds(items: int, dim: int) -> float:
    """Return the core seconds of an index: k-means of its lists, and the nearest list of each item."""
    lists = num_lists(items)
    return 2.0 * lists * dim * (ITERATIONS * SAMPLES_PER_LIST * lists + items) / POOL_FLOPS


def recommend_core_seconds(queries: int, items: int, dim: int) -> float:
    """Return the core seconds of the best items for ``queries`` queries, by exact search."""
    return 2.0 * queries * items * dim / RANK_FLOPS
