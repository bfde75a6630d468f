"""Results of trainings are those of ``recorded_results.json``: refactoring and renaming change none of them.

    export PYTHONPATH=tests/support OPENBLAS_CORETYPE=Haswell
    .venv/bin/python tests/trainer/training/test_recorded_results.py --record

writes the file again, after a change that is meant to change results. The kernels that it was recorded with give the
same bits; others round differently, so with them the figures must only be close. No two items of a job may have the
same vector, such as those of one genre without their IDs: their order, and so each metric, would be that of rounding.
"""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_here import crossfade_here
from running_command import crossfade, succeeded

from crossfade.trainer.training.report import describe_kernels

pytestmark = pytest.mark.numbers

RECORDED = Path(__file__).with_name("recorded_results.json")


METRICS = [
    *(f"{name}@10" for name in ("recall", "ndcg", "map", "mrr", "hit_rate", "coverage", "popularity")),
    "queries",
]
COUNTS = ("steps", "examples", "best_epoch", "parameters", "rows_pulled", "rows_pushed")
PREPARE_SYNTHETIC = (
    *("synthesize", "--queries", 300, "--items", 200, "--interactions", 6000),
    *("--genres", 10, "--seed", 1),
)
PREPARE_EVENTS = (
    *("prepare", "--query", "customer=user", "--item", "track=song", "--weight", "liking", "--timestamp", "at"),
    *("--hold-out", "random:0.1", "--seed", 2),
)

Values = Mapping[str, Any]

BASE: Values = {
    "name": "recorded",
    "data.partitions": 4,
    "data.shuffle_block_rows": 300,
    "model.dim": 12,
    "model.temperature": 0.2,
    "model.popularity": "off",
    "model.init_std": 0.1,
    "model.initialization": "random",
    "negatives.count": 40,
    "optimizer.learning_rate": 0.05,
    "train.batch_size": 500,
    "train.epochs": 3,
    "train.seed": 7,
    "evaluate.k": [10],
    "evaluate.best_metric": "ndcg@10",
    "train.save_embeddings": "best",
    "checkpoint.interval_seconds": None,
    "metrics.port": None,
}
ADAM: Values = {"optimizer.kind": "adam", "optimizer.beta1": 0.8, "optimizer.beta2": 0.99}
ADAGRAD: Values = {"optimizer.kind": "adagrad", "optimizer.learning_rate": 0.1, "optimizer.schedule": "constant"}
ROWWISE: Values = {
    "optimizer.kind": "rowwise_adagrad",
    "optimizer.learning_rate": 0.1,
    "optimizer.epsilon": 1e-6,
    "optimizer.weight_decay": 1e-3,
}
SGD: Values = {
    "optimizer.kind": "sgd",
    "optimizer.learning_rate": 2.0,
    "optimizer.schedule": "linear",
    "optimizer.warmup_steps": 4,
    "optimizer.min_lr_factor": 0.1,
}
EUCLIDEAN: Values = {"model.score": "euclidean", "optimizer.max_norm": 1.0, "model.temperature": 1.0}
DOT: Values = {"model.score": "dot", "model.temperature": 1.0}
POPULAR: Values = {"negatives.sampling": "popularity", "negatives.power": 0.5}
IN_BATCH_LOGQ: Values = {"loss": "softmax", "negatives.kind": "in_batch", "negatives.logq_correction": True}
EVENTS = "events"
"""Prefix of jobs that train on weighted events, some below 0; the others train on synthetic interactions."""

IN_PROCESS: dict[str, Values] = {
    "defaults": {},
    "bpr": {"loss": "bpr", **ADAM},
    "bpr per example popular": {
        "loss": "bpr",
        "negatives.kind": "per_example",
        "negatives.count": 6,
        **DOT,
        **ADAGRAD,
        **POPULAR,
    },
    "bpr mixed": {
        "loss": "bpr",
        "negatives.kind": "mixed",
        **SGD,
        "train.query_frequency_power": 0.0,
        "train.item_frequency_power": 0.0,
    },
    "logistic": {"loss": "logistic", "negatives.kind": "shared", **DOT, **ADAGRAD, "train.item_frequency_power": -0.3},
    "logistic per example": {"loss": "logistic", "negatives.kind": "per_example", "negatives.count": 5, **ROWWISE},
    "softmax auto": {"loss": "softmax", "negatives.kind": "auto", **EUCLIDEAN, "train.query_frequency_power": -1.0},
    "softmax all dot": {"loss": "softmax", "negatives.kind": "all", **DOT, **ADAM},
    "softmax in batch": {**IN_BATCH_LOGQ, **ROWWISE},
    "softmax mixed": {
        "loss": "softmax",
        "negatives.kind": "mixed",
        "negatives.logq_correction": True,
        **SGD,
        **POPULAR,
    },
    "softmax per example": {
        "loss": "softmax",
        "negatives.kind": "per_example",
        "negatives.logq_correction": True,
        "negatives.count": 8,
        **ADAGRAD,
        **POPULAR,
    },
    "warp": {"loss": "warp", "negatives.kind": "shared", "margin": 0.4, **EUCLIDEAN, **ROWWISE},
    "warp in batch": {"loss": "warp", "negatives.kind": "in_batch", **ADAM},
    "features": {"model.item_features": ["track", "genre"], "model.id_dropout": 0.3},
    "dense": {"model.dense.query": [20, 12], "model.dense.item": [12], "model.dense.learning_rate": 0.02},
    "dense features": {
        "model.dense.item": [10, 12],
        "model.item_features": ["track", "genre"],
        **IN_BATCH_LOGQ,
    },
    "time range": {
        "data.since": "2020-02-01",
        "data.until": "2020-11-01",
        "evaluate.exclude_splits": ["train"],
        "train.max_steps": 14,
    },
    "warm start": {"loss": "bpr", "train.epochs": 2},
    "events bpr": {"loss": "bpr", **ADAM},
    "events logistic": {"loss": "logistic", "negatives.kind": "per_example", "negatives.count": 5, **DOT, **ADAGRAD},
    "events softmax": {"loss": "softmax", "model.query_features": ["customer", "country"]},
    "events softmax in batch": {**IN_BATCH_LOGQ, **ADAM},
    "events warp": {"loss": "warp", "negatives.kind": "per_example", "negatives.count": 5, **ADAGRAD},
    "events features without id": {
        "model.item_features": ["mood", "tempo"],
        "loss": "bpr",
        "negatives.kind": "shared",
        **ADAGRAD,
    },
}
WARM_START, WARM_START_SOURCE = "warm start", "bpr"
# One worker on servers gives the bits of one process, and test_invariants.py has the engine of MXNet.
ON_SERVERS: dict[str, Values] = {
    "servers bpr mixed": {
        "cluster.servers": 2,
        "cluster.workers": 2,
        "loss": "bpr",
        "negatives.kind": "mixed",
        **ROWWISE,
    }
}


# Tolerances with other kernels. Of OpenBLAS's for Haswell, Sandybridge, Nehalem, and Cooperlake, tables differ by 3e-6,
# losses by 2e-8, and metrics by 1e-4; a metric jumps by 1 of 300 queries when two items change places in a ranking.
RELATIVE, METRIC_ABSOLUTE = 1e-4, 0.011


def job_text(values: Values) -> str:
    """Write ``values`` as a job file: JSON, which is YAML."""
    job: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        section = job
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    return json.dumps(job, indent=1)


def write_events(folder: Path) -> tuple[Path, Path, Path]:
    """Write weighted events, some below 0, the countries of customers, and two features of songs, all as CSV.

    No two songs have both features in common.
    """
    random = np.random.default_rng(3)
    user_N, at_N = random.integers(0, 250, 6000), random.integers(0, 1_000_000, 6000)
    song_N = (user_N * 7 + random.integers(0, 60, 6000) ** 2 // 60) % 180
    liking_N = np.array([1, 1, 1, 2, 0.5, -1, -0.5])[random.integers(0, 7, 6000)]
    columns = zip(user_N, song_N, liking_N, at_N, strict=True)
    lines = [f"u{user},{song},{liking},{at}" for user, song, liking, at in columns]
    events, customers, songs = (folder / f"{name}.csv" for name in ("events", "customers", "songs"))
    events.write_text("\n".join(["user,song,liking,at", *lines]) + "\n")
    customers.write_text("user,country\n" + "".join(f"u{user},C{user * user % 11}\n" for user in range(250)))
    songs.write_text("song,mood,tempo\n" + "".join(f"{song},M{song % 13},T{song % 17}\n" for song in range(180)))
    return events, customers, songs


class Runs:
    """Runs of the jobs in one folder; each job runs once, when its result is first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._results: dict[str, dict[str, Any]] = {}

    def result(self, name: str) -> dict[str, Any]:
        """Return the result of the job ``name``, in the form of the recording."""
        if name not in self._results:
            self._results[name] = self._run(name)
        return self._results[name]

    def _run(self, name: str) -> dict[str, Any]:
        folder = self._folder / name.replace(" ", "-")
        folder.mkdir()
        values = {**BASE, "data.path": str(self._data(name)), "checkpoint.path": str(folder / "checkpoints")}
        values |= IN_PROCESS.get(name) or ON_SERVERS.get(name) or {}
        if name == WARM_START:
            self.result(WARM_START_SOURCE)
            values["checkpoint.warm_start_from"] = str(self._folder / WARM_START_SOURCE / "checkpoints")
        (folder / "job.yaml").write_text(job_text(values))
        words = ("train", folder / "job.yaml", "--run-dir", folder / "run", "--progress", "lines")
        if name in ON_SERVERS:
            succeeded(crossfade(*words, cwd=folder))
        else:
            succeeded(crossfade_here(*words))
        return read_result(folder / "run")

    def _data(self, name: str) -> Path:
        has_events = name.startswith(EVENTS)
        data = self._folder / ("data-events" if has_events else "data-synthetic")
        if not data.exists():
            if has_events:
                events, customers, songs = write_events(self._folder)
                more = ("--events", events, "--features", f"customer={customers}:user:country")
                more += ("--features", f"track={songs}:song:mood,tempo")
                succeeded(crossfade_here(*PREPARE_EVENTS, *more, "--out", data))
            else:
                succeeded(crossfade_here(*PREPARE_SYNTHETIC, "--out", data))
        return data


def read_result(run: Path) -> dict[str, Any]:
    """Read the recorded figures of a finished run."""
    report = json.loads((run / "report.json").read_text())
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    epochs = [event for event in events if event["event"] == "epoch"]
    return {
        "tables": {folder.name: figures_of(folder) for folder in sorted((run / "embeddings").glob("*/"))},
        "loss": [event["loss"] for event in epochs],
        "valid": [[event["valid"][name] for name in METRICS] for event in epochs],
        "test": [report["metrics"]["test"][name] for name in METRICS],
        **{name: report[name] for name in COUNTS},
    }


def figures_of(folder: Path) -> dict[str, Any]:
    """Compute the checksum of the vectors in ``folder``, in row order, and figures that change little with rounding."""
    columns = [pq.read_table(path)["vector"].combine_chunks() for path in sorted(folder.glob("*.parquet"))]
    values_N = np.concatenate([column.flatten().to_numpy() for column in columns])
    assert values_N.dtype == np.float32
    rows = sum(map(len, columns))
    assert len(np.unique(values_N.reshape(rows, -1), axis=0)) == rows, f"{folder.name}: equal vectors"
    wide_N = values_N.astype(np.float64)
    return {
        "rows": rows,
        "sha256": hashlib.sha256(values_N.tobytes()).hexdigest(),
        "sum": float(wide_N.sum()),
        "norm": float(np.sqrt((wide_N**2).sum())),
        "waved": float((wide_N * np.sin(np.arange(1, len(wide_N) + 1))).sum()),  # depends on the order of rows
    }


def rounding() -> str:
    """Return the kernels on which the bits of the results depend; what Numba compiles gives the same everywhere."""
    blas, numpy, _ = describe_kernels("cpu").split(", ")
    return f"{blas}, {numpy}".replace("OpenBLAS Zen,", "OpenBLAS Haswell,")  # two names of the same kernels


def assert_close(found: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Fail if results differ by more than rounding explains."""
    assert found["tables"].keys() == recorded["tables"].keys()
    for name, table in recorded["tables"].items():
        other = found["tables"][name]
        assert other["rows"] == table["rows"]
        # Sums of values of both signs are near 0, so the tolerance is relative to the norm.
        for figure in ("sum", "norm", "waved"):
            assert other[figure] == pytest.approx(table[figure], rel=0, abs=RELATIVE * table["norm"]), (name, figure)
    assert found["loss"] == pytest.approx(recorded["loss"], rel=RELATIVE)
    np.testing.assert_allclose(found["valid"], recorded["valid"], rtol=0, atol=METRIC_ABSOLUTE)
    np.testing.assert_allclose(found["test"], recorded["test"], rtol=0, atol=METRIC_ABSOLUTE)
    assert {name: found[name] for name in COUNTS} == {name: recorded[name] for name in COUNTS}


def assert_recorded(name: str, found: Mapping[str, Any]) -> None:
    """Fail if the result of the job ``name`` is not the recorded one; with the same kernels, bit for bit."""
    recording = json.loads(RECORDED.read_text())
    assert_close(found, recording["jobs"][name])
    if recording["rounding"] == rounding():
        assert found == recording["jobs"][name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("recorded"))


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_PROCESS)
def test_job_in_process_gives_recorded_result(runs: Runs, name: str) -> None:
    assert_recorded(name, runs.result(name))


@pytest.mark.cluster
@pytest.mark.parametrize("name", ON_SERVERS)
def test_job_on_servers_gives_recorded_result(runs: Runs, name: str) -> None:
    assert_recorded(name, runs.result(name))


def test_recording_names_each_job() -> None:
    assert set(json.loads(RECORDED.read_text())["jobs"]) == {*IN_PROCESS, *ON_SERVERS}


def record(path: Path) -> None:
    """Run all jobs and write their results to ``path``."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder))
        jobs = {name: runs.result(name) for name in (*IN_PROCESS, *ON_SERVERS)}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(result)}" for name, result in jobs.items())
    path.write_text(f'{{\n "rounding": {json.dumps(rounding())},\n "jobs": {{\n{lines}\n }}\n}}\n')


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, nargs="?", const=RECORDED, metavar="FILE", required=True)
    record(parser.parse_args().record)
