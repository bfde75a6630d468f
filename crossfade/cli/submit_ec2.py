"""``crossfade submit ec2``: run a job on EC2 instances that are launched for it and terminated after it."""

from __future__ import annotations

import argparse
import json
import logging
from typing import TYPE_CHECKING

from crossfade.cli.command import add_command
from crossfade.cli.options.ec2 import add_options, make_spec
from crossfade.ec2_runs import catch_signals, clean_up, follow, follow_existing, list_runs, take_down

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws
    from crossfade.deploy.aws.ec2.spec import RunSpec

_logger = logging.getLogger(__name__)

_DESCRIPTION = """\
Run a job on EC2: launch instances for it, follow it, and delete everything when it ends, fails or is stopped.
"""
_EXAMPLES = (
    ("crossfade submit ec2 jobs/plays.yaml --output s3://music/runs --dry-run", "Print every request, send none."),
    (
        "crossfade submit ec2 jobs/plays.yaml --output s3://music/runs --hosts 4 --spot --instance-type r6i.4xlarge",
        "Train on four spot instances.",
    ),
    ("crossfade submit ec2 --list", "List the runs that have instances or leftovers."),
    ("crossfade submit ec2 --follow plays-1a2b3c4d", "Follow a detached run."),
    ("crossfade submit ec2 --cleanup plays-1a2b3c4d", "End a run, and delete what is left of it."),
)
_NOTES = """\
The dataset must be on S3. Each of several hosts runs a server and a worker, unless the job or the options set more. The
run's folder below --output gets the job, the log, checkpoints and, at the end, result/ with embeddings and report.
Instances need a route to S3, SSM and ECR; those of the default network have one. No port is open to the internet.
docs/aws.md lists the permissions of this command, and explains how to push an image to ECR.

With --spot, EC2 may interrupt instances: the job saves a checkpoint first, and another instance replaces the host when
there is capacity. A command must follow the run for that.

Ctrl-C makes the run write a checkpoint and deletes the cluster; a second one deletes it at once. With --follow it only
stops following. If this command is killed, each instance still terminates itself when the run ends, or after
--max-hours at the latest, and '--cleanup RUN' deletes the rest.

Exit codes: that of the run: 0 done, 1 failed, 2 invalid input, 143 stopped; 130 no longer following.
"""


def add_parser(services: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``ec2`` to the subcommands of ``crossfade submit``."""
    parser = add_command(
        services,
        "ec2",
        "run a job on EC2 instances that are launched for it",
        _DESCRIPTION,
        examples=_EXAMPLES,
        notes=_NOTES,
    )
    add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Perform the action; return the exit code of the run.

    Raises:
        InputError: the job or an option is invalid, or AWS rejects a request.
        CloudError: AWS cannot launch the instances now.
    """
    from crossfade.base.errors import InputError
    from crossfade.deploy.aws.clients import Aws

    if arguments.dry_run:
        return _dry_run(arguments)
    without_job = arguments.list or arguments.cleanup is not None or arguments.follow
    if bool(arguments.job) == bool(without_job):
        raise InputError("submit ec2: expected either a JOB, or one of --list, --cleanup and --follow")
    aws = Aws(arguments.region, arguments.profile)
    if arguments.list:
        return list_runs(aws)
    if arguments.cleanup is not None:
        return clean_up(aws, arguments.cleanup)
    if arguments.follow:
        return follow_existing(aws, arguments.follow)
    return _submit(aws, arguments)


def _submit(aws: Aws, arguments: argparse.Namespace) -> int:
    from crossfade.base.errors import CloudRequestError, InputError
    from crossfade.deploy.aws.ec2.launch import launch, resolve_context

    spec = make_spec(arguments, aws.region, aws)
    _log_notes(spec, aws)
    context = resolve_context(aws, spec)
    _logger.info(f"run {spec.run}: {spec.storage}")
    with catch_signals() as signals:
        try:
            launch(aws, spec, context, _logger.info)
            if arguments.detach and not signals:
                _logger.info(
                    f"detached: 'crossfade submit ec2 --follow {spec.run}' follows it, '--cleanup {spec.run}' ends it"
                )
                return 0
            return follow(aws, spec, signals)
        except CloudRequestError as error:
            if error.kind == "credentials":
                # Without valid credentials nothing can be deleted either.
                raise InputError(f"{error}; then '--follow {spec.run}' or '--cleanup {spec.run}'") from error
            take_down(aws, spec.run)
            raise
        except BaseException:
            take_down(aws, spec.run)
            raise


def _dry_run(arguments: argparse.Namespace) -> int:
    from crossfade.base.errors import InputError
    from crossfade.deploy.aws.clients import Aws
    from crossfade.deploy.aws.ec2.launch import dry_run

    if arguments.job is None:
        raise InputError("--dry-run: expected a JOB")
    spec = make_spec(arguments, Aws(arguments.region, arguments.profile).region, None)
    _log_notes(spec, None)
    for name, request in dry_run(spec):
        script = request.pop("UserData", None)
        print(f"{name} {json.dumps(request, indent=2)}")
        if script is not None:
            print(f"UserData of {name}:\n{script}")
    return 0


def _log_notes(spec: RunSpec, aws: Aws | None) -> None:
    """Log what the user should read about the run and its instances, and its maximum cost."""
    from crossfade.deploy.aws.job_checks import notes
    from crossfade.deploy.aws.prices import Cost, hourly_price
    from crossfade.trainer.config.loading import check_job

    for line in notes(check_job(spec.job, spec.run), spec.instance_type, spec.hosts):
        _logger.info(line)
    price = hourly_price(aws, "AmazonEC2", spec.instance_type)
    _logger.info(Cost(price, spec.hosts, spec.max_hours).explain(spec.instance_type, spot=spec.spot))
