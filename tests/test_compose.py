"""docker-compose.yml on a real engine: a job whose containers are killed ends as an undisturbed one in process."""

import json
import re
import urllib.request
from collections.abc import Iterator

import psutil
import pytest
import yaml
from compose_job import PORTS, ComposeJob
from docker_engine import Engine

pytestmark = pytest.mark.docker

START_SECONDS = RESTART_SECONDS = END_SECONDS = 420.0


def settings(max_steps: int | None = None, shards: str = "s3://crossfade/sample") -> str:
    """The job file. How fast machines are does not matter: it trains until a test says how many steps it shall be."""
    job = {
        "name": "sample",
        "data": {"shards": shards, "query": "customer", "item": "artist"},
        "model": {"dim": 8, "score": "cosine"},
        "negatives": {"kind": "shared", "count": 64},
        "train": {"batch_size": 512, "epochs": 1000, "max_steps": max_steps, "patience": None, "evaluate_every": 1000},
        "checkpoint": {"every_steps": 100},
    }
    return yaml.safe_dump(job)


@pytest.fixture(scope="module")
def job(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeJob]:
    """A job that ``docker compose up`` has started, and that has begun to train."""
    job = ComposeJob(engine, tmp_path_factory.mktemp("compose"), REPLACE_SECONDS=3, CHECKPOINT_SECONDS=1000)
    job.write_job(settings())
    try:
        with job.up() as up:
            job.wait(lambda: up.poll() is not None or job.step() >= 50, START_SECONDS, "the job's first steps")
            assert up.poll() is None, up.communicate()[0]
            yield job
    finally:
        job.compose("down", "--volumes", "--timeout", "5")


# ---- while it runs


def test_prometheus_scrapes_every_role(job: ComposeJob) -> None:
    roles = {"agent", "coordinator", "scheduler", "server", "worker"}

    def scraped() -> bool:
        return {sample["metric"].get("role") for sample in job.query("crossfade_build_info")} == roles

    job.wait(scraped, START_SECONDS, "a scrape of every role")
    [steps] = job.query("max(crossfade_step)")
    assert float(steps["value"][1]) > 0
    up = job.query('up{process!=""}')
    # Two servers, two workers, the scheduler, the coordinator, and an agent in each of four containers.
    assert sorted(sample["value"][1] for sample in up) == ["1"] * 10
    assert {sample["metric"]["process"] for sample in up} >= {"server-0", "server-1", "worker-0", "worker-1"}


def test_the_dashboard_shows_the_run(job: ComposeJob) -> None:
    url = f"http://127.0.0.1:{job.ports['DASHBOARD_PORT']}"

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/healthz", timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    job.wait(answers, START_SECONDS, "the dashboard")
    job.wait(lambda: job.inspect("dashboard")["State"]["Health"]["Status"] == "healthy", 60, "its health")
    assert "sample" in job.compose("exec", "--no-TTY", "dashboard", "crossfade", "status", "/runs/sample")


def test_nothing_listens_outside_of_loopback(job: ComposeJob, engine: Engine) -> None:
    bound = set()
    for name in engine.docker("ps", "--format", "{{.Names}}").split():
        ports = engine.inspect(name)["NetworkSettings"]["Ports"] or {}
        bound |= {(each["HostIp"], int(each["HostPort"])) for given in ports.values() for each in given or ()}
    assert bound == {("127.0.0.1", job.ports[name]) for name in PORTS if name != "GRAFANA_PORT"}
    listening = [c.laddr for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert {address.ip for address in listening if address.port in job.ports.values()} == {"127.0.0.1"}


def test_secrets_are_made_and_in_no_environment_image_or_log(job: ComposeJob, engine: Engine) -> None:
    files = {"job": ("aws", "token"), "s3": ("s3.json",), "grafana": ("password",)}
    made = {}
    for volume, names in files.items():
        for name in names:
            look = ("run", "--rm", "--volume", f"crossfade-test_{volume}-secrets:/look:ro", "--entrypoint", "cat")
            made[name] = engine.docker(*look, "--network", "none", "crossfade:cpu", f"/look/{name}")
    keys = re.findall(r"= (\w+)", made["aws"])
    assert len(keys) == 2
    assert all(key in made["s3.json"] for key in keys)
    secret = [*keys, made["token"], made["password"]]
    assert len(set(secret)) == 4
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for value in secret)
    told = job.logs() + (job.run_dir / "job.yaml").read_text()
    for name in engine.docker("ps", "--all", "--format", "{{.Names}}").split():
        told += json.dumps(engine.inspect(name))
    assert not any(value in told for value in secret)
