"""The contract between SageMaker and a training container: paths, hyperparameters, hosts and results.

    paths = Paths()
    hosts = Hosts.read(paths)
    job = read_job(paths, hosts)

    /opt/ml/input/config/    hyperparameters.json  resourceconfig.json  inputdataconfig.json
    /opt/ml/input/data/NAME  data of the channel NAME
    /opt/ml/checkpoints      synchronized with S3; all hosts share it, so each uses its own folder in it
    /opt/ml/model            becomes model.tar.gz on S3, with the files of all hosts
    /opt/ml/output/failure   reason of a failure; SageMaker shows the first 1,024 characters
    /opt/ml/output/data      becomes output.tar.gz on S3

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from crossfade.base.errors import ClusterError, InputError
from crossfade.base.io.durable_file import replace_file
from crossfade.deploy.topology import Address, sizes_on_hosts
from crossfade.trainer.config.loading import make_job
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.runs.job_inputs import open_inputs
from crossfade.trainer.runs.run_folder import EVENTS_FILE, JOB_FILE, REPORT_FILE, RunFolder
from crossfade.trainer.runs.run_lock import LOCK_FILE

BASE = Path("/opt/ml")
CHECKPOINTS = "/opt/ml/checkpoints"
TRAINING_CHANNEL = "training"
"""The channel that replaces data.path."""
SERVED_DATA_VARIABLE = "CROSSFADE_SERVE_DATA"
"""Names the dataset on S3 of a model that is served, whose archive has none."""
MAX_FAILURE_CHARACTERS = 1024
STOP_SECONDS = 110.0
"""Time for a container to end: SageMaker kills it 120 seconds after SIGTERM."""
COORDINATOR_TIMEOUT_SECONDS = 900.0
"""Time without a coordinator after which a host fails, and with it the job, which would cost money while waiting."""
PORT_VARIABLE = "CROSSFADE_PORT"
"""Overrides ``PORT``, where the coordinator listens."""
PORT = 7070
_RESERVED = ("sagemaker_", "_tuning_objective_metric")
"""Prefixes of hyperparameters that SageMaker and its libraries add."""


class Paths:
    """Paths in a training container, or in a folder with the same layout.

    Attributes:
        config: the folder of SageMaker's description of the job.
        model: the folder of the results.
        failure: the file with the reason of a failure.
        output: the folder of other files that SageMaker stores.
        checkpoints: the folder that survives interruptions, if the job has a CheckpointConfig.
    """

    def __init__(self, base: Path = BASE) -> None:
        """Use the layout below ``base``."""
        self.base, self.config = base, base / "input" / "config"
        self.model, self.checkpoints = base / "model", base / "checkpoints"
        self.failure, self.output = base / "output" / "failure", base / "output" / "data"

    def channel(self, name: str) -> Path:
        """Return the folder of the channel ``name``."""
        return self.base / "input" / "data" / name

    def has_job(self) -> bool:
        """Return whether SageMaker has started this container."""
        return self.config.is_dir()

    def read(self, name: str) -> dict[str, Any]:
        """Return the JSON object in the file ``name`` of ``config``; empty if there is no such file.

        Raises:
            InputError: it is not a JSON object.
        """
        path = self.config / name
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot read it: {error}") from error
        if not isinstance(values, dict):
            raise InputError(f"{path}: expected a JSON object, but found {type(values).__name__}")
        return values


@dataclass(frozen=True)
class Hosts:
    """The hosts of a job, by the names that SageMaker gives them; ``current`` is this one's."""

    current: str
    names: tuple[str, ...]
    interface: str | None = None

    @staticmethod
    def read(paths: Paths) -> Hosts:
        """Read the hosts from resourceconfig.json.

        Raises:
            InputError: it does not list the hosts, or this host is not among them.
        """
        values = paths.read("resourceconfig.json")
        current = values.get("current_host")
        names = tuple(sorted(values.get("hosts", ()), key=lambda name: (len(name), name)))  # algo-2 before algo-10
        if not isinstance(current, str) or current not in names:
            raise InputError(
                f"{paths.config / 'resourceconfig.json'}: expected current_host among hosts, but found {current!r} and "
                f"{list(names)!r}"
            )
        return Hosts(current, names, values.get("network_interface_name"))

    @property
    def first(self) -> str:
        """The host of the coordinator."""
        return self.names[0]

    def address(self) -> str:
        """Return the IPv4 address of this host: of its network interface, if its name leads to loopback.

        Raises:
            ClusterError: its name cannot be resolved.
        """
        try:
            found = socket.gethostbyname(self.current)
        except socket.gaierror as error:
            raise ClusterError(f"cannot resolve the name of this host, {self.current}: {error.strerror}") from error
        entries = psutil.net_if_addrs().get(self.interface or "", []) if found.startswith("127.") else []
        ipv4 = (entry.address for entry in entries if entry.family == socket.AF_INET)
        return next((candidate for candidate in ipv4 if not candidate.startswith("127.")), found)

    def coordinator(self) -> Address:
        """Return the address of the coordinator, by the name of its host, which agents resolve again and again."""
        return Address(self.first, int(os.environ.get(PORT_VARIABLE, PORT)))


def read_job(paths: Paths, hosts: Hosts) -> JobConfig:
    """Return the job of the hyperparameters, with data, checkpoints and cluster set for this container.

    A hyperparameter is a key of the job file, such as ``train.epochs``. All values are text, as on a command line.
    Where they leave servers and workers open, several hosts get as many as ``sizes_on_hosts`` says.

    Raises:
        InputError: they do not describe a valid job.
    """
    source = paths.config / "hyperparameters.json"
    given = {key: value for key, value in paths.read(source.name).items() if not key.startswith(_RESERVED)}
    given = {"cluster.grace_period_seconds": str(STOP_SECONDS), **given, "cluster.shared_run_dir": "false"}
    if paths.channel(TRAINING_CHANNEL).is_dir():
        given["data.path"] = yaml.safe_dump(str(paths.channel(TRAINING_CHANNEL))).splitlines()[0]
    if len(hosts.names) > 1:
        address = Address(hosts.address(), hosts.coordinator().port)
        given |= {"cluster.hosts": str(len(hosts.names)), "cluster.host": address.host}
        given["cluster.coordinator_address"] = str(address)
    job = _make_job(given, str(source))
    if sizes := sizes_on_hosts(job.cluster, len(hosts.names)):
        job = _make_job({**given, **{f"cluster.{key}": str(value) for key, value in sizes.items()}}, str(source))
    grace = min(job.cluster.grace_period_seconds, STOP_SECONDS)
    return job.model_copy(update={"cluster": job.cluster.model_copy(update={"grace_period_seconds": grace})})


def _make_job(values: dict[str, str], source: str) -> JobConfig:
    overrides = [f"{key}={value}" for key, value in values.items()]
    return make_job("{}", source, overrides, dict.fromkeys(overrides, source))


def run_dir(paths: Paths, hosts: Hosts) -> Path:
    """Return the run folder of this host: below ``checkpoints`` if there is one, where it survives interruptions."""
    return (paths.checkpoints if paths.checkpoints.is_dir() else paths.base / "run") / hosts.current


def restore_run(run: Path, job: JobConfig) -> None:
    """Make the folder ``run`` that SageMaker restored from S3 resumable; an empty one stays unchanged.

    SageMaker may not restore the last files that were written, nor empty files such as the lock.

    Raises:
        InputError: the dataset of the job, from which its defaults follow, cannot be used or reached.
        OSError: it cannot be written.
    """
    if run.is_dir() and any(run.iterdir()):
        (run / LOCK_FILE).touch()
        if not (run / JOB_FILE).exists():
            replace_file(run / JOB_FILE, open_inputs(job).job.with_absolute_paths().to_yaml().encode())


def export_model(paths: Paths, folder: RunFolder) -> None:
    """Copy embeddings, report, job and event log to the model folder.

    Raises:
        OSError: the files cannot be written.
    """
    paths.model.mkdir(parents=True, exist_ok=True)
    for name in (JOB_FILE, REPORT_FILE, EVENTS_FILE):
        if (folder.path / name).exists():
            shutil.copy(folder.path / name, paths.model / name)
    if folder.embeddings.exists():
        shutil.copytree(folder.embeddings, paths.model / folder.embeddings.name, dirs_exist_ok=True)


def export_logs(paths: Paths, hosts: Hosts, folder: RunFolder) -> None:
    """Copy the logs of this host's roles to the output folder.

    Raises:
        OSError: the files cannot be written.
    """
    if folder.logs.exists():
        shutil.copytree(folder.logs, paths.output / hosts.current / folder.logs.name, dirs_exist_ok=True)


def write_failure(paths: Paths, message: str) -> None:
    """Write ``message``, cut to its allowed length, to the failure file.

    Raises:
        OSError: it cannot be written.
    """
    paths.failure.parent.mkdir(parents=True, exist_ok=True)
    paths.failure.write_text(message[:MAX_FAILURE_CHARACTERS], encoding="utf-8")
