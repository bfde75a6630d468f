"""``crossfade refresh --schedule``: what it prints is what schedulers accept."""

import json
import re
from pathlib import Path

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from command_here import crossfade_here, rejected_here
from running_command import succeeded

PAGE = Path(__file__).parents[3] / "docs" / "fresh-models.md"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path)


def written(folder: Path, **keys: str) -> Path:
    """Write the file of a service."""
    values = {"name": "music", "events": ["events/*"], "prepare": {"query": "customer", "item": "track"}, **keys}
    path = folder / "music.yaml"
    path.write_text(json.dumps(values))
    return path


def printed(file: Path, scheduler: str, every: str) -> str:
    """Return what the command prints."""
    return succeeded(crossfade_here("refresh", file, "--every", every, "--schedule", scheduler)).stdout


@pytest.mark.parametrize(
    ("every", "times"),
    [("1m", "* * * * *"), ("600", "*/10 * * * *"), ("1h", "0 * * * *"), ("6h", "0 */6 * * *"), ("24h", "0 0 * * *")],
)
def test_line_of_cron_has_the_interval(file: Path, every: str, times: str) -> None:
    line = printed(file, "cron", every)
    assert line.startswith(f"{times}  cd {Path.cwd()} && .venv/bin/crossfade refresh {file} >> music-refresh.log")


def test_cron_job_is_that_of_the_page_and_has_no_volume_for_a_service_on_s3(tmp_path: Path) -> None:
    [block] = re.findall(r"```yaml\n(apiVersion: batch/v1\n.*?)```", PAGE.read_text(), re.DOTALL)
    assert printed(written(tmp_path), "kubernetes", "1h") == block
    manifest = yaml.safe_load(printed(written(tmp_path, remote="s3://music/services/music"), "kubernetes", "1h"))
    volumes = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]["volumes"]
    assert [volume["name"] for volume in volumes] == ["config"]


def test_schedule_of_eventbridge_has_the_form_of_its_api(tmp_path: Path) -> None:
    schedule = json.loads(printed(written(tmp_path, remote="s3://music/services/music"), "eventbridge", "90m"))
    shape = botocore.session.get_session().get_service_model("scheduler").operation_model("CreateSchedule").input_shape
    assert ParamValidator().validate(schedule, shape).generate_report() == ""
    assert schedule["ScheduleExpression"] == "rate(90 minutes)"
    overrides = json.loads(schedule["Target"]["Input"])
    assert overrides["containerOverrides"][0]["command"] == ["refresh", "/config/music.yaml"]


def test_what_a_scheduler_cannot_do_is_rejected(file: Path) -> None:
    rejected_here("a schedule without an interval", "refresh", file, "--schedule", "cron")
    for every in ("7m", "90m", "2d", "30"):
        rejected_here("an interval that cron does not have", "refresh", file, "--schedule", "cron", "--every", every)
    eventbridge = ("refresh", file, "--schedule", "eventbridge", "--every")
    rejected_here("a schedule of EventBridge for a local service", *eventbridge, "1h")
    written(file.parent, remote="s3://music/services/music")
    rejected_here("an interval that EventBridge does not have", *eventbridge, "90s")
