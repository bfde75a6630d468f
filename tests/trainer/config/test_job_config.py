"""Job files: defaults, overrides, error messages, and the explained keys."""

import os
from pathlib import Path

import pytest

from crossfade.base.errors import InputError
from crossfade.trainer.config.json_schema import explain_fields
from crossfade.trainer.config.loading import change_job, load_job
from crossfade.trainer.config.schema import JobConfig

SMALL = "name: small\ndata: {path: data/small}\n"


@pytest.fixture
def job_path(tmp_path: Path) -> Path:
    return tmp_path / "job.yaml"


def load(path: Path, text: str, *overrides: str) -> JobConfig:
    path.write_text(text, encoding="utf-8")
    return load_job(path, overrides)


def error_of(path: Path, text: str, *overrides: str) -> str:
    """Return the one-line error for a job file, without its path."""
    with pytest.raises(InputError) as caught:
        load(path, text, *overrides)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    return message.removeprefix(f"{path}: ").removeprefix(str(path))


def test_minimal_job_has_defaults(job_path: Path) -> None:
    job = load(job_path, SMALL)
    assert (job.name, job.data.path, job.loss, job.model.dim) == ("small", "data/small", "softmax", 64)
    assert (job.model.temperature, job.negatives.kind, job.data.group) == ("auto", "auto", "auto")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SMALL + "optimiser: {kind: adam}\n", "unknown key 'optimiser'; did you mean 'optimizer'?"),
        (
            SMALL + "optimizer: {learnin_rate: 1}\n",
            "unknown key 'optimizer.learnin_rate'; did you mean 'learning_rate'?",
        ),
        (
            SMALL + "cluster: {slow_factor: 8}\n",
            "unknown key 'cluster.slow_factor'; known keys here: store, servers, workers, host, "
            "max_key_bytes, hosts, one_role_per_host, host_timeout_seconds, standby_timeout_seconds, "
            "coordinator_address, shared_run_dir, max_restarts, stall_timeout_seconds, "
            "grace_period_seconds, filter_ports",
        ),
        (SMALL + "los: bpr\ntrian: {}\n", "unknown key 'los'; did you mean 'loss'? (and 1 more)"),
        ("name: small\ndata: {}\n", "the key 'data.path' is missing"),
        ("data: {path: x}\n", "the key 'name' is missing"),
    ],
)
def test_unknown_or_missing_key_is_named_with_nearest_known_key(job_path: Path, text: str, expected: str) -> None:
    assert error_of(job_path, text) == expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("train: {epochs: many}", ["train.epochs: ", "valid integer", "but found 'many'"]),
        ("train: 5", ["train: ", "but found 5"]),
        ("model: {score: manhattan}", ["model.score: ", "'dot', 'cosine' or 'euclidean'", "but found 'manhattan'"]),
        ("optimizer: {learning_rate: .inf}", ["optimizer.learning_rate: ", "finite", "but found inf"]),
        ("optimizer: {weight_decay: low}", ["optimizer.weight_decay: input should be 'auto' or a valid number"]),
        (
            "train: {device: gpu, engine: cpu}",
            ["train: device 'gpu' needs engine torch or mxnet, but the engine is 'cpu'"],
        ),
        ("train: {device: 'gpu:100'}", ["train.device: expected auto, cpu, gpu, ", "but found 'gpu:100'"]),
        (
            "train: {tables: device}",
            ["train: tables 'device' needs engine torch", "the engine is 'auto'"],
        ),
        (
            "train: {tables: device, engine: torch}\ncluster: {servers: 2}",
            ["train.tables is 'device', but cluster.servers is 2, which hold the tables"],
        ),
        ("loss: bpr\ntop_k: 20", ["top_k needs loss 'softmax', but the loss is 'bpr'"]),
        (
            "top_k: 20\nnegatives: {kind: in_batch}",
            ["top_k compares with", "negatives.kind is 'in_batch': set it to all"],
        ),
        ("train: {half_life: 30w}", ["train.half_life: expected days or hours", "but found '30w'"]),
        ("cluster: {servers: 1, workers: 32}", ["32 workers need at least as many partitions"]),
        ("evaluate: {best_metric: recall@50}", ["evaluate: best_metric is 'recall@50', so add its cutoff"]),
        ("tracking: {mlflow: 'https://me:secret@mlflow:5000'}", ["tracking.mlflow: expected an address without cred"]),
        (
            "train: {tables: device, engine: torch}\ncluster: {workers: 2}",
            ["train.tables is 'device', but 2 workers hold parts of the tables", "cluster.workers to 1"],
        ),
        (
            "cluster: {store: sharded, servers: 2, workers: 2}",
            ["cluster: store is 'sharded', so the workers hold the tables, but servers is 2: set cluster.servers to 0"],
        ),
        ("evaluate: {k: [10, 100000]}", ["evaluate.k.1: ", "less than or equal to 1000"]),
        (
            "negatives: {logq_correction: true}\nloss: bpr",
            ["negatives.logq_correction needs loss 'softmax'", "the loss is 'bpr'"],
        ),
        ("model: {popularity: on}", ["model.popularity", "but found True"]),
    ],
)
def test_invalid_value_is_rejected_with_key_and_expectation(job_path: Path, text: str, parts: list[str]) -> None:
    message = error_of(job_path, SMALL + text + "\n")
    assert message.startswith(parts[0])
    for part in parts[1:]:
        assert part in message


def test_unreadable_job_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "latin1.yaml").write_bytes("name: chloé\n".encode("latin-1"))
    causes = {
        "no.yaml": "no such job file",
        ".": "cannot be read: Is a directory",
        "latin1.yaml": "is not UTF-8 text",
    }
    for name, cause in causes.items():
        with pytest.raises(InputError) as caught:
            load_job(tmp_path / name)
        assert cause in str(caught.value)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: small\ndata: {path: x\nloss: bpr\n", ":3: not valid YAML: "),
        ("name: small\n\n\n  data: x\n", ":4: not valid YAML: "),
        ("name: small\ndata:\n\tpath: x\n", ":3: not valid YAML: "),
        ("name: !!python/object:os.system x\n", ":1: not valid YAML: "),
        ("name: small\x07\n", "not valid YAML: "),
        (SMALL + "name: other\n", ":3: not valid YAML: the key 'name' is given twice"),
        (SMALL + "train:\n  seed: 1\n  epochs: 1\n  seed: 2\n", ":6: not valid YAML: the key 'seed' is given twice"),
        (SMALL + "train: &t {epochs: 2, x: *t}\n", ":3: not valid YAML: an alias, which a job cannot have"),
        (SMALL + "train: {<<: *t}\n", ":3: not valid YAML: an alias, which a job cannot have"),
        (SMALL + "train: !!map x\n", ":3: not valid YAML: expected a mapping"),
        (SMALL + "train: !!set [1]\n", ":3: not valid YAML: expected a mapping node"),
        ("name: 2024-02-31\n", ":1: not valid YAML: '2024-02-31' is not a valid date; put text in quotes"),
        ("name: !!int x64\n", ":1: not valid YAML: 'x64' is not a valid integer; put text in quotes"),
        (f"name: {'9' * 5000}\n", f":1: not valid YAML: '{'9' * 40}' is not a valid integer"),
        (SMALL + f"train: {{epochs: 0x{'F' * 20}}}\n", f":3: not valid YAML: '0x{'F' * 20}' is not a valid integer"),
        (SMALL + f"train: {{epochs: {'1:' * 5000}1}}\n", f":3: not valid YAML: '{'1:' * 20}' is not a valid integer"),
        (SMALL + f"train: {{epochs: {'[' * 200}{']' * 200}}}\n", "train.epochs: input should be a valid integer"),
        ("[" * 5000, "not valid YAML: nested too deeply"),
        ('"na\\nme": x\ndata: {path: d}\nname: y\n', "unknown key 'na\\nme'"),
        (SMALL + "#" * 70_000, "cannot be read: it has 70,037 bytes, of 65,536 at most"),
    ],
    ids=lambda value: value[:30],
)
def test_invalid_or_hostile_yaml_is_rejected_in_one_short_line(job_path: Path, text: str, expected: str) -> None:
    message = error_of(job_path, text)
    assert message.startswith(expected)
    assert message.isprintable()
    assert len(message) < 500


def test_example_of_a_section_within_another_has_the_form_of_a_job_file(job_path: Path) -> None:
    message = error_of(job_path, SMALL + "model: {dense: x}\n")
    assert message == "model.dense: expected keys, as in 'dense: {query: x}', but found 'x'"


def test_merge_key_does_not_override_keys_of_the_section(job_path: Path) -> None:
    job_path.write_text(SMALL + "optimizer: {<<: {kind: sgd, learning_rate: 0.5}, learning_rate: 0.25}\n")
    assert (load_job(job_path).optimizer.kind, load_job(job_path).optimizer.learning_rate) == ("sgd", 0.25)


@pytest.mark.parametrize("text", ["", "just words\n", "- name: small\n", "5\n"])
def test_file_without_top_level_keys_is_rejected(job_path: Path, text: str) -> None:
    assert error_of(job_path, text).startswith("not a job file: expected keys such as 'name:' and 'data:'")


def test_overrides_replace_file_values_in_order(job_path: Path) -> None:
    overrides = ["train.epochs=5", "loss=bpr", "evaluate.k=[1, 5]", "evaluate.best_metric=ndcg@5", "train.epochs=6"]
    job = load(job_path, SMALL + "train: {epochs: 2, seed: 9}\n", *overrides, "metrics.port=null", "data.path=a=b")
    assert (job.train.epochs, job.train.seed, job.metrics.port) == (6, 9, None)
    assert (job.loss, job.evaluate.k, job.data.path) == ("bpr", [1, 5], "a=b")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs", "set train.epochs: expected KEY=VALUE, for example set train.epochs=5"),
        ("=5", "set =5: expected KEY=VALUE, for example set train.epochs=5"),
        ("", "set: expected KEY=VALUE, for example set train.epochs=5"),
        ("name.first=x", "set name.first=x: 'name' is a value, not a section"),
        ("train.epoch=5", "set train.epoch=5: unknown key 'train.epoch'; did you mean 'epochs'?"),
        ("trian.epochs=5", "set trian.epochs=5: unknown key 'trian'; did you mean 'train'?"),
        (
            "train.batch_size=",
            "set train.batch_size=: train.batch_size: input should be a valid integer, but found None",
        ),
        (
            "train={max_steps: x}",
            "set train={max_steps: x}: train.max_steps: input should be a valid integer, but found 'x'",
        ),
    ],
)
def test_invalid_override_is_rejected_as_typed(job_path: Path, override: str, expected: str) -> None:
    assert error_of(job_path, SMALL, override) == expected
    assert error_of(job_path, SMALL, "data.path=x", override, "train.seed=1") == expected


def test_change_below_a_value_is_rejected(job_path: Path) -> None:
    job = load(job_path, SMALL)
    with pytest.raises(InputError, match="the study: 'name' is a value, not a section"):
        change_job(job, {"name.first": 1}, "the study")


def test_error_in_the_file_does_not_name_an_override(job_path: Path) -> None:
    assert error_of(job_path, SMALL + "train: {epochs: 0}\n", "train.seed=1").startswith("train.epochs: ")
    expected = "cluster: 3 workers need at least one server: set cluster.servers"
    found = error_of(job_path, SMALL + "cluster: {store: mxnet, workers: 3}\n", "cluster.grace_period_seconds=5")
    assert found == expected


def test_values_of_text_are_described_in_words(job_path: Path) -> None:
    """Every pattern of the schema has words, which stand in for it in messages."""
    rejected = {
        "name=../up": "name: expected a letter, then letters, digits, '_' and '-', but found '../up'",
        "tracking.mlflow=a": "tracking.mlflow: expected a URL such as http://mlflow:5000, databricks or "
        "databricks://PROFILE, but found 'a'",
        "model.item_content=['a b']": "model.item_content.0: expected a letter, then letters, digits, '_' and '-', but "
        "found 'a b'",
    }
    for override, message in rejected.items():
        assert error_of(job_path, SMALL, override) == f"set {override}: {message}"


@pytest.mark.parametrize("text", ["1e-6", "1E-6"])
def test_number_with_exponent_and_no_dot_is_a_number(job_path: Path, text: str) -> None:
    assert load(job_path, SMALL + f"optimizer: {{weight_decay: {text}}}\n").optimizer.weight_decay == 1e-6
    assert load(job_path, SMALL, f"optimizer.weight_decay={text}").optimizer.weight_decay == 1e-6


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data.path='früh: # 100%'", "name='on'", "metrics.port=null", "optimizer.weight_decay=1e-6"],
        ["cluster.workers=3", "evaluate.k=[5, 10]", "evaluate.exclude_splits=[]", "model.query_features=[user]"],
    ],
    ids=["defaults", "awkward text", "lists"],
)
def test_job_written_as_yaml_reads_back_equal(job_path: Path, overrides: list[str]) -> None:
    job = load(job_path, SMALL, *overrides)
    assert load(job_path, job.to_yaml()) == job


@pytest.mark.parametrize(
    ("path", "kind", "default"),
    [
        ("name", "text", "required"),
        ("model.score", "dot | cosine | euclidean", "cosine"),
        ("train.patience", "integer or null", "null"),
        ("optimizer.learning_rate", "auto or number", "auto"),
        ("evaluate.k", "list of integer", "[10, 20, 40]"),
        ("evaluate.exclude_splits", "list of train | valid | test", "[train, valid]"),
    ],
)
def test_explained_types_and_defaults_are_readable(path: str, kind: str, default: str) -> None:
    explained = {name: rest for name, *rest in explain_fields()}
    assert explained[path][:2] == [kind, default]


def test_job_that_is_a_fifo_does_not_block(job_path: Path) -> None:
    os.mkfifo(job_path)
    with pytest.raises(InputError, match="cannot be read: not a regular file"):
        load_job(job_path)
