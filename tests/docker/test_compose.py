"""docker-compose.yml on a real engine: a job whose containers are killed ends as an undisturbed one in process."""

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from compose_job import PORTS, ComposeJob
from docker_engine import Engine
from running_command import crossfade, succeeded

from kvstore.arrays import FloatArray
from trainer.prepare.lastfm import FALLBACK_SPEC
from trainer.prepare.synthetic import write_synthetic

pytestmark = pytest.mark.docker

START_SECONDS = RESTART_SECONDS = END_SECONDS = 420.0


def settings(max_steps: int | None = None, shards: str = "s3://crossfade/sample") -> str:
    """The job file. How fast machines are does not matter: it trains until a test says how many steps it shall be."""
    job = {
        "name": "sample",
        "data": {"path": shards, "query": "customer", "item": "artist"},
        "model": {"dim": 8, "score": "cosine"},
        "negatives": {"kind": "shared", "count": 64},
        # A schedule would go by the steps, which are more at first.
        "optimizer": {"kind": "adagrad", "learning_rate": 0.1, "schedule": "constant"},
        "train": {
            "batch_size": 512,
            "epochs": 1000,
            "max_steps": max_steps,
            "patience": None,
            "eval_every_epochs": 1000,
        },
        "checkpoint": {"interval_steps": 100},
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


# ---- killed containers, and the end


def vectors(run_dir: Path, entity: str) -> FloatArray:
    """All vectors of an entity, float32 (N, D)."""
    stacked: FloatArray = np.stack(pq.read_table(run_dir / "embeddings" / entity).column("vector").to_numpy())
    return stacked


def train_on(job: ComposeJob) -> None:
    """Wait until training goes on. What is killed stops it at once: all workers and servers take part in a step."""
    later = time.time() + 2.0
    job.wait(lambda: any(r["event"] == "step" and r["time"] > later for r in job.records()), RESTART_SECONDS, "a step")


def test_whichever_container_is_killed_the_job_ends_in_the_same_embeddings(job: ComposeJob, tmp_path: Path) -> None:
    job.kill("prometheus")
    job.kill("worker", 2)
    train_on(job)
    job.kill("scheduler")
    train_on(job)
    job.kill("s3")
    job.compose("start", "s3")
    train_on(job)
    job.kill("server", 1)
    train_on(job)
    # Beside those of the worker and the server, the standby has started it once.
    assert sum("was not heard of for 15 s" in cause for cause in job.restarts()) == 2
    for service, number in (("job", 1), ("standby", 1), ("server", 2)):
        job.kill(service, number)
    steps = job.step() + 200
    job.write_job(settings(max_steps=steps))
    with job.up() as up:  # brings all of them back
        job.wait(lambda: up.poll() is not None, END_SECONDS, "the end of the job")
        assert up.returncode == 0, up.communicate()[0]
    for service in ("scheduler", "standby", "server", "worker", "job"):
        job.wait(lambda name=service: job.exit_code(name) == 0, RESTART_SECONDS, f"exit code 0 of {service}")
    report = json.loads((job.run_dir / "report.json").read_text())
    assert report["steps"] == steps

    write_synthetic(tmp_path / "data", FALLBACK_SPEC, 0)
    (tmp_path / "job.yaml").write_text(settings(max_steps=steps, shards="data"))
    succeeded(crossfade("train", "job.yaml", "--run-dir", "run", cwd=tmp_path))
    for entity in ("customer", "artist"):
        np.testing.assert_allclose(vectors(job.run_dir, entity), vectors(tmp_path / "run", entity), atol=1e-4)
