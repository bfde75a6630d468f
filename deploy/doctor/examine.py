"""Examine a host and, if one is named, a job on it.

for finding in examine(DoctorOptions(job=Path("runs/plays"))):
    ...
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from crossfade.deploy.cluster.store_choice import choose_store
from crossfade.deploy.doctor.findings import Finding, run_check
from crossfade.deploy.doctor.host_checks import (
    check_gpus,
    check_huge_pages,
    check_kernel_cache,
    check_loopback,
    check_memory_limit,
    check_mxnet,
    check_open_files,
    check_temporary_files,
    check_versions,
)
from crossfade.deploy.doctor.options import DoctorOptions
from crossfade.deploy.doctor.storage_checks import (
    check_checkpoint_storage,
    check_clock,
    check_dataset_storage,
    short_requests,
)
from crossfade.deploy.topology import roles
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.runs.run_folder import RunFolder


def examine(options: DoctorOptions) -> Iterator[Finding]:
    """Yield what checks of this host find and, if the options name a job, checks of the job and its run folder.

    Raises:
        InputError: the run or job does not exist, or is invalid.
    """
    (job, run), seconds = options.load(), options.timeout
    if job is not None:
        notes: list[str] = []
        job = choose_store(job, notes.append)
        yield from (Finding("store", "warning", note) for note in notes)
    with short_requests():
        yield from _examine_host(job, seconds)
        if job is None or run is None:
            return
        yield from _examine_storage(job, run, seconds)
        yield from _examine_job(job, run, seconds)


def _examine_host(job: JobConfig | None, seconds: float) -> Iterator[Finding]:
    count = len(list(roles(job.cluster))) if job is not None and job.cluster.is_distributed else 0
    needs_mxnet = job is not None and (job.cluster.servers > 0 or job.train.engine == "mxnet")
    yield from run_check("packages", check_versions, seconds)
    yield from run_check("mxnet", partial(check_mxnet, needed=needs_mxnet, seconds=seconds), seconds)
    yield from run_check("gpu", partial(check_gpus, job), seconds)
    yield from run_check("kernels", partial(check_kernel_cache, seconds=seconds), seconds)
    yield from run_check("loopback", check_loopback, seconds)
    yield from run_check("huge pages", check_huge_pages, seconds)
    yield from run_check("memory limit", check_memory_limit, seconds)
    yield from run_check("open files", partial(check_open_files, count), seconds)
    yield from run_check("temporary", check_temporary_files, seconds)


def _examine_storage(job: JobConfig, run: RunFolder, seconds: float) -> Iterator[Finding]:
    data, checkpoints = job.data.path, run.checkpoints(job)
    if data.startswith("s3://") or checkpoints.startswith("s3://"):
        yield from run_check("clock", check_clock, seconds)
    if data.startswith("s3://"):
        yield from run_check("storage", partial(check_dataset_storage, data), seconds)
    if checkpoints.startswith("s3://"):
        yield from run_check("storage", partial(check_checkpoint_storage, checkpoints), seconds)


def _examine_job(job: JobConfig, run: RunFolder, seconds: float) -> Iterator[Finding]:
    from crossfade.deploy.doctor.run_checks import JobChecks, check_leftovers

    checks = JobChecks(job, run)
    for name, check in (
        ("packages", checks.check_packages),
        ("run", checks.check_run),
        ("checkpoints", checks.check_checkpoints),
        ("data", checks.check_data),
        ("memory", checks.check_memory),
        ("disk", checks.check_disks),
        ("ports", checks.check_ports),
        ("leftovers", partial(check_leftovers, job, run)),
    ):
        yield from run_check(name, check, seconds)
