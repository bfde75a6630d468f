"""Run ``crossfade train`` in a SageMaker training container: the first host trains, the others are its agents."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.base.errors import CrossfadeError

if TYPE_CHECKING:
    from crossfade.deploy.aws.sagemaker.container import Hosts, Paths

_logger = logging.getLogger(__name__)
Command = Callable[[list[str]], argparse.Namespace]


def run(base: Path, parse: Command) -> int:
    """Run this container's part of the training job below ``base``; ``parse`` parses a ``crossfade`` command line.

    An error is also written to the file whose text SageMaker shows as the reason of the failure.

    Raises:
        CrossfadeError: the run failed.
    """
    from crossfade.deploy.aws.sagemaker.container import Paths, write_failure

    paths = Paths(base)
    try:
        return _run(paths, parse)
    except Exception as error:
        message = str(error) if isinstance(error, CrossfadeError | OSError) else f"{type(error).__name__}: {error}"
        write_failure(paths, message)
        raise


def _run(paths: Paths, parse: Command) -> int:
    from crossfade.deploy.aws.sagemaker.container import Hosts, export_logs, run_dir
    from crossfade.trainer.runs.folder import RunFolder

    hosts = Hosts.read(paths)
    folder = RunFolder(run_dir(paths, hosts))
    _logger.info(f"host {hosts.current} of {', '.join(hosts.names)}")
    try:
        return (
            _coordinate(paths, hosts, folder.path, parse)
            if hosts.current == hosts.first
            else _join(paths, hosts, parse)
        )
    finally:
        export_logs(paths, hosts, folder)


def _coordinate(paths: Paths, hosts: Hosts, run_dir: Path, parse: Command) -> int:
    from crossfade.deploy.aws.sagemaker.container import export_model, read_job, restore_run
    from crossfade.trainer.runs.folder import RunFolder

    job_file = run_dir.with_name(f"{run_dir.name}-job.yaml")
    job_file.parent.mkdir(parents=True, exist_ok=True)
    job = read_job(paths, hosts)
    job_file.write_text(job.to_yaml(), encoding="utf-8")
    restore_run(run_dir, job)
    arguments = parse(["train", str(job_file), "--run-dir", str(run_dir), "--resume", "--progress", "metrics"])
    code: int = arguments.run(arguments)
    export_model(paths, RunFolder(run_dir))
    return code


def _join(paths: Paths, hosts: Hosts, parse: Command) -> int:
    """Run this host's agent. SIGTERM reaches the coordinator as well, which ends this agent after its checkpoint."""
    from crossfade.deploy.aws.sagemaker.container import (
        COORDINATOR_TIMEOUT_SECONDS,
        STOP_SECONDS,
        run_dir,
        write_failure,
    )

    arguments = parse(
        [
            *("agent", "--join", str(hosts.coordinator()), "--advertise-address", hosts.address(hosts.current)),
            *("--run-dir", str(run_dir(paths, hosts)), "--grace-period", str(STOP_SECONDS)),
            *("--coordinator-timeout", str(COORDINATOR_TIMEOUT_SECONDS)),
        ]
    )
    code: int = arguments.run(arguments)
    if code == 1:
        write_failure(paths, f"the job failed; see the failure of its first host, {hosts.first}")
    return code
