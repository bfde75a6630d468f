"""``crossfade train`` in a SageMaker training container: the first host trains, the others are its agents."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kvstore.errors import CrossfadeError

if TYPE_CHECKING:
    from deploy.aws.sagemaker.container import Hosts, Paths

Command = Callable[[list[str]], argparse.Namespace]


def run(base: Path, parse: Command) -> int:
    """Do what SageMaker has started this container for; ``parse`` makes sense of arguments of 'crossfade'.

    Whatever goes wrong is also said in the file that SageMaker shows.

    Raises:
        CrossfadeError: it failed.
    """
    from deploy.aws.sagemaker.container import Paths, write_failure

    paths = Paths(base)
    try:
        return _run(paths, parse)
    except Exception as error:
        said = str(error) if isinstance(error, CrossfadeError | OSError) else f"{type(error).__name__}: {error}"
        write_failure(paths, said)
        raise


def _run(paths: Paths, parse: Command) -> int:
    from deploy.aws.sagemaker.container import Hosts, keep_logs, run_dir
    from trainer.runs.folder import RunFolder

    hosts = Hosts.read(paths)
    folder = RunFolder(run_dir(paths, hosts))
    print(f"crossfade: host {hosts.own} of {', '.join(hosts.names)}", file=sys.stderr, flush=True)
    try:
        return _coordinate(paths, hosts, folder.path, parse) if hosts.own == hosts.first else _join(paths, hosts, parse)
    finally:
        keep_logs(paths, hosts, folder)


def _coordinate(paths: Paths, hosts: Hosts, run_dir: Path, parse: Command) -> int:
    from deploy.aws.sagemaker.container import export_model, read_job, restore_run
    from trainer.runs.folder import RunFolder

    job_file = run_dir.with_name(f"{run_dir.name}-job.yaml")
    job_file.parent.mkdir(parents=True, exist_ok=True)
    job = read_job(paths, hosts)
    job_file.write_text(job.to_yaml(), encoding="utf-8")
    restore_run(run_dir, job)
    arguments = parse(["train", str(job_file), "--run-dir", str(run_dir), "--resume", "--progress", "lines"])
    code: int = arguments.run(arguments)
    export_model(paths, RunFolder(run_dir))
    return code


def _join(paths: Paths, hosts: Hosts, parse: Command) -> int:
    """Be the agent of this host. Its SIGTERM is the coordinator's too, which tells when the checkpoint is written."""
    from deploy.aws.sagemaker.container import COORDINATOR_TIMEOUT_SECONDS, STOP_SECONDS, run_dir, write_failure

    arguments = parse(
        [
            *("agent", "--join", str(hosts.coordinator()), "--advertise-address", hosts.address(hosts.own)),
            *("--run-dir", str(run_dir(paths, hosts)), "--grace-period", str(STOP_SECONDS)),
            *("--coordinator-timeout", str(COORDINATOR_TIMEOUT_SECONDS)),
        ]
    )
    code: int = arguments.run(arguments)
    if code == 1:
        write_failure(paths, f"the job has failed, as the first host, {hosts.first}, says")
    return code
