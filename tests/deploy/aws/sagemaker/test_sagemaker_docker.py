"""The Docker image as SageMaker starts it: a host that is stopped and resumed, and an endpoint with its model."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from cluster_data import write_planted
from docker_engine import BUILD_OPTIONS, Engine
from paced_training import pace
from running_command import records
from sagemaker_folders import JOB, parameters_of, prepare
from waiting import wait_until

from crossfade.deploy.aws.sagemaker.container import SERVED_DATA_VARIABLE

pytestmark = pytest.mark.docker

IMAGE = "crossfade:sagemaker"
SECONDS = 420.0
STOP_SECONDS = "120"
"""SageMaker's time between SIGTERM and SIGKILL."""


def start(engine: Engine, verb: str, *options: object) -> str:
    """Start a container as SageMaker does, ``docker run IMAGE VERB``; return its ID."""
    return engine.docker("run", "--detach", *map(str, options), IMAGE, verb)


def state(engine: Engine, container: str) -> dict[str, Any]:
    """Return the state of a container, with its log."""
    result = engine.run("docker", "logs", container)
    return {**engine.inspect(container)["State"], "log": result.stdout + result.stderr}


def test_stopped_host_resumes_from_the_checkpoint_folder_and_its_model_is_served(
    engine: Engine, tmp_path: Path
) -> None:
    # As docs/aws.md builds it for ECR.
    options = ("--file", "docker/Dockerfile", *BUILD_OPTIONS, "--network", "host")
    engine.docker("build", "--quiet", *options, "--build-arg", "RUN_AS=root", "--tag", IMAGE, ".")
    base, hook, release = tmp_path / "ml", tmp_path / "hook", tmp_path / "hook" / "release"
    prepare(base, parameters_of({**JOB, "train.epochs": 9}))
    data = write_planted(base / "input" / "data" / "training")
    variables = {name: value.replace(str(hook), "/hook") for name, value in pace(tmp_path, release).items()}
    words = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
    words += ["--volume", f"{base}:/opt/ml", "--volume", f"{hook}:/hook"]

    first = start(engine, "train", *words)

    def has_saved() -> bool:
        assert state(engine, first)["Running"], state(engine, first)
        return any(record["event"] == "checkpoint_saved" for record in records(base / "checkpoints" / "algo-1"))

    wait_until(has_saved, "a checkpoint", seconds=SECONDS)
    engine.docker("stop", "-t", STOP_SECONDS, first)
    assert state(engine, first)["ExitCode"] == 143, state(engine, first)
    release.touch()
    second = start(engine, "train", *words)
    wait_until(lambda: not state(engine, second)["Running"], "its end", seconds=SECONDS)
    ended = state(engine, second)
    assert ended["ExitCode"] == 0, ended
    assert "resuming from step" in ended["log"]

    volumes = ("--volume", f"{base / 'model'}:/opt/ml/model:ro", "--volume", f"{data}:/data:ro")
    serving = start(engine, "serve", *volumes, "--env", f"{SERVED_DATA_VARIABLE}=/data")
    url = f"http://{engine.inspect(serving)['NetworkSettings']['Networks']['bridge']['IPAddress']}:8080"

    def responds() -> bool:
        assert state(engine, serving)["Running"], state(engine, serving)
        try:
            with urllib.request.urlopen(f"{url}/ping", timeout=60) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    wait_until(responds, "the endpoint", seconds=SECONDS)
    body = json.dumps({"ids": ["c010"], "k": 3}).encode()
    request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        [result] = json.load(response)["results"]
    assert len(result["items"]) == 3
    engine.docker("stop", serving)
    assert state(engine, serving)["ExitCode"] == 0
