"""The Docker image as SageMaker starts it: one or two hosts, stopped in the middle and resumed."""

import json
import os
import shutil
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cluster_data import write_job, write_planted
from docker_engine import BUILD_OPTIONS, ROOT, Engine, tag_of
from object_store import ACCESS_KEY, BUCKET, SECRET_KEY
from paced_training import pace
from pyarrow import fs
from running_command import crossfade, records, succeeded
from sagemaker_folders import JOB, TOKEN, assert_same_model, parameters_of, prepare
from sagemaker_folders import SECTIONS as LONG
from waiting import wait_until

from crossfade.deploy.aws.sagemaker.container import SERVED_DATA_VARIABLE

pytestmark = pytest.mark.docker

IMAGE = "crossfade:sagemaker"
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
S3_IMAGE = tag_of(SERVICES["s3"]["image"])
HOSTS = ("algo-1", "algo-2")
EPOCHS = 9
SECTIONS = {**LONG, "train": {**LONG["train"], "epochs": EPOCHS}}
PARAMETERS = parameters_of({**JOB, "train.epochs": EPOCHS})
KERNELS = ("OPENBLAS_CORETYPE", "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NPY_DISABLE_CPU_FEATURES")
"""The variables that choose CPU kernels: results are compared bit for bit with runs outside of the container."""
SECONDS = 420.0
STOP_SECONDS = 120
"""SageMaker's time between SIGTERM and SIGKILL."""
S3_VARIABLES = {
    "AWS_ENDPOINT_URL": "http://s3:8333",
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_REGION": "us-east-1",
}


@pytest.fixture(scope="module")
def image(engine: Engine) -> str:
    """Build the image as docs/aws.md describes for ECR."""
    options = ("--file", "docker/Dockerfile", *BUILD_OPTIONS, "--network", "host")
    engine.docker("build", "--quiet", *options, "--build-arg", "RUN_AS=root", "--tag", IMAGE, ".")
    return IMAGE


@pytest.fixture
def network(engine: Engine) -> Iterator[str]:
    """Create a network; remove it at the end with its remaining containers."""
    name = f"sagemaker-{uuid.uuid4().hex[:8]}"
    engine.docker("network", "create", name)
    yield name
    if left := engine.docker("ps", "--all", "--quiet", "--filter", f"network={name}").split():
        engine.docker("rm", "--force", "--volumes", *left)
    engine.docker("network", "rm", name)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_planted(tmp_path / "data")


@pytest.fixture
def s3(engine: Engine, network: str, tmp_path: Path) -> fs.S3FileSystem:
    """Start an object store with the host name s3 in the network, and create its bucket."""
    identity = {"name": "job", "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]}
    identity["actions"] = ["Admin", "Read", "Write", "List", "Tagging"]  # type: ignore[assignment]
    config = tmp_path / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    container = engine.docker(
        *("run", "--detach", "--network", network, "--network-alias", "s3"),
        *("--volume", f"{config}:/s3.json:ro", "--entrypoint", "weed", S3_IMAGE),
        *("server", "-dir=/data", "-ip.bind=0.0.0.0", "-s3", "-s3.config=/s3.json", "-volume.max=20"),
        *("-master.volumeSizeLimitMB=256", "-master.telemetry=false"),
    )
    address = engine.inspect(container)["NetworkSettings"]["Networks"][network]["IPAddress"]
    client = fs.S3FileSystem(
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
        region="us-east-1",
        scheme="http",
        endpoint_override=f"{address}:8333",
        allow_bucket_creation=True,
        connect_timeout=2,
        request_timeout=5,
    )

    def made() -> bool:
        try:
            client.create_dir(BUCKET)
            with client.open_output_stream(f"{BUCKET}/ready") as file:
                file.write(b"1")
        except OSError:
            return False
        return True

    wait_until(made, f"a bucket in {address}", seconds=SECONDS)
    return client


class Container:
    """A training container of a host, as SageMaker runs it: ``docker run IMAGE train``, with /opt/ml from outside."""

    def __init__(self, engine: Engine, image: str, network: str, base: Path, name: str, **variables: str) -> None:
        self._engine, self.base = engine, base
        hook = base.parent / "hook"
        defined = {name: os.environ[name] for name in KERNELS if name in os.environ} | variables
        words = [word for key, value in defined.items() for word in ("--env", f"{key}={value}")]
        self.id = engine.docker(
            *("run", "--detach", "--network", network, "--hostname", name, "--network-alias", name),
            *("--volume", f"{base}:/opt/ml", "--volume", f"{hook}:/hook", *words, image, "train"),
        )

    @property
    def log(self) -> str:
        result = self._engine.run("docker", "logs", self.id)
        return result.stdout + result.stderr

    def wait_for_checkpoint(self, run: str) -> None:
        """Return once the run in ``run`` has evaluated an epoch and, after that, written a checkpoint."""

        def saved() -> bool:
            assert self._engine.inspect(self.id)["State"]["Running"], self.log
            kinds = [record["event"] for record in records(self.base / run)]
            return "epoch" in kinds and "checkpoint_saved" in kinds[kinds.index("epoch") :]

        wait_until(saved, f"a checkpoint in {run}", seconds=SECONDS)

    def exit_code(self) -> int:
        """Wait for its end and return its exit code."""

        def ended() -> bool:
            return not self._engine.inspect(self.id)["State"]["Running"]

        wait_until(ended, f"the end of the container: {self.log[-2000:]}", seconds=SECONDS)
        return int(self._engine.inspect(self.id)["State"]["ExitCode"])


def stop(engine: Engine, *containers: Container) -> None:
    """Stop all hosts of a job as SageMaker does: SIGTERM, then SIGKILL."""
    engine.docker("stop", "-t", str(STOP_SECONDS), *(container.id for container in containers))


def paced_in_container(workspace: Path) -> dict[str, str]:
    """Return the environment of a container whose steps are slow until ``workspace/hook/release`` exists."""
    variables = pace(workspace, workspace / "hook" / "release")
    return {name: value.replace(str(workspace / "hook"), "/hook") for name, value in variables.items()}


def upload(client: fs.S3FileSystem, folder: Path, path: str) -> str:
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        with client.open_output_stream(f"{BUCKET}/{path}/{file.relative_to(folder).as_posix()}") as out:
            out.write(file.read_bytes())
    return f"s3://{BUCKET}/{path}"


def test_two_stopped_hosts_are_resumed_by_two_others_with_the_same_result(
    engine: Engine, image: str, network: str, s3: fs.S3FileSystem, data: Path, tmp_path: Path
) -> None:
    write_job(tmp_path / "job.yaml", data, **SECTIONS)
    succeeded(
        crossfade("train", "job.yaml", "--run-dir", "uninterrupted", "--servers", 2, "--workers", 2, cwd=tmp_path)
    )
    data_uri, checkpoint_uri = upload(s3, data, "interactions"), f"s3://{BUCKET}/checkpoints"
    parameters = {**PARAMETERS, "data.path": data_uri, "checkpoint.path": checkpoint_uri}
    variables = {**S3_VARIABLES, "CROSSFADE_TOKEN": TOKEN, **paced_in_container(tmp_path)}

    def start(attempt: str) -> list[Container]:
        containers = []
        for name in reversed(HOSTS):  # the second has to wait until the first one's name can be resolved
            base = prepare(tmp_path / f"{attempt}-{name}", parameters, HOSTS, name)
            (base / "checkpoints").rmdir()
            containers.append(Container(engine, image, network, base, name, **variables))
        return containers[::-1]

    first, second = start("stopped")
    first.wait_for_checkpoint("run/algo-1")
    stop(engine, first, second)
    assert (first.exit_code(), second.exit_code()) == (143, 143), first.log + second.log

    (tmp_path / "hook" / "release").touch()
    first, second = start("new")
    assert (first.exit_code(), second.exit_code()) == (0, 0), first.log + second.log
    assert "resuming from step" in first.log
    assert_same_model(first.base / "model", tmp_path / "uninterrupted")
    assert sorted(path.name for path in (second.base / "output" / "data" / "algo-2" / "logs").iterdir()) == [
        *("server-1.log", "worker-1.log"),
    ]
    assert not list(tmp_path.rglob("output/failure"))


def test_one_host_resumes_from_the_checkpoint_folder_with_the_same_result(
    engine: Engine, image: str, network: str, data: Path, tmp_path: Path
) -> None:
    write_job(tmp_path / "job.yaml", data, **SECTIONS)
    succeeded(crossfade("train", "job.yaml", "--run-dir", "uninterrupted", cwd=tmp_path))
    variables = paced_in_container(tmp_path)

    def start(attempt: str) -> Container:
        base = prepare(tmp_path / attempt, PARAMETERS)
        shutil.copytree(data, base / "input" / "data" / "training")
        if attempt != "stopped":
            shutil.copytree(tmp_path / "stopped" / "checkpoints", base / "checkpoints", dirs_exist_ok=True)
        return Container(engine, image, network, base, "algo-1", **variables)

    container = start("stopped")
    container.wait_for_checkpoint("checkpoints/algo-1")
    stop(engine, container)
    assert container.exit_code() == 143, container.log
    (tmp_path / "hook" / "release").touch()
    container = start("new")
    assert container.exit_code() == 0, container.log
    assert "resuming from step" in container.log
    assert_same_model(container.base / "model", tmp_path / "uninterrupted")
    assert_served(engine, image, network, container.base)


def assert_served(engine: Engine, image: str, network: str, base: Path) -> None:
    """Start an endpoint's container with the model in ``base``, and send requests as SageMaker does."""
    id = engine.docker(
        *("run", "--detach", "--network", network, "--volume", f"{base / 'model'}:/opt/ml/model:ro"),
        *("--volume", f"{base / 'input' / 'data' / 'training'}:/data:ro", "--env", f"{SERVED_DATA_VARIABLE}=/data"),
        *(image, "serve"),
    )
    url = f"http://{engine.inspect(id)['NetworkSettings']['Networks'][network]['IPAddress']}:8080"

    def responds() -> bool:
        assert engine.inspect(id)["State"]["Running"], engine.run("docker", "logs", id).stderr
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
    engine.docker("stop", id)
    assert engine.inspect(id)["State"]["ExitCode"] == 0


def test_failed_job_writes_its_reason_to_the_failure_file(
    engine: Engine, image: str, network: str, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "hook").mkdir()
    diverging = {"optimizer.learning_rate": "1e30", "optimizer.kind": "sgd", "model.score": "dot"}
    base = prepare(tmp_path / "ml", {**PARAMETERS, "data.path": "/opt/ml/data", **diverging})
    shutil.copytree(data, base / "data")
    container = Container(engine, image, network, base, "algo-1")
    assert container.exit_code() == 1, container.log
    assert "finite" in (base / "output" / "failure").read_text()
