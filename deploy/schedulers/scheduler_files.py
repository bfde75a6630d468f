"""Write the files that run a job under Slurm or on Kubernetes: templates, filled in with the job and its capacity plan.

    lines = write_files(PlanOptions.of(job="jobs/lastfm.yaml", to="slurm", out="slurm"), job, progress)

The templates are ``slurm.sbatch`` and ``kubernetes.yaml``; their values are computed here.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from crossfade.base.errors import InputError, Option, OptionError
from crossfade.deploy.capacity.plan import CapacityPlan, HostPlan, plan_capacity
from crossfade.deploy.capacity.plan_inputs import read_inputs
from crossfade.deploy.cluster.coordinator import EXIT_TIMEOUT_SECONDS
from crossfade.deploy.schedulers.options import PlanOptions
from crossfade.deploy.topology import UNPLACED
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.runs.run_folder import default_run_dir

_TEMPLATES = Path(__file__).parent
_PLACE = re.compile(r"\{\{(\w+)\}\}")
_JOB_FILE = "job.yaml"
_RUNS, _METRICS_PORT = "/runs", 9400
"""Where the volume is mounted in pods, and the port of their metrics; in the template, too."""
_SIGNAL_SECONDS = 90
"""Time for roles to end after the checkpoint, and for Slurm, which sends signals up to a minute late."""
_MAX_NAME = 40
_MIB = 2**20
HEADROOM, RESERVE_BYTES = 1.1, 256 * _MIB
"""A host requests its peak times the one plus the other: the kernel counts cached files too, and ends what exceeds the
limit."""
_CPUS = {"process": 4.0, "train": 0.5, "server": 0.5, "worker": 1.0}
"""CPUs to request for a process: ``process`` trains alone, ``train`` is the coordinator or an agent. A server computes
while workers wait for it, so that half a CPU is enough."""


def write_files(options: PlanOptions, job: JobConfig, progress: ProgressReporter) -> Iterator[str]:
    """Write the files of ``job`` for the scheduler that the options name; yield what the user should read.

    Raises:
        InputError: an option, the job or its dataset is invalid, or the files cannot be written.
    """
    out = options.out
    assert options.to is not None, "the options name a scheduler"
    assert out is not None, "the options require a folder"
    job = adapt_job(job, options.to)
    plan = plan_capacity(read_inputs(job, progress))
    hosts = size_hosts(plan, options.cores, alike=options.to == "slurm")
    if options.data is not None:
        job = job.model_copy(update={"data": job.data.model_copy(update={"path": options.data})})
    files = (slurm_files if options.to == "slurm" else kubernetes_files)(job, hosts, options)
    _write(files, out)
    yield f"{'HOST':<11}  number  CPUs   memory"
    for kind, each in hosts.items():
        yield f"{kind:<11}  {each.number:>6}  {each.cpus:>4.1f}  {each.memory_mib / 1024:,.1f} GiB"
    yield f"wrote {', '.join(files)} to {out}"
    first = shlex.quote(str(out / next(iter(files))))
    if options.to == "slurm":
        yield f"start it: sbatch {first}"
        return
    if job.cluster.is_distributed:
        create = f"kubectl create secret generic {resource_name(job)}-token"
        yield f"create the token of its pods: {create} --from-literal=token=$(openssl rand -hex 32)"
    yield f"start it: kubectl apply -f {first}"


def _write(files: Mapping[str, str], out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        problem = f"cannot be written: {error.strerror}"
        raise OptionError("out", found=out, problem=problem, fix="name a folder") from error


def adapt_job(job: JobConfig, to: str) -> JobConfig:
    """Return ``job`` as the hosts of the scheduler ``to`` run it, which set its addresses when they start.

    The nodes of Slurm share its run folder. On Kubernetes, each role has a pod, with fixed ports.

    Raises:
        InputError: it is no valid job there.
    """
    values = (job.with_absolute_paths() if to == "slurm" else job).model_dump(mode="json")
    values["cluster"] |= UNPLACED
    if to == "slurm":
        values["cluster"] |= {"one_role_per_host": False, "shared_run_dir": True}
    else:
        values["cluster"] |= {"hosts": 1, "one_role_per_host": job.cluster.is_distributed}
        values["metrics"] |= {"port": _METRICS_PORT, "host": None}
    return check_job(values, f"the job on {to.capitalize()}")


@dataclass(frozen=True)
class Hosts:
    """Hosts that are alike, and what each of them requests."""

    number: int
    cpus: float
    memory_mib: int

    @property
    def threads(self) -> int:
        """Threads of a role that has the host for itself."""
        return max(1, math.floor(self.cpus))


def size_hosts(plan: CapacityPlan, cores: int | None = None, *, alike: bool = False) -> dict[str, Hosts]:
    """Return the hosts in ``plan`` by kind: ``coordinator``, ``server``, and ``worker``; or, ``alike``, ``node``.

    Where ``cores`` are given, hosts that train get so many CPUs.
    """
    found: dict[str, Hosts] = {}
    for host in plan.hosts:
        kinds = [process.partition("-")[0] for process in host.processes]
        kind = "node" if alike else next((each for each in ("worker", "server") if each in kinds), "coordinator")
        trains = not {"worker", "process"}.isdisjoint(kinds)
        cpus = cores if cores and trains else sum(_CPUS.get(each, 0.0) for each in kinds)
        before = found.get(kind, Hosts(0, 0.0, 0))
        found[kind] = Hosts(before.number + 1, max(before.cpus, cpus), max(before.memory_mib, _memory_mib(host)))
    return found


def _memory_mib(host: HostPlan) -> int:
    return math.ceil((host.peak_bytes * HEADROOM + RESERVE_BYTES) / (64 * _MIB)) * 64


def requested_gpus(job: JobConfig) -> int:
    """Return how many GPUs a host that trains requests, so that the one that ``train.device`` names is there.

    None where the device is ``auto``, since a cluster may have no GPUs.
    """
    return 1 + int(job.train.device.partition(":")[2] or 0) if job.train.on_gpu else 0


def slurm_files(job: JobConfig, hosts: Mapping[str, Hosts], options: PlanOptions) -> dict[str, str]:
    """Return the batch script and the job file, by name; ``job`` is adapted.

    All nodes share the folders of the files and of the run.
    """
    assert options.out is not None, "the options require a folder"
    nodes = hosts["node"]
    values = {
        "name": job.name,
        "nodes": nodes.number,
        "cpus": math.ceil(nodes.cpus),
        "memory": f"{nodes.memory_mib}M",
        "gpus": requested_gpus(job) or None,
        "signal_seconds": math.ceil(job.cluster.grace_period_seconds) + _SIGNAL_SECONDS,
        "job": shlex.quote(str(options.out.absolute() / _JOB_FILE)),
        "run_dir": shlex.quote(str((options.run_dir or default_run_dir(job)).absolute())),
    }
    lines = (_TEMPLATES / "slurm.sbatch").read_text(encoding="utf-8").splitlines(keepends=True)
    return {f"{job.name}.sbatch": "".join(fill(lines, values)), _JOB_FILE: job.to_yaml()}


def kubernetes_files(job: JobConfig, hosts: Mapping[str, Hosts], options: PlanOptions) -> dict[str, str]:
    """Return the file of all manifests, by name; ``job`` is adapted.

    Where the job's shared storage is not a folder, only the coordinator mounts the volume.

    Raises:
        InputError: the job names paths that pods cannot read.
    """
    _check_storage(job)
    name, cluster, gpus = resource_name(job), job.cluster, requested_gpus(job) or None
    shared = cluster.is_distributed and cluster.shared_run_dir
    # An agent follows the coordinator so long after SIGTERM, so that pods that are stopped together can save.
    grace = math.ceil(cluster.grace_period_seconds + EXIT_TIMEOUT_SECONDS)
    values = {
        "name": name,
        "job": job.to_yaml(),
        "image": options.image or f"crossfade:{_variant(job)}",
        "secret": options.secret,
        "claim": options.claim or f"{name}-runs",
        "creates_claim": options.claim is None,
        "access_mode": "ReadWriteMany" if shared else "ReadWriteOnce",
        "shared": shared,
        "unshared": not shared,
        "distributed": cluster.is_distributed,
        "servers": cluster.servers,
        "workers": cluster.workers,
        "run_dir": f"{_RUNS}/{job.name}",
        # A pod that was lost may hold the lock of a run on a shared volume for a while after its replacement started.
        "resume": "--standby" if shared else "--resume",
        "listen": "--set=cluster.coordinator_address=$(POD_IP):7070" if cluster.is_distributed else None,
        "grace": grace,
        "termination_seconds": grace + math.ceil(EXIT_TIMEOUT_SECONDS),
        "coordinator_gpus": None if cluster.is_distributed else gpus,
        "worker_gpus": gpus,
    }
    for kind, each in hosts.items():
        values |= {f"{kind}_cpus": f"{each.cpus:g}", f"{kind}_memory": f"{each.memory_mib}Mi"}
        values[f"{kind}_threads"] = str(each.threads)
    template = yaml.safe_load((_TEMPLATES / "kubernetes.yaml").read_text(encoding="utf-8"))
    manifests = yaml.dump_all(
        fill(template["items"], values), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True
    )
    return {f"{name}.yaml": manifests}


def resource_name(job: JobConfig) -> str:
    """Return the name that all resources of ``job`` begin with: a DNS label."""
    return re.sub(r"[^a-z0-9]+", "-", job.name.lower())[:_MAX_NAME].strip("-")


def _variant(job: JobConfig) -> str:
    """Return the variant of the image that has the engine of ``job``, for a GPU if the job requests one."""
    gpus = requested_gpus(job)
    if job.train.engine == "torch" or (gpus and job.train.engine == "auto"):
        return "torch"
    return "cu112" if gpus else "cpu"


def _check_storage(job: JobConfig) -> None:
    """Check that pods can read what ``job`` names: on S3, or in the folder where the volume is mounted.

    Raises:
        InputError: a path is of this machine.
    """
    paths = {
        "data.path": (job.data.path, (", or name where the pods find the dataset with ", Option("data"))),
        "checkpoint.path": (job.checkpoint.path, ""),
        **{key: (source, "") for key, source in job.starting_points().items()},
    }
    for key, (path, how) in paths.items():
        if path is not None and not path.startswith(("s3://", f"{_RUNS}/")):
            raise InputError(
                f"{key}: {path} is a path of this machine, which pods cannot read; expected s3://BUCKET/PREFIX or a "
                f"path below {_RUNS}, where the volume is mounted: set {key}",
                how,
            )


def fill(template: Any, values: Mapping[str, Any]) -> Any:
    """Return ``template``, of texts, lists, and mappings, with ``{{word}}`` replaced by the value of the word.

    What has no value is left out: a text with a word that is None, and a mapping whose key ``when`` is false.
    """
    if isinstance(template, str):
        words = _PLACE.findall(template)
        if any(values[word] is None for word in words):
            return None
        is_word = _PLACE.fullmatch(template)
        return values[words[0]] if is_word else _PLACE.sub(lambda place: str(values[place[1]]), template)
    if isinstance(template, list):
        return [filled for each in template if (filled := fill(each, values)) is not None] or None
    if isinstance(template, dict):
        if not fill(template.get("when", True), values):
            return None
        filled_in = {key: fill(value, values) for key, value in template.items() if key != "when"}
        return {key: value for key, value in filled_in.items() if value is not None}
    return template


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)
