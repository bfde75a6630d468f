"""What trainings gave when ``recorded_results.json`` was written: a change of names changes none of it.

``python tests/test_recorded_results.py --record`` writes the file anew, after a change that is meant to change results.
The same machine gives the same bits again. Another processor rounds otherwise, so there figures only come close.
"""

import argparse
import ctypes
import hashlib
import json
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
import pyarrow.parquet as pq
import pytest
from running_command import crossfade, succeeded

from crossfade.main import main

RECORDED = Path(__file__).with_name("recorded_results.json")


class Key(NamedTuple):
    """A key of the job file. Jobs below say its value times ``sign``."""

    path: str
    sign: int = 1


# All names that the product gives, each once: a change of names changes this table, and neither jobs nor recording.
NAME = Key("name")
LOSS = Key("loss")
MARGIN = Key("margin")
DATA_PATH = Key("data.path")
LANES = Key("data.partitions")
SHUFFLE_WINDOW = Key("data.shuffle_block_rows")
SINCE = Key("data.since")
UNTIL = Key("data.until")
DIM = Key("model.dim")
SCORE = Key("model.score")
TEMPERATURE = Key("model.temperature")
INITIAL_SCALE = Key("model.init_std")
QUERY_TOWER = Key("model.query_features")
ITEM_TOWER = Key("model.item_features")
COMBINE = Key("model.combine")
DROP_IDS = Key("model.id_dropout")
DENSE_QUERY = Key("model.dense.query")
DENSE_ITEM = Key("model.dense.item")
DENSE_ACTIVATION = Key("model.dense.activation")
DENSE_LAYER_NORM = Key("model.dense.layer_norm")
DENSE_RESIDUAL = Key("model.dense.residual")
DENSE_LEARNING_RATE = Key("model.dense.learning_rate")
NEGATIVES = Key("negatives.kind")
NEGATIVE_COUNT = Key("negatives.count")
NEGATIVE_SAMPLING = Key("negatives.sampling")
NEGATIVE_POWER = Key("negatives.power")
LOG_Q = Key("negatives.logq_correction")
HARD_NEGATIVES = Key("negatives.num_hard")
NEGATIVE_WEIGHT = Key("negatives.weight")
OPTIMIZER = Key("optimizer.kind")
LEARNING_RATE = Key("optimizer.learning_rate")
WEIGHT_DECAY = Key("optimizer.weight_decay")
EPSILON = Key("optimizer.epsilon")
BETA1 = Key("optimizer.beta1")
BETA2 = Key("optimizer.beta2")
MAX_NORM = Key("optimizer.max_norm")
RATE_SCHEDULE = Key("optimizer.schedule")
WARMUP_STEPS = Key("optimizer.warmup_steps")
FINAL_RATE = Key("optimizer.min_lr_factor")
BATCH_SIZE = Key("train.batch_size")
EPOCHS = Key("train.epochs")
MAX_STEPS = Key("train.max_steps")
SEED = Key("train.seed")
ENGINE = Key("train.engine")
QUERY_POWER = Key(
    "train.query_frequency_power"
)  # an interaction weighs its query's count to this power, times the sign
ITEM_POWER = Key("train.item_frequency_power")
SAVED_EMBEDDINGS = Key("train.save_embeddings")
CHECKPOINT_PATH = Key("checkpoint.path")
CHECKPOINT_SECONDS = Key("checkpoint.interval_seconds")
START_FROM = Key("checkpoint.warm_start_from")
DEPTHS = Key("evaluate.k")
EXCLUDED_SPLITS = Key("evaluate.exclude_splits")
SELECT = Key("evaluate.best_metric")
SERVERS = Key("cluster.servers")
WORKERS = Key("cluster.workers")
METRICS_PORT = Key("metrics.port")

AUTO, SHARED, EACH, IN_BATCH, MIXED, ALL = "auto", "shared", "per_example", "in_batch", "mixed", "all"
SELECTED = "ndcg@10"
METRICS = {
    "recall": "recall@10",
    "ndcg": SELECTED,
    "map": "map@10",
    "mrr": "mrr@10",
    "hit_rate": "hit_rate@10",
    "coverage": "coverage@10",
    "popularity": "popularity@10",
    "queries": "queries",
}
COUNTS = {name: name for name in ("steps", "examples", "best_epoch", "parameters", "rows_pulled", "rows_pushed")}
PREPARE_SYNTHETIC = (
    "synthesize",
    "--queries",
    300,
    "--items",
    200,
    "--interactions",
    6000,
    "--genres",
    10,
    "--seed",
    1,
)
PREPARE_EVENTS = (
    *("prepare", "--query", "customer=user", "--item", "track=song", "--weight", "liking", "--timestamp", "at"),
    *("--hold-out", "random:0.1", "--seed", 2),
)
EVENTS_OPTION, FEATURES_OPTION, OUT_OPTION, RUN_OPTION = "--events", "--features", "--out", "--run-dir"
VECTOR_COLUMN = "vector"

Values = Mapping[Key, Any]

BASE: Values = {
    NAME: "recorded",
    LANES: 4,
    SHUFFLE_WINDOW: 300,
    DIM: 12,
    TEMPERATURE: 0.2,
    INITIAL_SCALE: 0.1,
    NEGATIVE_COUNT: 40,
    LEARNING_RATE: 0.05,
    BATCH_SIZE: 500,
    EPOCHS: 3,
    SEED: 7,
    DEPTHS: [10],
    SELECT: SELECTED,
    SAVED_EMBEDDINGS: "best",
    CHECKPOINT_SECONDS: None,
    METRICS_PORT: None,
}
ADAM: Values = {OPTIMIZER: "adam", BETA1: 0.8, BETA2: 0.99}
ADAGRAD: Values = {OPTIMIZER: "adagrad", LEARNING_RATE: 0.1, RATE_SCHEDULE: "constant"}
ROWWISE: Values = {OPTIMIZER: "rowwise_adagrad", LEARNING_RATE: 0.1, EPSILON: 1e-6, WEIGHT_DECAY: 1e-3}
SGD: Values = {OPTIMIZER: "sgd", LEARNING_RATE: 2.0, RATE_SCHEDULE: "linear", WARMUP_STEPS: 4, FINAL_RATE: 0.1}
EUCLIDEAN: Values = {SCORE: "euclidean", MAX_NORM: 1.0, TEMPERATURE: 1.0}
DOT: Values = {SCORE: "dot", TEMPERATURE: 1.0}
POPULAR: Values = {NEGATIVE_SAMPLING: "popularity", NEGATIVE_POWER: 0.5}
IN_BATCH_LOG_Q: Values = {LOSS: "softmax", NEGATIVES: IN_BATCH, LOG_Q: True}
EVENTS = "events"
"""Names of jobs that begin so train on events with weights, some below 0, and the others on synthetic data."""

IN_PROCESS: dict[str, Values] = {
    "defaults": {},
    "bpr": {LOSS: "bpr", **ADAM},
    "bpr each popular": {LOSS: "bpr", NEGATIVES: EACH, NEGATIVE_COUNT: 6, **DOT, **ADAGRAD, **POPULAR},
    "bpr mixed": {LOSS: "bpr", NEGATIVES: MIXED, **SGD, QUERY_POWER: 0.0, ITEM_POWER: 0.0},
    "logistic": {LOSS: "logistic", NEGATIVES: SHARED, **DOT, **ADAGRAD, ITEM_POWER: -0.3},
    "logistic each": {LOSS: "logistic", NEGATIVES: EACH, NEGATIVE_COUNT: 5, **ROWWISE},
    "softmax auto": {LOSS: "softmax", NEGATIVES: AUTO, **EUCLIDEAN, QUERY_POWER: -1.0},
    "softmax all dot": {LOSS: "softmax", NEGATIVES: ALL, **DOT, **ADAM},
    "softmax in batch": {**IN_BATCH_LOG_Q, **ROWWISE},
    "softmax mixed": {LOSS: "softmax", NEGATIVES: MIXED, LOG_Q: True, **SGD, **POPULAR},
    "softmax each": {LOSS: "softmax", NEGATIVES: EACH, LOG_Q: True, NEGATIVE_COUNT: 8, **ADAGRAD, **POPULAR},
    "softmax shared hard": {LOSS: "softmax", NEGATIVES: SHARED, HARD_NEGATIVES: 5, **ADAM},
    "hinge": {LOSS: "hinge", NEGATIVES: SHARED, MARGIN: 0.3, **ROWWISE},
    "hinge each hard": {LOSS: "hinge", NEGATIVES: EACH, NEGATIVE_COUNT: 6, HARD_NEGATIVES: 2, **EUCLIDEAN, **ADAGRAD},
    "hinge all": {LOSS: "hinge", NEGATIVES: ALL, **ADAM},
    "warp": {LOSS: "warp", NEGATIVES: SHARED, MARGIN: 0.4, **EUCLIDEAN, **ROWWISE},
    "warp in batch": {LOSS: "warp", NEGATIVES: IN_BATCH, **ADAM},
    "ccl": {LOSS: "ccl", NEGATIVES: SHARED, MARGIN: 0.2, NEGATIVE_WEIGHT: 5.0, **ADAM},
    "ccl each": {LOSS: "ccl", NEGATIVES: EACH, NEGATIVE_COUNT: 7, **SGD, LEARNING_RATE: 0.5, ITEM_POWER: 0.2},
    "features": {ITEM_TOWER: ["track", "genre"], COMBINE: "mean", DROP_IDS: 0.3},
    "features alone": {ITEM_TOWER: ["genre"], LOSS: "bpr", NEGATIVES: SHARED, **ADAGRAD},
    "dense": {DENSE_QUERY: [20, 12], DENSE_ITEM: [12], DENSE_LEARNING_RATE: 0.02},
    "dense tanh": {
        DENSE_ITEM: [10, 12],
        DENSE_ACTIVATION: "tanh",
        DENSE_LAYER_NORM: False,
        DENSE_RESIDUAL: False,
        ITEM_TOWER: ["track", "genre"],
        **IN_BATCH_LOG_Q,
    },
    "part of the time": {SINCE: "2020-02-01", UNTIL: "2020-11-01", EXCLUDED_SPLITS: ["train"], MAX_STEPS: 14},
    "started from another": {LOSS: "bpr", EPOCHS: 2},
    "events bpr": {LOSS: "bpr", **ADAM},
    "events logistic": {LOSS: "logistic", NEGATIVES: EACH, NEGATIVE_COUNT: 5, **DOT, **ADAGRAD},
    "events softmax": {LOSS: "softmax", QUERY_TOWER: ["customer", "country"]},
    "events softmax in batch": {**IN_BATCH_LOG_Q, **ADAM},
    "events hinge": {LOSS: "hinge", **ROWWISE},
    "events warp": {LOSS: "warp", NEGATIVES: EACH, NEGATIVE_COUNT: 5, **ADAGRAD},
    "events ccl": {LOSS: "ccl", **ADAM},
}
STARTED, STARTED_FROM = "started from another", "bpr"
ON_SERVERS: dict[str, Values] = {
    "servers defaults": {SERVERS: 1, WORKERS: 1},
    "servers bpr mixed": {SERVERS: 2, WORKERS: 2, LOSS: "bpr", NEGATIVES: MIXED, **ROWWISE},
    "servers mxnet softmax in batch": {SERVERS: 2, WORKERS: 2, ENGINE: "mxnet", **IN_BATCH_LOG_Q, **ADAM},
}


# Figures of another machine: sums and the like follow rounding, while a metric jumps where two items change places.
RELATIVE, METRIC_ABSOLUTE = 1e-4, 0.011


def job_text(values: Values) -> str:
    """The job file that says ``values``, which is JSON and so YAML."""
    job: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.path.split(".")
        section = job
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value * key.sign if key.sign != 1 else value
    return json.dumps(job, indent=1)


def run_quietly(*words: object) -> None:
    """Run a command in this process; what it says is shown only if it fails."""
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = main([str(word) for word in words])
    assert not code, f"exit code {code}\n{said.getvalue()}"


def write_events(folder: Path) -> tuple[Path, Path]:
    """Events with weights, some of them below 0, and the countries of customers; both as CSV."""
    random = np.random.default_rng(3)
    user_N, at_N = random.integers(0, 250, 6000), random.integers(0, 1_000_000, 6000)
    song_N = (user_N * 7 + random.integers(0, 60, 6000) ** 2 // 60) % 180
    liking_N = np.array([1, 1, 1, 2, 0.5, -1, -0.5])[random.integers(0, 7, 6000)]
    columns = zip(user_N, song_N, liking_N, at_N, strict=True)
    lines = [f"u{user},{song},{liking},{at}" for user, song, liking, at in columns]
    events, customers = folder / "events.csv", folder / "customers.csv"
    events.write_text("\n".join(["user,song,liking,at", *lines]) + "\n")
    customers.write_text("user,country\n" + "".join(f"u{user},C{user * user % 11}\n" for user in range(250)))
    return events, customers


class Runs:
    """Runs of the jobs in a folder, each made once, when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._results: dict[str, dict[str, Any]] = {}

    def result(self, name: str) -> dict[str, Any]:
        """What the job of that name gave, in the form of the recording."""
        if name not in self._results:
            self._results[name] = self._made(name)
        return self._results[name]

    def _made(self, name: str) -> dict[str, Any]:
        place = self._folder / name.replace(" ", "-")
        place.mkdir()
        values = {**BASE, DATA_PATH: str(self._data(name)), CHECKPOINT_PATH: str(place / "checkpoints")}
        values |= IN_PROCESS.get(name) or ON_SERVERS.get(name) or {}
        if name == STARTED:
            self.result(STARTED_FROM)
            values[START_FROM] = str(self._folder / STARTED_FROM / "checkpoints")
        (place / "job.yaml").write_text(job_text(values))
        words = ("train", place / "job.yaml", RUN_OPTION, place / "run", "--progress", "lines")
        if name in ON_SERVERS:
            succeeded(crossfade(*words, cwd=place))
        else:
            run_quietly(*words)
        return read_result(place / "run")

    def _data(self, name: str) -> Path:
        of_events = name.startswith(EVENTS)
        data = self._folder / ("data-events" if of_events else "data-synthetic")
        if not data.exists():
            if of_events:
                events, customers = write_events(self._folder)
                more = (EVENTS_OPTION, events, FEATURES_OPTION, f"customer={customers}:user:country")
                run_quietly(*PREPARE_EVENTS, *more, OUT_OPTION, data)
            else:
                run_quietly(*PREPARE_SYNTHETIC, OUT_OPTION, data)
        return data


def read_result(run: Path) -> dict[str, Any]:
    """What is recorded of a finished run."""
    report = json.loads((run / "report.json").read_text())
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    epochs = [event for event in events if event["event"] == "epoch"]
    return {
        "tables": {folder.name: figures_of(folder) for folder in sorted((run / "embeddings").iterdir())},
        "loss": [event["loss"] for event in epochs],
        "valid": [[event["valid"][name] for name in METRICS.values()] for event in epochs],
        "test": [report["metrics"]["test"][name] for name in METRICS.values()],
        **{name: report[key] for name, key in COUNTS.items()},
    }


def figures_of(folder: Path) -> dict[str, Any]:
    """The checksum of the vectors in ``folder``, in the order of rows, and figures that change little if they do."""
    columns = [pq.read_table(path)[VECTOR_COLUMN].combine_chunks() for path in sorted(folder.glob("*.parquet"))]
    values_N = np.concatenate([column.flatten().to_numpy() for column in columns])
    assert values_N.dtype == np.float32
    wide_N = values_N.astype(np.float64)
    return {
        "rows": sum(map(len, columns)),
        "sha256": hashlib.sha256(values_N.tobytes()).hexdigest(),
        "sum": float(wide_N.sum()),
        "norm": float(np.sqrt((wide_N**2).sum())),
        "waved": float((wide_N * np.sin(np.arange(1, len(wide_N) + 1))).sum()),  # rows in another order give another
    }


def machine() -> dict[str, str]:
    """What bits depend on: the processor that numba compiles for, and the one whose kernels numpy's BLAS has."""
    return {"processor": llvm.get_host_cpu_name(), "blas": _blas_kernels()}


def _blas_kernels() -> str:
    for path in (Path(np.__file__).parent.with_name("numpy.libs")).glob("libopenblas*"):
        name = getattr(ctypes.CDLL(str(path)), "openblas_get_corename64_", None)
        if name is not None:
            name.restype = ctypes.c_char_p
            return str(name().decode())
    return "unknown"


def assert_close(found: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Fail if a result is another than rounding explains."""
    assert found["tables"].keys() == recorded["tables"].keys()
    for name, table in recorded["tables"].items():
        other = found["tables"][name]
        assert other["rows"] == table["rows"]
        # Sums of values of both signs come out near 0, so that they are held against the norm.
        for figure in ("sum", "norm", "waved"):
            assert other[figure] == pytest.approx(table[figure], rel=0, abs=RELATIVE * table["norm"]), (name, figure)
    assert found["loss"] == pytest.approx(recorded["loss"], rel=RELATIVE)
    np.testing.assert_allclose(found["valid"], recorded["valid"], rtol=0, atol=METRIC_ABSOLUTE)
    np.testing.assert_allclose(found["test"], recorded["test"], rtol=0, atol=METRIC_ABSOLUTE)
    assert {name: found[name] for name in COUNTS} == {name: recorded[name] for name in COUNTS}


def assert_recorded(name: str, found: Mapping[str, Any]) -> None:
    """Fail if the job of that name has not given what was recorded: to the bit, on the machine that recorded it."""
    recording = json.loads(RECORDED.read_text())
    assert_close(found, recording["jobs"][name])
    if recording["machine"] == machine():
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
    """Write what all jobs give now to ``path``."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder))
        jobs = {name: runs.result(name) for name in (*IN_PROCESS, *ON_SERVERS)}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(result)}" for name, result in jobs.items())
    path.write_text(f'{{\n "machine": {json.dumps(machine())},\n "jobs": {{\n{lines}\n }}\n}}\n')


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, nargs="?", const=RECORDED, metavar="FILE", required=True)
    record(parser.parse_args().record)
