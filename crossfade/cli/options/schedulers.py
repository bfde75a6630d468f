"""Options of ``crossfade plan --to``, which writes the files that run a job under Slurm or Kubernetes."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.base.errors import InputError
from crossfade.base.io.disk_errors import is_full_disk, write_error

if TYPE_CHECKING:
    from crossfade.deploy.schedulers.sizes import HostSize
    from crossfade.trainer.config.schema import JobConfig

_ONLY = {
    "slurm": ("partition", "time", "run_dir"),
    "kubernetes": ("image", "namespace", "service_account", "secret", "claim", "storage"),
}
"""The options that belong to one scheduler."""
_PRINTED = ("instance_type", "bandwidth", "json")
"""The options of the plan that is printed without ``--to``."""
_DEFAULT_TIME = "1-00:00:00"
_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_QUANTITY = re.compile(r"[1-9]\d*(Mi|Gi|Ti)")


def add_scheduler_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--to`` and what it needs."""
    group = parser.add_argument_group("schedulers")
    group.add_argument(
        "--to", choices=tuple(_ONLY), help="write files that run the job there, sized by the plan, instead of the plan"
    )
    group.add_argument("--out", type=Path, metavar="FOLDER", help="write the files to FOLDER (required with --to)")
    group.add_argument(
        "--data", metavar="PATH", help="read the dataset from this path or s3:// address there (default: data.path)"
    )
    slurm = parser.add_argument_group("Slurm")
    slurm.add_argument("--partition", metavar="NAME", help="submit to this partition (default: that of the cluster)")
    slurm.add_argument(
        "--time", metavar="LIMIT", help=f"set the time limit, [DAYS-]HOURS:MINUTES:SECONDS (default: {_DEFAULT_TIME})"
    )
    slurm.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="use DIR, which all nodes share, as run folder (default: runs/NAME)"
    )
    pods = parser.add_argument_group("Kubernetes")
    pods.add_argument("--image", help="run this container image (default: crossfade:VARIANT, by engine and device)")
    pods.add_argument("--namespace", metavar="NAME", help="create everything in this namespace")
    pods.add_argument(
        "--service-account", metavar="NAME", help="run as this service account (default: create one for the job)"
    )
    pods.add_argument("--secret", metavar="NAME", help="set the keys of this secret, such as AWS_REGION, as variables")
    pods.add_argument("--claim", metavar="NAME", help="mount this volume claim at /runs (default: create one)")
    pods.add_argument("--storage", metavar="SIZE", help="request so much for the claim that is created (default: 20Gi)")


def write_scheduler_files(arguments: argparse.Namespace, job: JobConfig) -> Iterator[str]:
    """Write the files of ``job`` for the scheduler that ``--to`` names; yield lines for the user.

    Raises:
        InputError: an option, the job or its dataset is invalid, or the files cannot be written.
    """
    _check_options(arguments)
    make = _slurm if arguments.to == "slurm" else _kubernetes
    files, next_steps, hosts = make(arguments, job)
    for path, text in files.items():
        try:
            (arguments.out / path).parent.mkdir(parents=True, exist_ok=True)
            (arguments.out / path).write_text(text, encoding="utf-8")
        except OSError as error:
            if is_full_disk(error):
                raise write_error(f"--out {arguments.out}", error, arguments.out) from error
            raise InputError(f"--out {arguments.out}: cannot be written: {error.strerror}; name a folder") from error
    yield from hosts
    yield f"wrote {', '.join(files)} to {arguments.out}"
    yield from next_steps


_Made = tuple[dict[str, str], list[str], list[str]]
"""Files by path, the commands that start the job, and a table of hosts."""


def _slurm(arguments: argparse.Namespace, job: JobConfig) -> _Made:
    from crossfade.deploy.schedulers.slurm import SlurmOptions, on_slurm, slurm_files
    from crossfade.trainer.runs.folder import default_run_dir

    job = on_slurm(job)
    sizes = [replace(size, cpus=math.ceil(size.cpus)) for size in _sizes(job, arguments.cores)]
    options = SlurmOptions(
        arguments.out,
        arguments.run_dir or default_run_dir(job),
        arguments.time or _DEFAULT_TIME,
        arguments.partition,
    )
    files = slurm_files(_with_data(job, arguments.data), sizes, options)
    return files, [f"start it: sbatch {arguments.out / next(iter(files))}"], _table({"node": sizes})


def _kubernetes(arguments: argparse.Namespace, job: JobConfig) -> _Made:
    from crossfade.deploy.schedulers.kubernetes import (
        KubernetesOptions,
        kubernetes_files,
        on_kubernetes,
        resource_name,
    )

    job = on_kubernetes(job)
    sizes = _sizes(job, arguments.cores)
    options = KubernetesOptions(
        arguments.image or f"crossfade:{_variant(job)}",
        arguments.namespace,
        arguments.service_account,
        arguments.secret,
        arguments.claim,
        arguments.storage or KubernetesOptions.storage,
    )
    files = kubernetes_files(_with_data(job, arguments.data), sizes, options)
    servers = job.cluster.servers
    hosts = {"coordinator": sizes[:1], "server": sizes[1 : 1 + servers], "worker": sizes[1 + servers :]}
    where = f" --namespace {arguments.namespace}" if arguments.namespace else ""
    token = (
        f"kubectl create secret generic {resource_name(job)}-token{where} --from-literal=token=$(openssl rand -hex 32)"
    )
    start = f"start it: kubectl apply -k {arguments.out / 'base'}"
    return files, [f"create the token of its pods: {token}", start] if servers else [start], _table(hosts)


def _variant(job: JobConfig) -> str:
    """Return the image variant that has the engine of ``job``, for a GPU if the job requests one."""
    from crossfade.deploy.schedulers.sizes import requested_gpus

    gpus = requested_gpus(job)
    if job.train.engine == "torch" or (gpus and job.train.engine == "auto"):
        return "torch"
    return "cu112" if gpus else "cpu"


def _sizes(job: JobConfig, cores: int | None) -> list[HostSize]:
    from crossfade.deploy.capacity.inputs import read_inputs
    from crossfade.deploy.capacity.plan import plan_capacity
    from crossfade.deploy.schedulers.sizes import size_hosts
    from crossfade.display import progress_bars

    with progress_bars() as bars:
        inputs = read_inputs(job, bars).with_counts()
    return size_hosts(job, plan_capacity(inputs), cores)


def _with_data(job: JobConfig, path: str | None) -> JobConfig:
    return job.model_copy(update={"data": job.data.model_copy(update={"path": path})}) if path else job


def _table(hosts: Mapping[str, Sequence[HostSize]]) -> list[str]:
    rows = [f"{'HOST':<11}  number  CPUs   memory"]
    for kind, sizes in hosts.items():
        if sizes:
            cpus, mib = max(size.cpus for size in sizes), max(size.memory_mib for size in sizes)
            rows.append(f"{kind:<11}  {len(sizes):>6}  {cpus:>4.1f}  {mib / 1024:,.1f} GiB")
    return rows


def _check_options(arguments: argparse.Namespace) -> None:
    """Check the options that ``--to`` allows, and the form of their values."""
    if arguments.out is None:
        raise InputError(f"--to {arguments.to}: name the folder of the files, as in --out {arguments.to}")
    others = [name for scheduler, names in _ONLY.items() if scheduler != arguments.to for name in names]
    hosts = ["hosts"] if arguments.to == "kubernetes" else []
    for name in (*others, *_PRINTED, *hosts):
        if getattr(arguments, name):
            raise InputError(
                f"--{name.replace('_', '-')} has no meaning with --to {arguments.to}: leave one of them out"
            )
    for name, pattern, expected in (
        ("time", _TIME, "a time limit of Slurm such as 4:00:00 or 1-12:00:00"),
        ("namespace", _LABEL, "lower-case letters, digits and hyphens"),
        ("service_account", _LABEL, "lower-case letters, digits and hyphens"),
        ("secret", _LABEL, "lower-case letters, digits and hyphens"),
        ("claim", _LABEL, "lower-case letters, digits and hyphens"),
        ("storage", _QUANTITY, "a size such as 500Mi, 20Gi or 1Ti"),
    ):
        value = getattr(arguments, name)
        if value is not None and not pattern.fullmatch(value):
            raise InputError(f"--{name.replace('_', '-')} {value}: expected {expected}")


def reject_without_scheduler(arguments: argparse.Namespace) -> None:
    """Check that no option of ``--to`` is given without it.

    Raises:
        InputError: one is.
    """
    for name in ("out", "data", *(name for names in _ONLY.values() for name in names)):
        if getattr(arguments, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} is for the files of a scheduler: add --to slurm or kubernetes"
            )
