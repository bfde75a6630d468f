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


# Every name of the product, once: renaming a key changes this table, but neither the jobs nor the recording.
NAME = "name"
LOSS = "loss"
MARGIN = "margin"
DATA_PATH = "data.path"
PARTITIONS = "data.partitions"
SHUFFLE_BLOCK_ROWS = "data.shuffle_block_rows"
SINCE = "data.since"
UNTIL = "data.until"
DIM = "model.dim"
SCORE = "model.score"
TEMPERATURE = "model.temperature"
INIT_STD = "model.init_std"
QUERY_FEATURES = "model.query_features"
ITEM_FEATURES = "model.item_features"
COMBINE = "model.combine"
ID_DROPOUT = "model.id_dropout"
DENSE_QUERY = "model.dense.query"
DENSE_ITEM = "model.dense.item"
DENSE_ACTIVATION = "model.dense.activation"
DENSE_LAYER_NORM = "model.dense.layer_norm"
DENSE_RESIDUAL = "model.dense.residual"
DENSE_LEARNING_RATE = "model.dense.learning_rate"
NEGATIVES = "negatives.kind"
NEGATIVE_COUNT = "negatives.count"
NEGATIVE_SAMPLING = "negatives.sampling"
NEGATIVE_POWER = "negatives.power"
LOGQ_CORRECTION = "negatives.logq_correction"
NUM_HARD = "negatives.num_hard"
NEGATIVE_WEIGHT = "negatives.weight"
OPTIMIZER = "optimizer.kind"
LEARNING_RATE = "optimizer.learning_rate"
WEIGHT_DECAY = "optimizer.weight_decay"
EPSILON = "optimizer.epsilon"
BETA1 = "optimizer.beta1"
BETA2 = "optimizer.beta2"
MAX_NORM = "optimizer.max_norm"
LR_SCHEDULE = "optimizer.schedule"
WARMUP_STEPS = "optimizer.warmup_steps"
MIN_LR_FACTOR = "optimizer.min_lr_factor"
BATCH_SIZE = "train.batch_size"
EPOCHS = "train.epochs"
MAX_STEPS = "train.max_steps"
SEED = "train.seed"
ENGINE = "train.engine"
QUERY_POWER = "train.query_frequency_power"
ITEM_POWER = "train.item_frequency_power"
SAVE_EMBEDDINGS = "train.save_embeddings"
CHECKPOINT_PATH = "checkpoint.path"
CHECKPOINT_SECONDS = "checkpoint.interval_seconds"
WARM_START_FROM = "checkpoint.warm_start_from"
CUTOFFS = "evaluate.k"
EXCLUDE_SPLITS = "evaluate.exclude_splits"
BEST_METRIC = "evaluate.best_metric"
SERVERS = "cluster.servers"
WORKERS = "cluster.workers"
METRICS_PORT = "metrics.port"

AUTO, SHARED, PER_EXAMPLE, IN_BATCH, MIXED, ALL = "auto", "shared", "per_example", "in_batch", "mixed", "all"
BEST = "ndcg@10"
METRICS = {
    "recall": "recall@10",
    "ndcg": BEST,
    "map": "map@10",
    "mrr": "mrr@10",
    "hit_rate": "hit_rate@10",
    "coverage": "coverage@10",
    "popularity": "popularity@10",
    "queries": "queries",
}
COUNTS = {name: name for name in ("steps", "examples", "best_epoch", "parameters", "rows_pulled", "rows_pushed")}
PREPARE_SYNTHETIC = (
    *("synthesize", "--queries", 300, "--items", 200, "--interactions", 6000),
    *("--genres", 10, "--seed", 1),
)
PREPARE_EVENTS = (
    *("prepare", "--query", "customer=user", "--item", "track=song", "--weight", "liking", "--timestamp", "at"),
    *("--hold-out", "random:0.1", "--seed", 2),
)
EVENTS_OPTION, FEATURES_OPTION, OUT_OPTION, RUN_OPTION = "--events", "--features", "--out", "--run-dir"
VECTOR_COLUMN = "vector"

Values = Mapping[str, Any]

BASE: Values = {
    NAME: "recorded",
    PARTITIONS: 4,
    SHUFFLE_BLOCK_ROWS: 300,
    DIM: 12,
    TEMPERATURE: 0.2,
    INIT_STD: 0.1,
    NEGATIVE_COUNT: 40,
    LEARNING_RATE: 0.05,
    BATCH_SIZE: 500,
    EPOCHS: 3,
    SEED: 7,
    CUTOFFS: [10],
    BEST_METRIC: BEST,
    SAVE_EMBEDDINGS: "best",
    CHECKPOINT_SECONDS: None,
    METRICS_PORT: None,
}
ADAM: Values = {OPTIMIZER: "adam", BETA1: 0.8, BETA2: 0.99}
ADAGRAD: Values = {OPTIMIZER: "adagrad", LEARNING_RATE: 0.1, LR_SCHEDULE: "constant"}
ROWWISE: Values = {OPTIMIZER: "rowwise_adagrad", LEARNING_RATE: 0.1, EPSILON: 1e-6, WEIGHT_DECAY: 1e-3}
SGD: Values = {OPTIMIZER: "sgd", LEARNING_RATE: 2.0, LR_SCHEDULE: "linear", WARMUP_STEPS: 4, MIN_LR_FACTOR: 0.1}
EUCLIDEAN: Values = {SCORE: "euclidean", MAX_NORM: 1.0, TEMPERATURE: 1.0}
DOT: Values = {SCORE: "dot", TEMPERATURE: 1.0}
POPULAR: Values = {NEGATIVE_SAMPLING: "popularity", NEGATIVE_POWER: 0.5}
IN_BATCH_LOGQ: Values = {LOSS: "softmax", NEGATIVES: IN_BATCH, LOGQ_CORRECTION: True}
EVENTS = "events"
"""Prefix of jobs that train on weighted events, some below 0; the others train on synthetic interactions."""

IN_PROCESS: dict[str, Values] = {
    "defaults": {},
    "bpr": {LOSS: "bpr", **ADAM},
    "bpr per example popular": {LOSS: "bpr", NEGATIVES: PER_EXAMPLE, NEGATIVE_COUNT: 6, **DOT, **ADAGRAD, **POPULAR},
    "bpr mixed": {LOSS: "bpr", NEGATIVES: MIXED, **SGD, QUERY_POWER: 0.0, ITEM_POWER: 0.0},
    "logistic": {LOSS: "logistic", NEGATIVES: SHARED, **DOT, **ADAGRAD, ITEM_POWER: -0.3},
    "logistic per example": {LOSS: "logistic", NEGATIVES: PER_EXAMPLE, NEGATIVE_COUNT: 5, **ROWWISE},
    "softmax auto": {LOSS: "softmax", NEGATIVES: AUTO, **EUCLIDEAN, QUERY_POWER: -1.0},
    "softmax all dot": {LOSS: "softmax", NEGATIVES: ALL, **DOT, **ADAM},
    "softmax in batch": {**IN_BATCH_LOGQ, **ROWWISE},
    "softmax mixed": {LOSS: "softmax", NEGATIVES: MIXED, LOGQ_CORRECTION: True, **SGD, **POPULAR},
    "softmax per example": {
        LOSS: "softmax",
        NEGATIVES: PER_EXAMPLE,
        LOGQ_CORRECTION: True,
        NEGATIVE_COUNT: 8,
        **ADAGRAD,
        **POPULAR,
    },
    "softmax shared hardest": {LOSS: "softmax", NEGATIVES: SHARED, NUM_HARD: 5, **ADAM},
    "hinge": {LOSS: "hinge", NEGATIVES: SHARED, MARGIN: 0.3, **ROWWISE},
    "hinge per example hardest": {
        LOSS: "hinge",
        NEGATIVES: PER_EXAMPLE,
        NEGATIVE_COUNT: 6,
        NUM_HARD: 2,
        **EUCLIDEAN,
        **ADAGRAD,
    },
    "hinge all": {LOSS: "hinge", NEGATIVES: ALL, **ADAM},
    "warp": {LOSS: "warp", NEGATIVES: SHARED, MARGIN: 0.4, **EUCLIDEAN, **ROWWISE},
    "warp in batch": {LOSS: "warp", NEGATIVES: IN_BATCH, **ADAM},
    "ccl": {LOSS: "ccl", NEGATIVES: SHARED, MARGIN: 0.2, NEGATIVE_WEIGHT: 5.0, **ADAM},
    "ccl per example": {
        LOSS: "ccl",
        NEGATIVES: PER_EXAMPLE,
        NEGATIVE_COUNT: 7,
        **SGD,
        LEARNING_RATE: 0.5,
        ITEM_POWER: 0.2,
    },
    "features": {ITEM_FEATURES: ["track", "genre"], COMBINE: "mean", ID_DROPOUT: 0.3},
    "dense": {DENSE_QUERY: [20, 12], DENSE_ITEM: [12], DENSE_LEARNING_RATE: 0.02},
    "dense tanh": {
        DENSE_ITEM: [10, 12],
        DENSE_ACTIVATION: "tanh",
        DENSE_LAYER_NORM: False,
        DENSE_RESIDUAL: False,
        ITEM_FEATURES: ["track", "genre"],
        **IN_BATCH_LOGQ,
    },
    "time range": {SINCE: "2020-02-01", UNTIL: "2020-11-01", EXCLUDE_SPLITS: ["train"], MAX_STEPS: 14},
    "warm start": {LOSS: "bpr", EPOCHS: 2},
    "events bpr": {LOSS: "bpr", **ADAM},
    "events logistic": {LOSS: "logistic", NEGATIVES: PER_EXAMPLE, NEGATIVE_COUNT: 5, **DOT, **ADAGRAD},
    "events softmax": {LOSS: "softmax", QUERY_FEATURES: ["customer", "country"]},
    "events softmax in batch": {**IN_BATCH_LOGQ, **ADAM},
    "events hinge": {LOSS: "hinge", **ROWWISE},
    "events warp": {LOSS: "warp", NEGATIVES: PER_EXAMPLE, NEGATIVE_COUNT: 5, **ADAGRAD},
    "events ccl": {LOSS: "ccl", **ADAM},
    "events features without id": {ITEM_FEATURES: ["mood", "tempo"], LOSS: "bpr", NEGATIVES: SHARED, **ADAGRAD},
}
WARM_START, WARM_START_SOURCE = "warm start", "bpr"
ON_SERVERS: dict[str, Values] = {
    "servers defaults": {SERVERS: 1, WORKERS: 1},
    "servers bpr mixed": {SERVERS: 2, WORKERS: 2, LOSS: "bpr", NEGATIVES: MIXED, **ROWWISE},
    "servers mxnet softmax in batch": {SERVERS: 2, WORKERS: 2, ENGINE: "mxnet", **IN_BATCH_LOGQ, **ADAM},
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
        values = {**BASE, DATA_PATH: str(self._data(name)), CHECKPOINT_PATH: str(folder / "checkpoints")}
        values |= IN_PROCESS.get(name) or ON_SERVERS.get(name) or {}
        if name == WARM_START:
            self.result(WARM_START_SOURCE)
            values[WARM_START_FROM] = str(self._folder / WARM_START_SOURCE / "checkpoints")
        (folder / "job.yaml").write_text(job_text(values))
        words = ("train", folder / "job.yaml", RUN_OPTION, folder / "run", "--progress", "lines")
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
                more = (EVENTS_OPTION, events, FEATURES_OPTION, f"customer={customers}:user:country")
                more += (FEATURES_OPTION, f"track={songs}:song:mood,tempo")
                succeeded(crossfade_here(*PREPARE_EVENTS, *more, OUT_OPTION, data))
            else:
                succeeded(crossfade_here(*PREPARE_SYNTHETIC, OUT_OPTION, data))
        return data


def read_result(run: Path) -> dict[str, Any]:
    """Read the recorded figures of a finished run."""
    report = json.loads((run / "report.json").read_text())
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    epochs = [event for event in events if event["event"] == "epoch"]
    return {
        "tables": {folder.name: figures_of(folder) for folder in sorted((run / "embeddings").glob("*/"))},
        "loss": [event["loss"] for event in epochs],
        "valid": [[event["valid"][name] for name in METRICS.values()] for event in epochs],
        "test": [report["metrics"]["test"][name] for name in METRICS.values()],
        **{name: report[key] for name, key in COUNTS.items()},
    }


def figures_of(folder: Path) -> dict[str, Any]:
    """Compute the checksum of the vectors in ``folder``, in row order, and figures that change little with rounding."""
    columns = [pq.read_table(path)[VECTOR_COLUMN].combine_chunks() for path in sorted(folder.glob("*.parquet"))]
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
    """Fail if the result of the job ``name`` is not the recorded one; with the same kernels, bit for bit.

    MXNet has kernels of its own.
    """
    recording = json.loads(RECORDED.read_text())
    assert_close(found, recording["jobs"][name])
    if recording["rounding"] == rounding() and ON_SERVERS.get(name, {}).get(ENGINE) != "mxnet":
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
