"""The file of a service: what is invalid is named by its key before anything is done."""

import json
import re
from glob import glob
from pathlib import Path
from typing import Any

import pytest
from command_here import rejected_here

from crossfade.base.errors import InputError
from crossfade.deploy.refresh.service_file import Guard, ServiceConfig, load_service

PAGE = Path(__file__).resolve().parents[3] / "docs" / "fresh-models.md"
VALID: dict[str, Any] = {
    "name": "music",
    "events": ["events/*.parquet"],
    "prepare": {"query": "customer=user", "item": "track"},
}


def written(folder: Path, **keys: Any) -> Path:
    path = folder / "music.yaml"
    path.write_text(json.dumps({**VALID, **keys}))
    return path


CONTINUED = [
    'train.save_embeddings="best"',
    'checkpoint.warm_start_from="runs/last"',
    "evaluate.at_start=true",
]
"""What a service sets itself in a version that continues the one in runs/last."""


def test_minimal_file_has_defaults(tmp_path: Path) -> None:
    service = load_service(written(tmp_path))
    assert service.path == tmp_path / "services/music"
    assert (service.metric(), service.guard) == ("ndcg@10", Guard("ndcg@10", 0.98))
    assert service.increment_settings("runs/last") == [*CONTINUED, "train.epochs=4", "train.eval_every_epochs=4"]
    assert json.loads(service.job_text()) == {"name": "music", "data": {"path": "."}}
    options = service.prepare_options(["a.parquet"], tmp_path / "out", "before")
    assert (options.base, list(options.train)) == ("before", ["a.parquet"])


def test_paths_are_relative_to_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "[1]"
    (folder / "raw").mkdir(parents=True)
    prepare = {"base": "before", "names": {"track": "songs.csv:id:title"}, "features": ["track=song*.csv:id:artist"]}
    written(
        folder,
        events=["raw/*.parquet", "s3://music/*.parquet", f"{tmp_path}/*.csv"],
        prepare={**VALID["prepare"], **prepare},
        job={"checkpoint": {"warm_start_from": "runs/first"}, "model": {"start": {"track": "vectors"}}},
        increment_job={"train": {"epochs": 1}, "tracking": {"tensorboard": "board"}},
    )
    monkeypatch.chdir(folder / "raw")
    service = load_service(Path("../music.yaml"))
    assert service.path.resolve() == folder / "services/music"
    [local, *others] = service.event_patterns()
    assert others == ["s3://music/*.parquet", f"{tmp_path}/*.csv"]
    for name in ("raw/a.parquet", "songs.csv"):
        (folder / name).touch()
    assert [Path(name).resolve() for name in glob(local)]  # noqa: PTH207 == [folder / "raw/a.parquet"]
    options = service.prepare_options(["a.parquet"], tmp_path / "out", None)
    found = [options.base, options.names["track"].path, *glob(str(options.features[0].path))]  # noqa: PTH207
    assert [Path(str(place)).resolve() for place in found] == [folder / name for name in ("before", *["songs.csv"] * 2)]
    job = json.loads(service.job_text())
    board = next(each for each in service.increment_settings("runs/last") if each.startswith("tracking.tensorboard="))
    found = [job["checkpoint"]["warm_start_from"], job["model"]["start"]["track"], json.loads(board.partition("=")[2])]
    assert [Path(place).resolve() for place in found] == [folder / name for name in ("runs/first", "vectors", "board")]


def test_versions_without_a_condition_are_judged_by_the_metric_that_selects_epochs(tmp_path: Path) -> None:
    service = load_service(written(tmp_path, publish_if=None, job={"evaluate": {"best_metric": "recall@20"}}))
    assert (service.metric(), service.guard) == ("recall@20", None)


def test_increment_job_replaces_single_keys_of_job(tmp_path: Path) -> None:
    job = {"data": {"partitions": 2}, "train": {"epochs": 9, "seed": 3}, "evaluate": {"k": [10, 50]}}
    increment = {"train": {"epochs": 2}, "evaluate": {"k": [5, 10]}}
    service = load_service(written(tmp_path, job=job, increment_job=increment))
    assert json.loads(service.job_text())["data"] == {"partitions": 2, "path": "."}
    settings = service.increment_settings("runs/last")
    assert {*settings} == {*CONTINUED, "evaluate.k=[5, 10]", "train.epochs=2", "train.eval_every_epochs=2"}


def test_dates_of_yaml_are_the_text_that_options_take(tmp_path: Path) -> None:
    path = tmp_path / "music.yaml"
    path.write_text(
        "name: music\nevents: [a.parquet]\n"
        "prepare: {query: user, item: track, timestamp: at, since: 2026-01-31, until: 2026-02-01T12:00:00}\n"
    )
    options = load_service(path).prepare_options(["a.parquet"], tmp_path / "out", None)
    assert (options.since, options.until) == ("2026-01-31", "2026-02-01T12:00:00")


def test_invalid_files_are_named_with_the_key(tmp_path: Path) -> None:
    for cause, keys, expected in (
        ("an unknown key of a service", {"publish_when": "x"}, "publish_when"),
        ("a key that a service decides", {"prepare": {"out": "x"}}, "prepare.out"),
        ("a key that a service decides", {"job": {"data": {"path": "x"}}}, "job.data.path"),
        ("a key that a service decides", {"job": {"name": "x"}}, "job.name"),
        ("a key that a service decides", {"job": {"checkpoint": {"path": "x"}}}, "job.checkpoint.path"),
        ("a key that a service decides", {"increment_job": {"evaluate": {"at_start": False}}}, "evaluate.at_start"),
        (
            "a key that a service decides",
            {"increment_job": {"checkpoint": {"warm_start_from": "x"}}},
            "warm_start_from",
        ),
        ("an unknown key of a service's job", {"job": {"train": {"epoch": 3}}}, "train.epoch"),
        ("an invalid value of a service's increment_job", {"increment_job": {"train": {"epochs": "x"}}}, "epochs"),
        ("an invalid option of a service's prepare", {"prepare": {"memory": "lots"}}, "memory"),
        ("an invalid option of a service's prepare", {"prepare": {"iten": "track"}}, "iten"),
        ("a condition of another form", {"publish_if": "ndcg@10 > last"}, "'ndcg@10 > last'"),
        ("a condition of another form", {"publish_if": "gain@10 >= 0.9 * last"}, "gain@10"),
        ("a condition by a cutoff that is not evaluated", {"publish_if": "ndcg@7 >= 0.9 * last"}, "ndcg@7"),
    ):
        path = written(tmp_path, **keys)
        assert expected in rejected_here(cause, "refresh", path), cause


def test_files_that_are_no_service_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "music.yaml"
    rejected_here("a missing file of a service", "refresh", path)
    rejected_here("a file of a service that is a folder", "rollback", tmp_path)
    for cause, text in (
        ("a file of a service that is not YAML", "name: [\n"),
        ("a file of a service that is a list", "- music\n"),
        ("a service without a name", "events: [a.parquet]\n"),
    ):
        path.write_text(text)
        rejected_here(cause, "refresh", path)
    path.write_text("name: music\nevents: []\n")
    with pytest.raises(InputError, match="events: list should have at least 1 item"):
        load_service(path)


@pytest.mark.parametrize("text", ["0", "1w", "soon", "-5m"])
def test_interval_of_another_form_is_rejected(tmp_path: Path, text: str) -> None:
    rejected_here("an interval of another form", "refresh", written(tmp_path), f"--every={text}")


def test_version_fails_below_the_share_by_more_than_the_error() -> None:
    guard = Guard.parse(" recall@20>=0.9*last ")
    assert (guard, str(guard)) == (Guard("recall@20", 0.9), "recall@20 >= 0.9 * last")
    assert not guard.rejects(0.5, 0.45, 0.0)
    assert not guard.rejects(0.5, 0.44, 0.02)
    assert guard.rejects(0.5, 0.44, 0.005)
    assert not guard.rejects(None, 0.1, 0.0)
    assert guard.rejects(0.5, None, 0.0)
    assert guard.rejects(0.5, float("nan"), 0.0)


def test_what_would_fail_in_a_later_version_is_rejected_at_once(tmp_path: Path) -> None:
    for cause, keys in (
        ("a condition without events held out", {"prepare": {**VALID["prepare"], "hold_out_valid": "none"}}),
        (
            "a base dataset of a service on S3 that is elsewhere",
            {"remote": "s3://music/services/music", "prepare": {**VALID["prepare"], "base": "data/plays"}},
        ),
        ("a quarantine file of a service", {"prepare": {**VALID["prepare"], "on_bad_line": "quarantine=bad.jsonl"}}),
    ):
        rejected_here(cause, "refresh", written(tmp_path, **keys))
    for key in ("metrics.port", "cluster.shared_run_dir", "checkpoint.keep_latest"):
        section, _, name = key.partition(".")
        with pytest.raises(InputError, match=rf"job\.{key}: a service decides it"):
            load_service(written(tmp_path, job={section: {name: 1}}))
    with pytest.raises(InputError, match=r"increment_job\.train\.eval_every_epochs: a service decides it"):
        load_service(written(tmp_path, increment_job={"train": {"epochs": 2, "eval_every_epochs": 1}}))


def test_page_lists_every_key_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE))
    fields = ServiceConfig.model_fields
    assert list(rows) == list(fields)
    for name, field in fields.items():
        default = field.get_default(call_default_factory=True)
        expected = "required" if field.is_required() else f"`{json.dumps(default)}`".replace('"', "")
        assert rows[name].strip() == expected, name


def test_examples_of_the_page_are_valid(tmp_path: Path) -> None:
    examples = [text for text in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL) if "publish_if" in text]
    assert examples
    for text in examples:
        path = tmp_path / "music.yaml"
        path.write_text(text)
        assert load_service(path).name == "music"
