"""What SageMaker and a training container have agreed: where files lie, what they say, and which host does what.

    /opt/ml/input/config/    hyperparameters.json  resourceconfig.json  inputdataconfig.json
    /opt/ml/input/data/NAME  what the channel NAME brought
    /opt/ml/checkpoints      copied to and from S3, the same for all hosts: so each has a folder of its own in it
    /opt/ml/model            becomes model.tar.gz on S3, that of all hosts together
    /opt/ml/output/failure   why the job failed; SageMaker shows the first 1,024 characters
    /opt/ml/output/data      becomes output.tar.gz on S3

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from deploy.topology import Address
from kvstore.errors import ClusterError, InputError
from trainer.config.loading import make_job
from trainer.config.schema import JobConfig
from trainer.runs.folder import EVENTS_FILE, FINAL_METRICS_FILE, JOB_FILE, LOCK_FILE, REPORT_FILE, RunFolder

BASE = Path("/opt/ml")
CHECKPOINTS = "/opt/ml/checkpoints"
TRAINING_CHANNEL = "shards"
"""The channel that takes the place of data.path."""
JOB_PARAMETER = "job"
"""The hyperparameter that may hold a whole job file."""
MAX_FAILURE = 1024
STOP_SECONDS = 110.0
"""How long a container may take to end: SageMaker kills it 120 seconds after SIGTERM."""
COORDINATOR_TIMEOUT_SECONDS = 900.0
"""How long a host may be without the first one before it fails, which ends the job: it costs money meanwhile."""
PORT_VARIABLE = "CROSSFADE_PORT"
"""Where the coordinator listens, if that is to be another port than ``PORT``."""
PORT = 7070
RESOLVE_SECONDS = 300.0
_RETRY_SECONDS = 1.0
_OTHERS = ("sagemaker_", "_tuning_objective_metric")
"""Hyperparameters that SageMaker and its libraries add for themselves."""
_NUMBER = r"([0-9.]+(?:e[+-]?[0-9]+)?|nan|inf)"


def value_pattern(name: str) -> str:
    """What finds the value of the metric ``name`` in a line of the log, as ``progress_line`` writes it."""
    return rf"(?:^|\s){re.escape(name)}={_NUMBER}"


def progress_pattern() -> str:
    """What finds there how much of the run is done, from 0 to 1."""
    return value_pattern("progress")


@dataclass(frozen=True)
class Paths:
    """Where things are in a training container, or in a folder that stands for one."""

    base: Path = BASE

    @property
    def config(self) -> Path:
        """What SageMaker says of the job."""
        return self.base / "input" / "config"

    @property
    def model(self) -> Path:
        """What the job is for."""
        return self.base / "model"

    @property
    def failure(self) -> Path:
        """The file that says why it failed."""
        return self.base / "output" / "failure"

    @property
    def output(self) -> Path:
        """What else is to be kept."""
        return self.base / "output" / "data"

    @property
    def checkpoints(self) -> Path:
        """What outlives an interruption, if the job has a place on S3 for it."""
        return self.base / "checkpoints"

    def channel(self, name: str) -> Path:
        """What the channel ``name`` brought."""
        return self.base / "input" / "data" / name

    def has_job(self) -> bool:
        """Whether SageMaker has started this container."""
        return self.config.is_dir()

    def read(self, name: str) -> dict[str, Any]:
        """A file of ``config``; empty if it is not there.

        Raises:
            InputError: it is not a JSON object.
        """
        path = self.config / name
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise InputError(f"{path}: expected a JSON object, but found {type(values).__name__}")
        return values


@dataclass(frozen=True)
class Hosts:
    """The hosts of a job, by the names that SageMaker gives them; ``own`` is this one's."""

    own: str
    names: tuple[str, ...]
    interface: str | None = None

    @staticmethod
    def read(paths: Paths) -> Hosts:
        """As resourceconfig.json says.

        Raises:
            InputError: it does not say which hosts there are, or which one this is.
        """
        values = paths.read("resourceconfig.json")
        own, names = (
            values.get("current_host"),
            tuple(sorted(values.get("hosts", ()), key=lambda name: (len(name), name))),
        )
        if not isinstance(own, str) or own not in names:
            raise InputError(
                f"{paths.config / 'resourceconfig.json'}: expected current_host, one of hosts, but found {own!r} and "
                f"{list(names)!r}"
            )
        return Hosts(own, names, values.get("network_interface_name"))

    @property
    def first(self) -> str:
        """The host that coordinates."""
        return self.names[0]

    def address(self, name: str, pause: Callable[[float], None] = time.sleep) -> str:
        """The numeric address of the host ``name``, which the others' names may not be known for a while after a start.

        Raises:
            ClusterError: it is not known after some minutes.
        """
        deadline = time.monotonic() + RESOLVE_SECONDS
        while True:
            try:
                found = str(socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
            except socket.gaierror as error:
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"the host {name} has no address after {RESOLVE_SECONDS:.0f} s: {error.strerror}"
                    ) from error
                pause(_RETRY_SECONDS)
                continue
            return self._outside(found) if name == self.own else found

    def _outside(self, found: str) -> str:
        """This host's address, that of its network card where its name stands for itself alone."""
        if not found.startswith("127.") or self.interface is None:
            return found
        cards = psutil.net_if_addrs().get(self.interface, [])
        others = (
            card.address for card in cards if card.family == socket.AF_INET and not card.address.startswith("127.")
        )
        return next(others, found)

    def coordinator(self) -> Address:
        """Where the agents of the other hosts find the coordinator."""
        return Address(self.address(self.first), int(os.environ.get(PORT_VARIABLE, PORT)))


def read_job(paths: Paths, hosts: Hosts) -> JobConfig:
    """The job that the hyperparameters describe, with its data, checkpoints and processes where they are here.

    A hyperparameter is a key of the job file, such as ``train.epochs``; ``job`` may hold a whole file, which the others
    override. All values are text, as ``--set`` takes it.

    Raises:
        InputError: they describe none.
    """
    source = paths.config / "hyperparameters.json"
    given = {key: value for key, value in paths.read(source.name).items() if not key.startswith(_OTHERS)}
    text = given.pop(JOB_PARAMETER, None)
    if text is not None and text.startswith('"'):  # SageMaker's own library has all values as JSON
        text = str(yaml.safe_load(text))
    overrides = [f"{key}={value}" for key, value in given.items()]
    if paths.channel(TRAINING_CHANNEL).is_dir():
        overrides.append(f"data.path={_text(str(paths.channel(TRAINING_CHANNEL)))}")
    overrides.append("cluster.shared_run_dir=false")
    if len(hosts.names) > 1:
        first = hosts.coordinator()
        overrides += [
            f"cluster.hosts={len(hosts.names)}",
            f"cluster.host={first.host}",
            f"cluster.coordinator_address={first}",
        ]
        if "cluster.servers" not in given:
            overrides.append(f"cluster.servers={len(hosts.names)}")
        if "cluster.workers" not in given:
            overrides.append(f"cluster.workers={len(hosts.names)}")
    if text is None and "cluster.grace_period_seconds" not in given:
        overrides.append(f"cluster.grace_period_seconds={STOP_SECONDS}")
    job = make_job(text or "{}", str(source), overrides)
    if job.cluster.grace_period_seconds > STOP_SECONDS:
        cluster = job.cluster.model_copy(update={"grace_period_seconds": STOP_SECONDS})
        job = job.model_copy(update={"cluster": cluster})
    return job


def _text(value: str) -> str:
    return yaml.safe_dump(value, default_flow_style=True).splitlines()[0]


def run_dir(paths: Paths, hosts: Hosts) -> Path:
    """The run folder of this host: where it outlives an interruption, if there is such a place."""
    return (paths.checkpoints if paths.checkpoints.is_dir() else paths.base / "run") / hosts.own


def restore_run(run: Path, job: JobConfig) -> None:
    """Make the folder ``run`` one of a run of ``job`` that can be taken up, if anything of it came back from S3.

    Not all need have come: what was written last may be missing, and so may files without content.

    Raises:
        OSError: it cannot be written.
    """
    if run.is_dir() and any(run.iterdir()):
        (run / LOCK_FILE).touch()
        if not (run / JOB_FILE).exists():
            (run / JOB_FILE).write_text(job.with_absolute_paths().to_yaml(), encoding="utf-8")


def export_model(paths: Paths, folder: RunFolder) -> None:
    """Copy what the job is for to the model: the embeddings, the report, the job and the records.

    Raises:
        OSError: there is no room.
    """
    paths.model.mkdir(parents=True, exist_ok=True)
    for name in (JOB_FILE, REPORT_FILE, EVENTS_FILE, FINAL_METRICS_FILE):
        if (folder.path / name).exists():
            shutil.copy(folder.path / name, paths.model / name)
    if folder.embeddings.exists():
        shutil.copytree(folder.embeddings, paths.model / folder.embeddings.name, dirs_exist_ok=True)


def keep_logs(paths: Paths, hosts: Hosts, folder: RunFolder) -> None:
    """Copy the logs of this host's roles to where SageMaker keeps them.

    Raises:
        OSError: there is no room.
    """
    if folder.logs.exists():
        shutil.copytree(folder.logs, paths.output / hosts.own / folder.logs.name, dirs_exist_ok=True)


def write_failure(paths: Paths, message: str) -> None:
    """Say why the job failed, where SageMaker looks for it.

    Raises:
        OSError: it cannot be written.
    """
    paths.failure.parent.mkdir(parents=True, exist_ok=True)
    paths.failure.write_text(message[:MAX_FAILURE], encoding="utf-8")
