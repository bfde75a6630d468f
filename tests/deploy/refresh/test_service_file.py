"""The file of a service: what is invalid is named by its key before anything is done."""

import json
import re
from glob import glob
from pathlib import Path
from typing import Any

import pytest
from command_here import crossfade_here
from refreshed_service import rejected

from crossfade.deploy.refresh.judging import Guard, decide
from crossfade.deploy.refresh.service_file import ServiceConfig, load_service
from crossfade.deploy.refresh.versions import EventFile, Plan
from crossfade.trainer.data.manifest import DatasetManifest, Entity

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


def test_minimal_file_has_defaults(tmp_path: Path) -> None:
    service = load_service(written(tmp_path))
    assert service.path == tmp_path / "services/music"
    assert (service.metric(), service.guard) == ("ndcg@10", Guard("ndcg@10", 0.98))
    assert json.loads(service.first_job("data")) == {"name": "music", "data": {"path": "data"}}
    continued = {
        "name": "music",
        "data": {"path": "data"},
        "train": {"epochs": 4, "eval_every_epochs": 4},
        "evaluate": {"at_start": True},
        "checkpoint": {"warm_start_from": "runs/last"},
    }
    assert json.loads(service.next_job("data", "runs/last", None)) == continued
    kept = json.loads(service.next_job("data", "runs/last", popularity=0.4, epochs=1))
    assert kept == continued | {"train": {"epochs": 1, "eval_every_epochs": 1}, "model": {"popularity": 0.4}}
    own = load_service(written(tmp_path, increment_job={}))
    assert json.loads(own.next_job("data", "runs/last", None))["train"] == {"epochs": 40, "eval_every_epochs": 40}
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
        job={"checkpoint": {"warm_start_from": "runs/first"}},
        increment_job={"train": {"epochs": 1}},
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
    job = json.loads(service.first_job())
    assert Path(job["checkpoint"]["warm_start_from"]).resolve() == folder / "runs/first"


PREPARE = VALID["prepare"]


@pytest.mark.parametrize(
    ("keys", "phrase"),
    [
        ({"publish_when": "x"}, "publish_when"),
        ({"prepare": {"out": "x"}}, "prepare.out: a service decides it"),
        ({"job": {"data": {"path": "x"}}}, "job.data.path: a service decides it"),
        ({"job": {"metrics": {"port": 1}}}, "job.metrics.port: a service decides it"),
        ({"increment_job": {"checkpoint": {"warm_start_from": "x"}}}, "warm_start_from: a service decides it"),
        ({"job": {"train": {"epoch": 3}}}, "train.epoch"),
        ({"increment_job": {"train": {"epochs": "x"}}}, "epochs"),
        ({"prepare": {"memory": "lots"}}, "memory"),
        ({"prepare": {"iten": "track"}}, "iten"),
        ({"publish_if": "ndcg@10 > last"}, "'ndcg@10 > last'"),
        ({"publish_if": "gain@10 >= 0.9 * last"}, "gain@10"),
        ({"publish_if": "ndcg@7 >= 0.9 * last"}, "the job does not evaluate ndcg@7"),
        ({"prepare": {**PREPARE, "hold_out_valid": "none"}}, "prepare.hold_out_valid leaves none"),
        ({"remote": "s3://music/services", "prepare": {**PREPARE, "base": "data"}}, "prepare.base: must be on S3 too"),
    ],
)
def test_invalid_file_is_rejected_with_the_key_before_anything_is_done(
    tmp_path: Path, keys: dict[str, Any], phrase: str
) -> None:
    rejected(crossfade_here("refresh", written(tmp_path, **keys)), "music.yaml: ", phrase)


@pytest.mark.parametrize(
    ("before", "after", "errors", "is_met"),
    [
        (0.5, 0.45, (0.0, 0.0), True),
        (0.5, 0.44, (0.0, 0.02), True),
        (0.5, 0.44, (0.002, 0.005), False),
        (0.05, 0.0, (0.05, 0.0), True),
        (0.05, 0.0, (0.04, 0.0), False),
        (0.5, float("nan"), (0.0, 0.0), False),
        (0.5, None, (0.0, 0.0), False),
        (None, 0.1, (0.0, 0.0), True),
    ],
)
def test_version_fails_below_the_share_by_more_than_the_error(
    before: float | None, after: float | None, errors: tuple[float, float], is_met: bool
) -> None:
    known = {"queries": 9, "recall@20": before, "recall@20_se": errors[0]}
    start = {"queries": 0, "recall@20": 0.0} if before is None else known
    valid = {} if after is None else {"valid": {"recall@20": after, "recall@20_se": errors[1]}}
    report = {"valid_at_start": start, "metrics": valid, "popularity": None}
    entities = {name: Entity(rows=1, id_type="string", files=[]) for name in ("customer", "track")}
    manifest = DatasetManifest(query="customer", item="track", entities=entities, splits={})

    def status(guard: str | None, *files: EventFile) -> str:
        plan, known = Plan(number=2, base=1, files=list(files)), guard and Guard.parse(guard)
        return decide(plan, manifest, report, "recall@20", known or None, {}).status

    file = EventFile(uri="day-002.csv", state="1", bytes=1)
    assert status(" recall@20>=0.9*last ", file) == ("published" if is_met else "rejected")
    assert status(None, file) == status("recall@20 >= 9 * last") == "published"


def test_page_lists_every_key_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE))
    fields = ServiceConfig.model_fields
    assert list(rows) == list(fields)
    for name, field in fields.items():
        default = field.get_default(call_default_factory=True)
        expected = "required" if field.is_required() else f"`{json.dumps(default)}`".replace('"', "")
        assert rows[name].strip() == expected, name
