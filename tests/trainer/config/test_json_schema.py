"""``crossfade schema``: the JSON Schema accepts the jobs that training accepts, and rejects typical mistakes."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from command_here import crossfade_here

from crossfade.base.errors import InputError
from crossfade.trainer.config.json_schema import explain_fields, job_schema
from crossfade.trainer.config.loading import check_job

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = job_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
_YAML_BLOCK = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def documented_jobs() -> list[tuple[str, str]]:
    """Return the text of each job in ``jobs/`` and in the documentation, with where it is."""
    jobs = [(path.name, path.read_text(encoding="utf-8")) for path in sorted((ROOT / "jobs").glob("*.yaml"))]
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        blocks = _YAML_BLOCK.findall(page.read_text(encoding="utf-8"))
        jobs += [(page.name, block) for block in blocks if is_job(yaml.safe_load(block))]
    return jobs


def is_job(found: object) -> bool:
    """Return whether a YAML document has the keys that every job has: others are services, rules, or manifests."""
    return isinstance(found, dict) and {"name", "data"} <= set(found)


def job(**sections: Any) -> dict[str, Any]:
    return {"name": "plays", "data": {"path": "data/plays"}, **sections}


def problems(values: Any) -> list[str]:
    """Return where the schema finds problems, as dotted keys."""
    return [".".join(map(str, error.absolute_path)) for error in VALIDATOR.iter_errors(values)]


def is_accepted(values: dict[str, Any]) -> bool:
    try:
        check_job(values, "job")
    except InputError:
        return False
    return True


@pytest.mark.parametrize(("where", "text"), documented_jobs(), ids=lambda value: value if len(value) < 40 else "")
def test_documented_job_is_valid(where: str, text: str) -> None:
    assert problems(yaml.safe_load(text)) == [], where


def test_jobs_in_the_documentation_are_found() -> None:
    assert {"lastfm.yaml", "reference.md", "training.md"} <= {where for where, _ in documented_jobs()}


def test_job_with_every_default_is_valid() -> None:
    complete = check_job(job(), "job").to_yaml()
    assert problems(yaml.safe_load(complete)) == []


@pytest.mark.parametrize(
    ("values", "where"),
    [
        (job(verbose=True), ""),
        ({"name": "plays"}, ""),
        (job(train={"epochs": "many"}), "train.epochs"),
        (job(loss="bpt"), "loss"),
        (job(evaluate={"best_metric": "auc@10"}), "evaluate.best_metric"),
        (job(tracking={"mlflow": "mlflow:5000"}), "tracking.mlflow"),
    ],
    ids=lambda value: json.dumps(value)[49:-1] if isinstance(value, dict) else "",
)
def test_mistake_is_rejected_where_it_is(values: dict[str, Any], where: str) -> None:
    found = problems(values)
    assert found
    assert all(problem.startswith(where) for problem in found), found
    assert not is_accepted(values)


def test_every_key_has_its_description_and_default() -> None:
    explained = list(explain_fields())
    assert [key for key, *_ in explained] == list(check_job(job(), "job").values())
    for key, kind, default, description in explained:
        assert min(map(len, (kind, default, description))) > 0, key
        schema = SCHEMA
        for part in key.split("."):
            schema = schema["properties"][part]
            schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        assert schema["description"] == description
        assert "title" not in schema
        if default != "required":
            assert schema["default"] == yaml.safe_load(default), key
    assert SCHEMA["$defs"]["TrainConfig"]["description"] == "The training loop."
    assert SCHEMA["properties"]["name"]["examples"] == ["plays"]


@pytest.mark.slow
def test_command_prints_a_valid_schema() -> None:
    assert json.loads(crossfade_here("schema").stdout) == SCHEMA
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
