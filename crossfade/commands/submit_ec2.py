"""``crossfade submit ec2``: run a job on a cluster of EC2 instances that is started for it and taken down after it."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from crossfade.options.ec2 import make_plan, whose
from crossfade.options.job import add_sizes

if TYPE_CHECKING:
    from deploy.aws.clients import Aws
    from deploy.aws.ec2.follower import RunFollower, RunResult
    from deploy.aws.ec2.resources import Resources
    from deploy.aws.ec2.spec import RunSpec

_logger = logging.getLogger(__name__)

_DESCRIPTION = """\
Run a job on EC2: start instances for it, follow it, and take everything down when it ends, fails or is stopped.
"""
_EPILOG = """\
Examples:
  crossfade submit ec2 jobs/plays.yaml --output s3://music/runs --dry-run              print every request, send none
  crossfade submit ec2 jobs/plays.yaml --output s3://music/runs                        one p2.xlarge
  crossfade submit ec2 jobs/plays.yaml --output s3://music/runs --hosts 4 --spot --instance-type r6i.4xlarge
  crossfade submit ec2 --list                                                      what there is
  crossfade submit ec2 --follow plays-1a2b3c4d                                     follow a run that was left alone
  crossfade submit ec2 --cleanup plays-1a2b3c4d                                      end a run, and delete what is left

The data of the job must be on S3. On several hosts it runs with a server and a worker on each, unless it says more. The
run's folder below --output gets the job, the log, checkpoints and, at the end, result/ with the embeddings and the report.
Instances need a way to S3, SSM and ECR: those of the default network have one. No port is open to the world.
docs/aws.md has the rights that this command needs, and how an image gets to ECR.

With --spot, EC2 may take instances back: the job saves before that, and another instance takes the place as soon as
there is one. Somebody must follow the run for that.

Ctrl-C has the run write a checkpoint and takes the cluster down; a second one does so at once. With --follow it only
stops following. Should this command be killed, each instance still ends itself with the run, or after --max-hours at
the latest, and '--cleanup RUN' deletes the rest. The exit code is that of the run: 0 done, 1 failed, 2 wrong input, 143
stopped.
"""
DEFAULT_HOURS, DEFAULT_VOLUME_GIB = 24.0, 100


def add_parser(backends: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``ec2`` to the subcommands of ``crossfade submit``."""
    from crossfade.commands.submit import add_common
    from deploy.aws.accelerators import DEFAULT_EC2_TYPE

    parser = backends.add_parser(
        "ec2",
        help="on EC2 instances that are started for it",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common(parser)
    _add_what_to_do(parser)
    parser.add_argument("--output", metavar="URI", help="where the run's folder is made: s3://BUCKET/PREFIX")
    parser.add_argument(
        "--image", metavar="URI", help="container image (default: crossfade:VARIANT in the account's ECR)"
    )
    parser.add_argument("--instance-type", default=DEFAULT_EC2_TYPE, metavar="TYPE", help="(default: %(default)s)")
    parser.add_argument("--hosts", type=int, default=1, metavar="N", help="instances (default: 1)")
    add_sizes(parser, "servers", "workers", default=" (default: N hosts)")
    parser.add_argument("--spot", action="store_true", help="spot instances, which cost less and may be taken back")
    parser.add_argument(
        "--max-hours",
        type=float,
        default=DEFAULT_HOURS,
        metavar="H",
        help="after so many each instance ends itself, whatever happens (default: %(default)g)",
    )
    parser.add_argument("--subnet", metavar="ID", help="subnet of the instances (default: one of the default network)")
    parser.add_argument("--ami", metavar="ID", help="machine image with Docker (default: the newest one of ECS)")
    parser.add_argument(
        "--instance-profile", metavar="NAME", help="existing one, by name or ARN (default: one is made, and deleted)"
    )
    parser.add_argument(
        "--volume-gb",
        type=int,
        default=DEFAULT_VOLUME_GIB,
        metavar="N",
        help="encrypted disk, GiB (default: %(default)s)",
    )
    parser.add_argument(
        "--poll-seconds", type=float, default=5.0, metavar="SECONDS", help="between two looks (default: 5)"
    )
    parser.set_defaults(run=run)


def _add_what_to_do(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print every request, and send none")
    what.add_argument("--detach", action="store_true", help="start the run, and leave it alone")
    what.add_argument("--follow", metavar="RUN", help="follow a run that is there, and take it down at its end")
    what.add_argument("--list", action="store_true", help="list the runs that there is anything of")
    what.add_argument(
        "--cleanup",
        nargs="?",
        const="",
        metavar="RUN",
        help="end RUN and delete all there is of it but its folder on S3; without RUN: of all one's runs of which no "
        "instance is left",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked for; the exit code is the run's."""
    from deploy.aws.clients import Aws
    from kvstore.errors import InputError

    if arguments.dry_run:
        return _dry_run(arguments)
    looks_only = arguments.list or arguments.cleanup is not None or arguments.follow
    if bool(arguments.job) == bool(looks_only):
        raise InputError("submit ec2: expected either a JOB, or one of --list, --cleanup and --follow")
    aws = Aws(arguments.region, arguments.profile)
    if arguments.list:
        return _list(aws)
    if arguments.cleanup is not None:
        return _clean(aws, arguments.cleanup)
    if arguments.follow:
        return _follow_only(aws, arguments.follow)
    return _submit(aws, arguments)


# ---- submit


def _submit(aws: Aws, arguments: argparse.Namespace) -> int:
    from deploy.aws.ec2.launch import launch, resolve_context
    from kvstore.errors import CloudRequestError, InputError

    plan = make_plan(arguments, aws.region, aws)
    _say_before(plan, aws)
    around = resolve_context(aws, plan)
    _logger.info(f"run {plan.run}: {plan.storage}")
    with _signals() as signals:
        try:
            launch(aws, plan, around, _logger.info)
            if arguments.detach and not signals:
                _logger.info(
                    f"left alone: 'crossfade submit ec2 --follow {plan.run}' follows it, '--cleanup {plan.run}' ends it"
                )
                return 0
            return _follow(aws, plan, signals)
        except CloudRequestError as error:
            if error.kind == "credentials":  # with which nothing can be taken down either
                raise InputError(f"{error}; then '--follow {plan.run}' or '--cleanup {plan.run}'") from error
            _take_down(aws, plan.run)
            raise
        except BaseException:
            _take_down(aws, plan.run)
            raise


def _follow(aws: Aws, plan: RunSpec, signals: list[int]) -> int:
    """Follow ``plan``'s run to its end, and take it down."""
    from deploy.aws.ec2.follower import RunFollower

    following = RunFollower(aws, plan, _logger.info, _show)
    stopped = False
    end = None
    while end is None and len(signals) < 2:
        if signals and not stopped:
            _logger.info("asking the run to stop after a checkpoint; once more ends it at once")
            following.stop()
            stopped = True
        end = _look(following)
        if end is None:
            _pause(plan.poll_seconds, signals)
    _take_down(aws, plan.run)
    if end is None:
        _logger.info("stopped at once, without a new checkpoint")
    else:
        _logger.info(f"the run has ended with exit code {end.exit_code}: {end.message}")
        _logger.info(f"its folder: {plan.storage}")
    if signals:
        return 128 + signals[0]
    assert end is not None
    return end.exit_code


def _look(following: RunFollower) -> RunResult | None:
    """Look once at the run. That AWS is out of reach for a while does not end it."""
    from kvstore.errors import CloudError

    try:
        return following.turn()
    except CloudError as error:
        _logger.info(f"the run could not be looked at, and will be again: {error}")
        return None


def _pause(seconds: float, signals: list[int]) -> None:
    """Wait so long, or until another signal comes."""
    deadline, before = time.monotonic() + seconds, len(signals)
    while time.monotonic() < deadline and len(signals) == before:
        time.sleep(min(0.2, seconds))


def _say_before(plan: RunSpec, aws: Aws | None) -> None:
    """Say what it may cost, and what its image needs."""
    from deploy.aws.accelerators import horovod_note
    from deploy.aws.prices import Cost, hourly_price
    from trainer.config.loading import check_job

    price = hourly_price(aws, "AmazonEC2", plan.instance_type)
    _logger.info(Cost(price, plan.hosts, plan.max_hours).explain(plan.instance_type, spot=plan.spot))
    if line := horovod_note(check_job(plan.job, plan.run), plan.hosts):
        _logger.info(line)


def _dry_run(arguments: argparse.Namespace) -> int:
    from deploy.aws.clients import Aws
    from deploy.aws.ec2.launch import dry_run
    from kvstore.errors import InputError

    if arguments.job is None:
        raise InputError("--dry-run: expected a JOB")
    plan = make_plan(arguments, Aws(arguments.region, arguments.profile).region, None)
    _say_before(plan, None)
    for name, request in dry_run(plan):
        script = request.pop("UserData", None)
        print(f"{name} {json.dumps(request, indent=2)}")
        if script is not None:
            print(f"UserData of {name}:\n{script}")
    return 0


# ---- runs that are there


def _follow_only(aws: Aws, run: str) -> int:
    from deploy.aws.ec2.follower import RunFollower
    from deploy.aws.ec2.spec import RunSpec, check_run_name
    from deploy.aws.ec2.storage import PLAN, RunStorage
    from kvstore.errors import InputError

    resources = _find(aws, check_run_name(run))
    found = RunStorage(aws, resources.storage).read(PLAN) if resources.storage else None
    if found is None:
        raise InputError(f"the run {run} has no {PLAN} in {resources.storage or 'any folder that is known'}")
    plan = RunSpec.model_validate(found)
    following = RunFollower(aws, plan, _logger.info, _show)
    with _signals() as signals:
        return _follow_until_left(aws, plan, following, signals)


def _follow_until_left(aws: Aws, plan: RunSpec, following: RunFollower, signals: list[int]) -> int:
    while not signals:
        end = _look(following)
        if end is not None:
            _take_down(aws, plan.run)
            _logger.info(f"the run has ended with exit code {end.exit_code}: {end.message}")
            _logger.info(f"its folder: {plan.storage}")
            return end.exit_code
        _pause(plan.poll_seconds, signals)
    _logger.info(f"no longer following; the run goes on, and '--cleanup {plan.run}' ends it")
    return 128 + signals[0]


def _list(aws: Aws) -> int:
    from deploy.aws.ec2.resources import find_resources

    rows = [("RUN", "INSTANCES", "LAUNCHED", "OWNER", "FOLDER")]
    for resources in find_resources(aws):
        living = resources.living
        kinds = f"{len(living)} x {living[0].type}" if living else f"none; {len(resources.names())} leftover(s)"
        if living or resources.names():
            launched = min((instance.launched for instance in living), default="")
            rows.append((resources.run, kinds, launched, resources.owner, resources.storage))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _clean(aws: Aws, run: str) -> int:
    from deploy.aws.ec2.resources import find_resources, remove
    from deploy.aws.ec2.spec import check_run_name

    if run:
        remove(aws, _find(aws, check_run_name(run)), _logger.info)
        _logger.info(f"nothing is left of the run {run} but its folder on S3")
        return 0
    _, owner = whose(aws)
    for resources in find_resources(aws):
        if resources.living:
            _logger.info(
                f"{resources.run} still has {len(resources.living)} instance(s): '--cleanup {resources.run}' ends it"
            )
        elif resources.owner not in {owner, ""}:
            _logger.info(f"{resources.run} is of {resources.owner}: '--cleanup {resources.run}' cleans it all the same")
        elif resources.names():
            remove(aws, resources, _logger.info)
            _logger.info(f"nothing is left of the run {resources.run} but its folder on S3")
    return 0


def _find(aws: Aws, run: str) -> Resources:
    from deploy.aws.ec2.resources import find_resources
    from kvstore.errors import InputError

    found = find_resources(aws, run)
    if not found:
        raise InputError(f"there is nothing of a run {run} in {aws.region}; 'crossfade submit ec2 --list' has all runs")
    return found[0]


def _take_down(aws: Aws, run: str) -> None:
    """Remove all that is there of ``run``, whoever made it."""
    from deploy.aws.ec2.resources import find_resources, remove

    _logger.info("taking the cluster down")
    for resources in find_resources(aws, run):
        remove(aws, resources, _logger.info)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that ask to stop, as they come: within this, none of them ends the command by itself."""
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(text: str) -> None:
    print(text, end="", flush=True)
