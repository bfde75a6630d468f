"""Run ``crossfade train`` in a SageMaker training container: the first host trains, the others are its agents."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.base.errors import CrossfadeError

if TYPE_CHECKING:
    from crossfade.deploy.aws.sagemaker.container import Hosts, Paths

_logger = logging.getLogger(__name__)


def run(paths: Paths) -> int:
    """Run this container's part of the training job in the folders ``paths``.

    An error is also written to the file whose text SageMaker shows as the reason of the failure.

    Raises:
        CrossfadeError: the run failed.
    """
    from crossfade.deploy.aws.sagemaker.container import write_failure

    try:
        return _run(paths)
    except Exception as error:
        message = str(error) if isinstance(error, CrossfadeError | OSError) else f"{type(error).__name__}: {error}"
        write_failure(paths, message)
        raise


def _run(paths: Paths) -> int:
    from crossfade.deploy.aws.sagemaker.container import Hosts, export_logs, run_dir
    from crossfade.trainer.runs.run_folder import RunFolder

    hosts = Hosts.read(paths)
    folder = RunFolder(run_dir(paths, hosts))
    _logger.info(f"host {hosts.current} of {', '.join(hosts.names)}")
    try:
        return _coordinate(paths, hosts, folder.path) if hosts.current == hosts.first else _join(paths, hosts)
    finally:
        export_logs(paths, hosts, folder)


def _coordinate(paths: Paths, hosts: Hosts, run_dir: Path) -> int:
    from crossfade.cli.training import TrainOptions, train
    from crossfade.deploy.aws.sagemaker.container import export_model, read_job, restore_run
    from crossfade.trainer.runs.run_folder import RunFolder

    job_file = run_dir.with_name(f"{run_dir.name}-job.yaml")
    job_file.parent.mkdir(parents=True, exist_ok=True)
    job = read_job(paths, hosts)
    job_file.write_text(job.to_yaml(), encoding="utf-8")
    restore_run(run_dir, job)
    code = train(TrainOptions(job=job_file, run_dir=run_dir, resume=True, progress="metrics"))
    export_model(paths, RunFolder(run_dir))
    return code


def _join(paths: Paths, hosts: Hosts) -> int:
    """Run this host's agent. SIGTERM reaches the coordinator as well, which ends this agent after its checkpoint."""
    from crossfade.deploy.aws.sagemaker.container import (
        COORDINATOR_TIMEOUT_SECONDS,
        STOP_SECONDS,
        run_dir,
        write_failure,
    )
    from crossfade.deploy.cluster.options import AgentOptions
    from crossfade.deploy.cluster.run_agent import run_agent

    options = AgentOptions.of(
        join=str(hosts.coordinator()),
        advertise_address=hosts.address(),
        run_dir=run_dir(paths, hosts),
        grace_period=STOP_SECONDS,
        coordinator_timeout=COORDINATOR_TIMEOUT_SECONDS,
    )
    code = run_agent(options)
    if code == 1:
        write_failure(paths, f"the job failed; see the failure of its first host, {hosts.first}")
    return code
