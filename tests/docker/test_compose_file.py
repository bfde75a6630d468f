"""docker-compose.yml as it is written, and the script that makes its secrets: what can be seen without Docker."""

import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = {"dashboard": 8050, "grafana": 3000, "prometheus": 9090}


@pytest.fixture(scope="module")
def compose_file() -> dict[str, Any]:
    """docker-compose.yml, as it is written."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def variables_of(text: str) -> dict[str, str]:
    """The variables of a compose file with their defaults."""
    return dict(re.findall(r"\$\{([A-Z0-9_]+):-([^}]*)\}", text))


def test_each_variable_stands_in_the_example_with_its_default() -> None:
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert len(re.findall(r"\$\{", compose)) == len(re.findall(r"\$\{[A-Z0-9_]+:-[^}]*\}", compose))
    example = dict(
        line.split("=", 1)
        for line in (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    assert example == variables_of(compose)


def test_only_what_people_look_at_publishes_a_port_and_on_loopback(compose_file: dict[str, Any]) -> None:
    services = compose_file["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    for name, inner in PUBLISHED.items():
        assert re.fullmatch(rf"127\.0\.0\.1:\$\{{[A-Z]+_PORT:-{inner}\}}:{inner}", published[name][0])
    assert {name: len(ports) for name, ports in published.items()} == dict.fromkeys(PUBLISHED, 1)
    assert compose_file["networks"] == {"inside": {"internal": True}, "outside": None}
    outside = {name for name, service in services.items() if "outside" in service.get("networks", ())}
    assert outside == {*PUBLISHED, "loader"}


def test_images_of_others_are_pinned_and_nothing_knows_a_secret_that_it_does_not_need(
    compose_file: dict[str, Any],
) -> None:
    mounts = {}
    for name, service in compose_file["services"].items():
        assert re.search(r":v?\d+\.\d+(\.\d+)?$", service["image"]) or service["image"].startswith("crossfade:")
        secret = {"S3_ACCESS_KEY", "S3_SECRET_KEY", "CROSSFADE_TOKEN", "GRAFANA_PASSWORD"}
        assert name == "secrets" or not secret & set(service.get("environment", {}))
        mounts[name] = {volume.split("-secrets:")[0] for volume in service.get("volumes", ()) if "-secrets:" in volume}
    in_job = {name: {"job"} for name in ("loader", "scheduler", "standby", "server", "worker", "job")}
    others = {"secrets": {"job", "s3", "grafana"}, "s3": {"s3"}, "grafana": {"grafana"}}
    assert mounts == {**in_job, **others, "prometheus": set(), "dashboard": set()}


# ---- secrets


def make_secrets(folder: Path, **given: str) -> subprocess.CompletedProcess[str]:
    for name in ("job", "s3", "grafana"):
        (folder / name).mkdir(exist_ok=True)
    environment = {"PATH": os.environ["PATH"], "SECRETS": str(folder), **given}
    script = str(ROOT / "docker" / "secrets.sh")
    return subprocess.run([script], env=environment, capture_output=True, text=True, check=False)


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_secrets_are_made_once_and_are_different_each_time(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        result = make_secrets(tmp_path / name)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    one, other = contents(tmp_path / "one"), contents(tmp_path / "other")
    assert set(one) == {"job/aws", "job/token", "s3/s3.json", "grafana/password"}
    assert all(one[name] != other[name] for name in one)
    assert re.fullmatch(r"[0-9a-f]{48}", one["job/token"])
    identity = yaml.safe_load(one["s3/s3.json"])["identities"][0]["credentials"][0]
    assert f"aws_access_key_id = {identity['accessKey']}\n" in one["job/aws"]
    assert f"aws_secret_access_key = {identity['secretKey']}\n" in one["job/aws"]
    assert make_secrets(tmp_path / "one").returncode == 0
    assert contents(tmp_path / "one") == one
    # A volume that was deleted: both sides get new keys.
    (tmp_path / "one/s3/s3.json").unlink()
    assert make_secrets(tmp_path / "one").returncode == 0
    again = contents(tmp_path / "one")
    assert again["job/aws"] != one["job/aws"]
    assert again["job/token"] == one["job/token"]


def test_secrets_that_are_given_are_taken(tmp_path: Path) -> None:
    assert make_secrets(tmp_path).returncode == 0
    keys = {"S3_ACCESS_KEY": "ours", "S3_SECRET_KEY": "ours/Secret+1="}
    assert make_secrets(tmp_path, CROSSFADE_TOKEN="a token", GRAFANA_PASSWORD='"quoted"', **keys).returncode == 0
    found = contents(tmp_path)
    assert (found["job/token"], found["grafana/password"]) == ("a token", '"quoted"')
    assert "ours/Secret+1=" in found["job/aws"]
    assert "ours/Secret+1=" in found["s3/s3.json"]
    # Users differ between images, so that everyone who mounts a volume can read it, and nobody write.
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in found} == {0o444}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"S3_ACCESS_KEY": "ours"}, "expected both S3_ACCESS_KEY and S3_SECRET_KEY, or none"),
        ({"S3_ACCESS_KEY": "a", "S3_SECRET_KEY": 'b"'}, "expected letters, digits and + / = _ . - alone"),
    ],
)
def test_keys_that_would_not_work_are_refused(tmp_path: Path, given: dict[str, str], said: str) -> None:
    result = make_secrets(tmp_path, **given)
    assert result.returncode == 2
    assert said in result.stderr
    assert contents(tmp_path) == {}
