"""Checks of docker-compose.yml, and of the script that generates its secrets, without Docker."""

import json
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from crossfade.deploy.capacity.plan import role_hosts
from crossfade.deploy.refresh.options import RefreshOptions
from crossfade.deploy.refresh.service_file import load_service
from crossfade.trainer.config.loading import load_job

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = ("cpu", "slim", "torch", "cu112", "cu90")
PUBLISHED = {"dashboard": 8050, "grafana": 3000, "prometheus": 9090, "serve": 8090}


@pytest.fixture(scope="module")
def compose_file() -> dict[str, Any]:
    """Return the parsed docker-compose.yml, with variables not expanded."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def command_of(compose_file: dict[str, Any], service: str = "scheduler") -> list[str]:
    """Return the arguments of a service."""
    words: list[str] = compose_file["services"][service]["command"]
    return words


def variables_of(text: str) -> dict[str, str]:
    """Return the variables of a compose file with their defaults."""
    return dict(re.findall(r"\$\{([A-Z0-9_]+):-([^}]*)\}", text))


def test_env_example_has_each_variable_with_its_default() -> None:
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert len(re.findall(r"\$\{", compose)) == len(re.findall(r"\$\{[A-Z0-9_]+:-[^}]*\}", compose))
    example = dict(
        line.split("=", 1)
        for line in (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    assert example == variables_of(compose)


def test_without_servers_each_worker_container_gets_a_worker_that_holds_tables(compose_file: dict[str, Any]) -> None:
    variables = variables_of(str(compose_file)) | {"SERVERS": "0", "WORKERS": "3"}
    words = [
        re.sub(r"\$\{(\w+):-[^}]*\}", lambda found: variables[found[1]], word) for word in command_of(compose_file)
    ]
    settings = [word.removeprefix("--set=") for word in words if word.startswith("--set=")]
    sizes = [f"cluster.{word.removeprefix('--')}" for word in words if re.match("--(servers|workers)=", word)]
    job = load_job(ROOT / "jobs" / "lastfm.yaml", [*settings, *sizes])
    assert [[role.name for role in roles] for roles in role_hosts(job)] == [
        [],
        ["worker-0"],
        ["worker-1"],
        ["worker-2"],
    ]
    accepted = {name: command_of(compose_file, name)[-1] for name in ("server", "worker")}
    assert accepted == {"server": "--roles=server", "worker": "--roles=worker"}


def test_only_user_interfaces_publish_ports_and_on_loopback(compose_file: dict[str, Any]) -> None:
    services = compose_file["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    for name, inner in PUBLISHED.items():
        assert re.fullmatch(rf"127\.0\.0\.1:\$\{{[A-Z]+_PORT:-{inner}\}}:{inner}", published[name][0])
    assert {name: len(ports) for name, ports in published.items()} == dict.fromkeys(PUBLISHED, 1)
    no_way_out = {"driver_opts": {"com.docker.network.bridge.enable_ip_masquerade": "false"}}
    assert compose_file["networks"] == {"inside": {"internal": True}, "published": no_way_out, "internet": None}
    networks = {name: set(service.get("networks", ())) for name, service in services.items()}
    assert {name for name, joined in networks.items() if "published" in joined} == set(PUBLISHED)
    assert {name for name, joined in networks.items() if "internet" in joined} == {"loader"}
    assert {name for name, joined in networks.items() if not joined} == {"secrets"}
    assert services["secrets"]["network_mode"] == "none"


def test_services_have_no_privileges_and_no_writable_root(compose_file: dict[str, Any]) -> None:
    for name, service in compose_file["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert not {"cap_add", "privileged", "devices"} & set(service), name
        # The images of Crossfade, Prometheus, and Grafana set a user; that of SeaweedFS starts as root.
        assert service.get("user") == ("10001:10001" if name == "s3" else None), name


def test_third_party_images_are_pinned_and_services_get_only_required_secrets(compose_file: dict[str, Any]) -> None:
    mounts = {}
    for name, service in compose_file["services"].items():
        pinned = re.search(r":v?\d+\.\d+(\.\d+)?@sha256:[0-9a-f]{64}$", service["image"])
        assert pinned or service["image"].startswith("crossfade:")
        secrets = {"S3_ACCESS_KEY", "S3_SECRET_KEY", "CROSSFADE_TOKEN", "GRAFANA_PASSWORD"}
        assert name == "secrets" or not secrets & set(service.get("environment", {}))
        mounts[name] = {volume.split("-secrets:")[0] for volume in service.get("volumes", ()) if "-secrets:" in volume}
    in_job = {name: {"job"} for name in ("loader", "scheduler", "standby", "server", "worker", "job")}
    others = {"secrets": {"job", "view", "s3", "grafana"}, "s3": {"s3"}, "grafana": {"grafana"}, "prometheus": set()}
    assert mounts == {**in_job, **others, "dashboard": {"view"}, "serve": {"view"}, "refresh": {"view"}}
    viewers = {"dashboard", "serve", "refresh"}
    for name in viewers:
        assert compose_file["services"][name]["environment"]["AWS_SHARED_CREDENTIALS_FILE"] == "/secrets/view/aws"
    for name in viewers - {"refresh"}:
        service = compose_file["services"][name]
        token = f"CROSSFADE_{name.upper()}_TOKEN"
        assert service["environment"][token] == f"${{{token}:-}}"
        assert "runs:/runs:ro" in service["volumes"]
        assert not any(volume.startswith("cache:") for volume in service["volumes"])


def test_refresh_starts_if_it_is_named_with_a_valid_file_and_where_prometheus_looks(
    compose_file: dict[str, Any],
) -> None:
    service = compose_file["services"]["refresh"]
    assert {name for name, each in compose_file["services"].items() if "profiles" in each} == {"refresh"}
    _, path, *words = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in command_of(compose_file, "refresh")]
    flags = {word.partition("=")[0].strip("-").replace("-", "_"): word.partition("=")[2] for word in words}
    options = RefreshOptions.of(service=path, **flags)
    assert (options.every, options.metrics_host) == (600, "0.0.0.0")
    config = load_service(ROOT / path.removeprefix("/"))
    assert [Path(events).parent for events in config.events] == [Path("/events")]
    assert {"./jobs:/jobs:ro", "${CROSSFADE_EVENTS:-./events}:/events:ro", "runs:/runs"} < set(service["volumes"])
    # Where 'serve' finds its versions: below the folder of runs.
    assert Path(service["working_dir"]) / config.path == Path("/runs/services") / config.name
    prometheus = yaml.safe_load((ROOT / "docker" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    [scraped] = [each for each in prometheus["scrape_configs"] if each["job_name"] == "crossfade-refresh"]
    [found] = scraped["dns_sd_configs"]
    assert (found["names"], found["port"], scraped["honor_labels"]) == (["refresh"], options.metrics_port, True)


def test_base_image_of_the_dockerfile_is_pinned() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^ARG BASE_IMAGE=debian:bookworm-\d{8}-slim@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)
    published = {image for image, _ in stages} - {name for _, name in stages}
    assert published == {
        *("${BASE_IMAGE}", "${CUDA_9_IMAGE}", "${CUDA_11_IMAGE}"),
        *("runtime-${VARIANT}", "horovod-${HOROVOD}-${VARIANT}"),
    }
    names = {name for _, name in stages}
    assert {f"{kind}-{variant}" for kind in ("runtime", "horovod-0") for variant in VARIANTS} <= names


# ---- secrets


def generate_secrets(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    for name in ("job", "view", "s3", "grafana"):
        (folder / name).mkdir(exist_ok=True)
    environment = {"PATH": os.environ["PATH"], "SECRETS": str(folder), **variables}
    script = str(ROOT / "docker" / "secrets.sh")
    return subprocess.run([script], env=environment, capture_output=True, text=True, check=False)


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_secrets_are_generated_once_and_differ_between_deployments(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        result = generate_secrets(tmp_path / name)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    first, second = contents(tmp_path / "first"), contents(tmp_path / "second")
    assert set(first) == {"job/aws", "job/token", "view/aws", "s3/s3.json", "grafana/password"}
    assert all(first[name] != second[name] for name in first)
    assert re.fullmatch(r"[0-9a-f]{48}", first["job/token"])
    identities = {each["name"]: each for each in json.loads(first["s3/s3.json"])["identities"]}
    assert set(identities) == {"job", "view"}
    assert identities["view"]["actions"] == ["Read", "List"]
    for name, identity in identities.items():
        [keys] = identity["credentials"]
        assert f"aws_access_key_id = {keys['accessKey']}\n" in first[f"{name}/aws"]
        assert f"aws_secret_access_key = {keys['secretKey']}\n" in first[f"{name}/aws"]
    assert generate_secrets(tmp_path / "first").returncode == 0
    assert contents(tmp_path / "first") == first
    # After the volume of S3 was deleted, the job and S3 get new keys.
    (tmp_path / "first/s3/s3.json").unlink()
    assert generate_secrets(tmp_path / "first").returncode == 0
    again = contents(tmp_path / "first")
    assert again["job/aws"] != first["job/aws"]
    assert again["job/token"] == first["job/token"]


def test_secrets_in_the_environment_are_used(tmp_path: Path) -> None:
    assert generate_secrets(tmp_path).returncode == 0
    keys = {"S3_ACCESS_KEY": "ours", "S3_SECRET_KEY": "ours/Secret+1="}
    assert generate_secrets(tmp_path, CROSSFADE_TOKEN="a token", GRAFANA_PASSWORD='"quoted"', **keys).returncode == 0
    files = contents(tmp_path)
    assert (files["job/token"], files["grafana/password"]) == ("a token", '"quoted"')
    assert "ours/Secret+1=" in files["job/aws"]
    assert "ours/Secret+1=" in files["s3/s3.json"]
    # User IDs differ between images, so all users of a volume may read it; none may write.
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in files} == {0o444}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"S3_ACCESS_KEY": "ours"}, "expected both S3_ACCESS_KEY and S3_SECRET_KEY, or none"),
        ({"S3_ACCESS_KEY": "a", "S3_SECRET_KEY": 'b"'}, "expected letters, digits and + / = _ . - only"),
    ],
)
def test_invalid_keys_are_rejected(tmp_path: Path, variables: dict[str, str], expected: str) -> None:
    result = generate_secrets(tmp_path, **variables)
    assert result.returncode == 2
    assert expected in result.stderr
    assert contents(tmp_path) == {}
