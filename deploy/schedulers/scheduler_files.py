"""Write the files that run a job under a scheduler, with requests for what its capacity plan has, or a command there.

lines = write_files(PlanOptions.of(job="jobs/lastfm.yaml", to="slurm", out="slurm"), job, progress)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from crossfade.base.errors import OptionError, option_named
from crossfade.base.io.disk_errors import is_full_disk, write_error
from crossfade.deploy.capacity.plan import plan_capacity
from crossfade.deploy.capacity.plan_inputs import read_inputs
from crossfade.deploy.schedulers.arrays import array_files
from crossfade.deploy.schedulers.kubernetes import kubernetes_files, on_kubernetes, resource_name
from crossfade.deploy.schedulers.options import PlanOptions
from crossfade.deploy.schedulers.sizes import HostSize, size_hosts
from crossfade.deploy.schedulers.slurm import on_slurm, slurm_files
from crossfade.deploy.schedulers.spark_services import spark_files
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.options import PrepareOptions


def write_files(
    options: PlanOptions, job: JobConfig, progress: ProgressReporter, preparation: PrepareOptions | None = None
) -> Iterator[str]:
    """Write the files of ``job`` for the scheduler that the options name; yield what the user should read.

    ``preparation`` has the options of the command for a Spark service.

    Raises:
        InputError: an option, the job or its dataset is invalid, or the files cannot be written.
    """
    out = options.out
    assert out is not None, "the options require a folder"
    if options.array is not None or preparation is not None:
        if preparation is None:
            files, next_steps = array_files(job, options, options.cores)
        else:
            files, next_steps = spark_files(job, options, preparation, options.cores)
        _write(files, out)
        yield f"wrote {', '.join(files)} to {out}"
        yield from next_steps
        return
    job = on_slurm(job) if options.to == "slurm" else on_kubernetes(job)
    inputs = read_inputs(job, progress)
    sizes = size_hosts(job, plan_capacity(inputs), options.cores)
    if options.data is not None:
        job = job.model_copy(update={"data": job.data.model_copy(update={"path": options.data})})
    if options.to == "slurm":
        sizes = [replace(size, cpus=math.ceil(size.cpus)) for size in sizes]
        files, hosts = slurm_files(job, sizes, options), {"node": sizes}
        next_steps = [f"start it: sbatch {out / next(iter(files))}"]
    else:
        servers = job.cluster.servers
        files = kubernetes_files(job, sizes, options)
        hosts = {"coordinator": sizes[:1], "server": sizes[1 : 1 + servers], "worker": sizes[1 + servers :]}
        next_steps = [*_token_steps(options, job), f"start it: kubectl apply -k {out / 'base'}"]
    _write(files, out)
    yield from _table(hosts)
    yield f"wrote {', '.join(files)} to {out}"
    yield from next_steps


def _write(files: Mapping[str, str], out: Path) -> None:
    for path, text in files.items():
        try:
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_text(text, encoding="utf-8")
        except OSError as error:
            if is_full_disk(error):
                raise write_error(option_named("out", out), error, out) from error
            problem = f"cannot be written: {error.strerror}"
            raise OptionError("out", found=out, problem=problem, fix="name a folder") from error


def _token_steps(options: PlanOptions, job: JobConfig) -> Iterator[str]:
    if job.cluster.is_distributed:
        where = f" --namespace {options.namespace}" if options.namespace else ""
        create = f"kubectl create secret generic {resource_name(job)}-token{where}"
        yield f"create the token of its pods: {create} --from-literal=token=$(openssl rand -hex 32)"


def _table(hosts: Mapping[str, Sequence[HostSize]]) -> Iterator[str]:
    yield f"{'HOST':<11}  number  CPUs   memory"
    for kind, sizes in hosts.items():
        if sizes:
            cpus, mib = max(size.cpus for size in sizes), max(size.memory_mib for size in sizes)
            yield f"{kind:<11}  {len(sizes):>6}  {cpus:>4.1f}  {mib / 1024:,.1f} GiB"
