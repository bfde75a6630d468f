"""Run docker-compose.yml on a real engine: a job whose containers are killed equals an uninterrupted run in process."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import requests
import yaml
from compose_job import ComposeJob
from docker_engine import Engine
from net_hosts import other_machine
from run_results import vectors
from running_command import crossfade, succeeded
from server_process import is_ok

from crossfade.trainer.prepare.lastfm import FALLBACK_SPEC
from crossfade.trainer.prepare.synthetic import write_synthetic

pytestmark = pytest.mark.docker

START_SECONDS = RESTART_SECONDS = END_SECONDS = 420.0


def job_yaml(max_steps: int | None = None, dataset: str = "s3://crossfade/sample") -> str:
    """Return a job file that trains until a test sets ``max_steps``, whatever the speed of the machine."""
    job = {
        "name": "sample",
        "data": {"path": dataset, "query": "customer", "item": "artist"},
        "model": {"dim": 8, "score": "cosine"},
        "negatives": {"kind": "shared", "count": 64},
        # A decaying schedule would depend on the planned steps, which a test changes later.
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
    """Start a job with ``docker compose up``; yield it when it trains."""
    job = ComposeJob(engine, tmp_path_factory.mktemp("compose"), HOST_TIMEOUT_SECONDS=3, CHECKPOINT_SECONDS=1000)
    job.write_job(job_yaml())
    try:
        with job.up() as up:
            job.wait(lambda: up.poll() is not None or job.step() >= 50, START_SECONDS, "the job's first steps")
            assert up.poll() is None, up.communicate()[0]
            yield job
    finally:
        job.compose("down", "--volumes", "--timeout", "5")


# ---- a running job


def test_prometheus_scrapes_every_role(job: ComposeJob) -> None:
    roles = {"agent", "coordinator", "scheduler", "server", "worker"}

    def scraped() -> bool:
        return {sample["metric"].get("role") for sample in job.query("crossfade_build_info")} == roles

    job.wait(scraped, START_SECONDS, "a scrape of every role")

    def steps_scraped() -> bool:
        return any(float(sample["value"][1]) > 0 for sample in job.query("max(crossfade_step)"))

    job.wait(steps_scraped, START_SECONDS, "a scrape after the first step")

    def all_up() -> bool:
        up = job.query('up{process!=""}')
        # Two servers, two workers, the scheduler, the coordinator, and an agent in each of four containers. Prometheus
        # spreads the first scrapes of targets over an interval, so they do not appear together.
        return sorted(sample["value"][1] for sample in up) == ["1"] * 10

    job.wait(all_up, START_SECONDS, "a scrape of all ten processes")
    processes = {sample["metric"]["process"] for sample in job.query('up{process!=""}')}
    assert processes >= {"server-0", "server-1", "worker-0", "worker-1"}


def test_dashboard_is_healthy_and_status_shows_the_run(job: ComposeJob) -> None:
    url = f"http://127.0.0.1:{job.ports['DASHBOARD_PORT']}"

    job.wait(lambda: is_ok(f"{url}/healthz"), START_SECONDS, "the dashboard")
    job.wait(lambda: job.inspect("dashboard")["State"]["Health"]["Status"] == "healthy", START_SECONDS, "healthy")
    assert "sample" in job.compose("exec", "--no-TTY", "dashboard", "crossfade", "status", "/runs/sample")


def test_ports_are_published_on_loopback_only(job: ComposeJob, engine: Engine) -> None:
    bound = set()
    for name in engine.docker("ps", "--format", "{{.Names}}").split():
        ports = engine.inspect(name)["NetworkSettings"]["Ports"] or {}
        bound |= {(each["HostIp"], int(each["HostPort"])) for bindings in ports.values() for each in bindings or ()}
    assert bound == {("127.0.0.1", job.ports[name]) for name in ("PROMETHEUS_PORT", "DASHBOARD_PORT")}
    listening = [c.laddr for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert {address.ip for address in listening if address.port in job.ports.values()} == {"127.0.0.1"}


def test_secrets_are_generated_and_not_leaked_to_environments_images_or_logs(job: ComposeJob, engine: Engine) -> None:
    files = ("job/aws", "job/token", "view/aws", "s3/s3.json", "grafana/password")
    content = {}
    for file in files:
        volume, _, name = file.partition("/")
        cat = ("run", "--rm", "--volume", f"crossfade-test_{volume}-secrets:/secrets:ro", "--entrypoint", "cat")
        content[file] = engine.docker(*cat, "--network", "none", "crossfade:cpu", f"/secrets/{name}")
    keys = re.findall(r"= (\w+)", content["job/aws"] + content["view/aws"])
    assert len(keys) == 4
    assert all(key in content["s3/s3.json"] for key in keys)
    secrets = [*keys, content["job/token"], content["grafana/password"]]
    assert len(set(secrets)) == 6
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for value in secrets)
    readable = job.logs() + (job.run_dir / "job.yaml").read_text()
    for name in engine.docker("ps", "--all", "--format", "{{.Names}}").split():
        readable += json.dumps(engine.inspect(name))
    assert not any(value in readable for value in secrets)


def test_processes_have_no_capabilities_and_cannot_change_their_image(job: ComposeJob, engine: Engine) -> None:
    names = engine.docker("ps", "--format", "{{.Names}}").split()
    assert {job.container(service) for service in ("s3", "scheduler", "server", "worker", "dashboard")} <= set(names)
    for name in names:
        lines = engine.docker("exec", name, "cat", "/proc/1/status").splitlines()
        status = {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}
        assert status["CapEff"] == status["CapPrm"] == status["CapBnd"] == ["0" * 16], name
        assert status["NoNewPrivs"] == ["1"], name
        assert "0" not in status["Uid"] + status["Gid"], name
        root = engine.docker("exec", name, "cat", "/proc/1/mounts").splitlines()[0].split()
        assert (root[1], root[3].split(",")[0]) == ("/", "ro"), name


CONNECT = """import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as connection:
    connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    assert connection.recv(5) == b"HTTP/"
"""


def test_containers_of_a_job_and_its_interfaces_reach_no_other_machine(job: ComposeJob, engine: Engine) -> None:
    with other_machine() as (address, port):
        connect = ("python3", "-c", CONNECT, address, str(port))
        # From a network with a way out, such as the loader's.
        engine.docker("run", "--rm", "--entrypoint", connect[0], "crossfade:cpu", *connect[1:])
        for service in ("dashboard", "worker", "server", "scheduler"):
            result = engine.run("docker", "exec", job.container(service), *connect, check=False)
            assert result.returncode == 1, service
            assert re.search(r"TimeoutError|Network is unreachable", result.stderr), (service, result.stderr)


# ---- killed containers


def wait_for_training(job: ComposeJob) -> None:
    """Wait for a new step. A killed role stops training at once, since each step needs all workers and servers."""
    later = time.time() + 2.0
    job.wait(lambda: any(r["event"] == "step" and r["time"] > later for r in job.records()), RESTART_SECONDS, "a step")


def test_job_with_killed_containers_ends_with_the_same_embeddings(job: ComposeJob, tmp_path: Path) -> None:
    job.kill("prometheus")
    job.kill("worker", 2)
    wait_for_training(job)
    job.kill("scheduler")
    wait_for_training(job)
    job.kill("s3")
    job.compose("start", "s3")
    wait_for_training(job)
    job.kill("server", 1)
    wait_for_training(job)
    # Each of the killed worker and server; the restart after the scheduler has another cause, as the standby took over.
    # On a loaded machine, other hosts may be late once more.
    assert sum("sent no heartbeat for 15 s" in cause for cause in job.restarts()) >= 2
    for service, number in (("job", 1), ("standby", 1), ("server", 2)):
        job.kill(service, number)
    steps = job.step() + 200
    job.write_job(job_yaml(max_steps=steps))
    with job.up() as up:  # restarts all killed containers
        job.wait(lambda: up.poll() is not None, END_SECONDS, "the end of the job")
        assert up.returncode == 0, up.communicate()[0]
    for service in ("scheduler", "standby", "server", "worker", "job"):
        job.wait(lambda name=service: job.exit_code(name) == 0, RESTART_SECONDS, f"exit code 0 of {service}")
    report = json.loads((job.run_dir / "report.json").read_text())
    assert report["steps"] == steps

    write_synthetic(tmp_path / "data", FALLBACK_SPEC, 0)
    (tmp_path / "job.yaml").write_text(job_yaml(max_steps=steps, dataset="data"))
    succeeded(crossfade("train", "job.yaml", "--run-dir", "run", cwd=tmp_path))
    for entity in ("customer", "artist"):
        np.testing.assert_allclose(vectors(job.run_dir, entity), vectors(tmp_path / "run", entity), atol=1e-4)


def test_dashboard_explores_the_finished_job_with_keys_that_only_read(job: ComposeJob, engine: Engine) -> None:
    job.compose("up", "--detach", "--wait", "--no-deps", "s3", "dashboard")
    address = f"http://127.0.0.1:{job.ports['DASHBOARD_PORT']}/explore/api/search?run=sample&text=artist"
    answer: dict[str, Any] = {}

    def has_answered() -> bool:
        response = requests.get(address, headers={"X-Requested-With": "test"}, timeout=60)
        response.raise_for_status()
        answer.clear()
        answer.update(response.json())
        return "preparing" not in answer

    job.wait(has_answered, RESTART_SECONDS, "an answer of Explore")  # which reads IDs and names in S3
    assert "error" not in answer, answer
    assert answer["rows"]
    write = "import boto3; boto3.client('s3').put_object(Bucket='crossfade', Key='sample/manifest.json', Body=b'')"
    rejected = engine.run(
        "docker", "exec", job.container("dashboard"), "/opt/crossfade/bin/python", "-c", write, check=False
    )
    assert "AccessDenied" in rejected.stderr


def test_model_of_the_finished_job_is_served(job: ComposeJob) -> None:
    assert job.exit_code("job") == 0
    job.compose("up", "--detach", "--wait", "--no-deps", "serve")
    found = requests.get(f"http://127.0.0.1:{job.ports['SERVE_PORT']}/recommend?id=1000001&k=3", timeout=60).json()
    ids = set(pq.read_table(job.run_dir / "embeddings" / "artist").column("id").to_pylist())
    assert len({item["id"] for item in found["result"]["items"]} & ids) == 3
