"""``crossfade submit sagemaker``: run a job as a SageMaker training job, and follow it."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from crossfade.base.errors import InputError, escape_unprintable
from crossfade.cli.command import add_command
from crossfade.cli.options.aws import add_account_options
from crossfade.cli.options.job import add_job, load_job_arguments
from crossfade.cli.options.parsing import name_value_pair, positive_integer, positive_number
from crossfade.cli.submit_sagemaker_endpoint import add_endpoint_options, deploy_job
from crossfade.terminal import print_line

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws
    from crossfade.deploy.aws.sagemaker.jobs import JobUpdate
    from crossfade.deploy.aws.sagemaker.request import Submission
    from crossfade.trainer.config.schema import JobConfig
    from crossfade.trainer.config.sections import EngineName

_logger = logging.getLogger(__name__)

_DESCRIPTION = """\
Run a job as a SageMaker training job, and print its hourly and maximum cost before it starts.
"""
_EXAMPLES = (
    (
        "crossfade submit sagemaker jobs/plays.yaml --role CrossfadeTraining --output s3://music/jobs --dry-run",
        "Print the request as JSON, and start nothing.",
    ),
    (
        "crossfade submit sagemaker jobs/plays.yaml --role CrossfadeTraining --output s3://music/jobs \\\n"
        "      --instance-type ml.g5.xlarge --hosts 2 --spot --wait",
        "Train on two spot instances, and follow the job.",
    ),
    ("crossfade submit sagemaker --follow plays-20260301-120000", "Follow a submitted job."),
    ("crossfade submit sagemaker --stop plays-20260301-120000", "Stop a job after a checkpoint."),
    (
        "crossfade submit sagemaker --deploy plays-20260301-120000 --endpoint plays --wait",
        "Serve the model of a completed job at an endpoint, or update the endpoint with it.",
    ),
)
_NOTES = """\
The dataset is read from S3 at data.path, or copied to each host first with --channel training=s3://BUCKET/PREFIX. Each
of several hosts runs a server and a worker, unless cluster.servers and cluster.workers are set. Checkpoints go to
OUTPUT/NAME/checkpoints, unless checkpoint.path is set; embeddings, report and job to OUTPUT/NAME/output/model.tar.gz.

The image depends on the GPU of the instance type: crossfade:torch for T4 and newer (ml.g4dn, ml.g5, ml.p4d, ml.p5),
crossfade:cu112 for V100 and M60 (ml.p3, ml.g3), crossfade:cu90 for K80 (ml.p2), crossfade:cpu without one. A job uses
the GPU unless it sets train.device or train.engine to cpu. AWS is retiring p2 and p3: where ml.p2.xlarge is not
available, choose another --instance-type, such as ml.g4dn.xlarge.

With --spot, SageMaker interrupts the job when it needs the hosts; the job writes a checkpoint and resumes when there is
capacity. With --wait or --follow, Ctrl-C asks whether to stop the job or only to stop following.

--deploy starts 'crossfade serve' in crossfade:cpu with the job's model.tar.gz, on hosts that cost money until the
endpoint is deleted (aws sagemaker delete-endpoint). An endpoint that exists answers on while it is updated.

Exit codes: 0 done (without --wait: submitted); 1 the job failed, or AWS cannot run it now; 2 invalid input; 130 no
longer following; 143 the job was stopped.
"""
_MAX_HOURS = 24.0
_FINISHED = {"Completed", "Failed", "Stopped"}


def add_parser(services: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``sagemaker`` to the subcommands of ``crossfade submit``."""
    parser = add_command(
        services,
        "sagemaker",
        "run a job as a SageMaker training job",
        _DESCRIPTION,
        examples=_EXAMPLES,
        notes=_NOTES,
    )
    _add_action_options(parser)
    _add_job_options(parser)
    _add_limit_options(parser)
    _add_network_options(parser)
    add_endpoint_options(parser)
    add_account_options(parser)
    parser.set_defaults(run=run)


def _add_action_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("action")
    group.add_argument("--dry-run", action="store_true", help="print the request as JSON, and start nothing")
    group.add_argument("--wait", action="store_true", help="follow the job to its end, or wait for the endpoint")
    group.add_argument("--follow", metavar="NAME", help="follow a submitted job to its end")
    group.add_argument("--stop", metavar="NAME", help="stop a job after a checkpoint")
    group.add_argument("--deploy", metavar="NAME", help="serve the model of a completed job at an endpoint")
    group.add_argument(
        "--poll-seconds",
        type=positive_number,
        default=10.0,
        metavar="SECONDS",
        help="poll the job at this interval (default: %(default)g)",
    )


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    from crossfade.deploy.aws.accelerators import DEFAULT_SAGEMAKER_TYPE

    group = parser.add_argument_group("job")
    add_job(group, optional=True)
    group.add_argument("--role", metavar="ROLE", help="run with this IAM role, a name or ARN (required)")
    group.add_argument("--output", metavar="URI", help="write results below s3://BUCKET/PREFIX (required)")
    group.add_argument("--name", metavar="NAME", help="name the training job (default: the job's name and the time)")
    group.add_argument("--image", metavar="URI", help="run this image in ECR (default: crossfade:VARIANT)")
    group.add_argument(
        "--instance-type",
        default=DEFAULT_SAGEMAKER_TYPE,
        metavar="TYPE",
        help="run on this instance type (default: %(default)s, with a K80)",
    )
    group.add_argument("--hosts", type=positive_integer, metavar="N", help="run on N hosts (default: cluster.hosts)")
    group.add_argument(
        "--volume-gb", type=positive_integer, default=50, metavar="N", help="attach a disk of N GiB (default: 50)"
    )
    group.add_argument(
        "--channel",
        action="append",
        default=[],
        type=name_value_pair,
        metavar="NAME=URI",
        help="copy this S3 prefix to each host first; repeatable",
    )
    group.add_argument(
        "--input-mode", choices=("File", "FastFile"), default="File", help="set the mode of channels (default: File)"
    )
    group.add_argument(
        "--tag", action="append", default=[], type=name_value_pair, metavar="KEY=VALUE", help="tag the job; repeatable"
    )


def _add_limit_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--max-hours",
        type=positive_number,
        default=_MAX_HOURS,
        metavar="H",
        help="stop training after H hours (default: %(default)g)",
    )
    group.add_argument("--spot", action="store_true", help="use spot capacity, which costs less and may be interrupted")
    group.add_argument(
        "--max-wait-hours",
        type=positive_number,
        metavar="H",
        help="stop after H hours of waiting for spot capacity and training (default: twice --max-hours)",
    )


def _add_network_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network and encryption")
    group.add_argument("--subnet", action="append", default=[], metavar="ID", help="run in this subnet; repeatable")
    group.add_argument(
        "--security-group", action="append", default=[], metavar="ID", help="use this security group; repeatable"
    )
    group.add_argument(
        "--encrypt-traffic",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="encrypt traffic between hosts, which may lengthen training (default: on)",
    )
    group.add_argument(
        "--isolate-network",
        action=argparse.BooleanOptionalAction,
        help="cut the container off from all networks (default: if the job needs none)",
    )
    group.add_argument("--volume-key", metavar="KEY", help="encrypt disks with this KMS key")
    group.add_argument("--output-key", metavar="KEY", help="encrypt results with this KMS key")


def run(arguments: argparse.Namespace) -> int:
    """Submit, follow or stop a training job, or deploy its model; return the exit code of a job followed to its end.

    Raises:
        InputError: the job or an option is invalid, or AWS rejects the request.
        CloudError: AWS cannot run the job now.
    """
    from crossfade.deploy.aws.clients import Aws
    from crossfade.deploy.aws.sagemaker.jobs import stop

    actions = (arguments.job, arguments.follow, arguments.stop, arguments.deploy)
    if sum(value is not None for value in actions) != 1:
        raise InputError(
            "expected one of a job file, --follow NAME, --stop NAME and --deploy NAME; see crossfade submit sagemaker "
            "--help"
        )
    aws = Aws(arguments.region, arguments.profile)
    if arguments.deploy is not None:
        image = arguments.image or _image(aws, arguments.endpoint_type, "auto")
        return deploy_job(aws, arguments, image, _role(aws, arguments.role) if arguments.role else None, _pause)
    if arguments.stop is not None:
        stop(aws, arguments.stop)
        _logger.info(
            f"the training job {arguments.stop} stops after a checkpoint; --follow {arguments.stop} follows it"
        )
        return 0
    if arguments.follow is not None:
        return _follow(aws, arguments.follow, arguments.poll_seconds)
    return _submit(aws, arguments)


def _submit(aws: Aws, arguments: argparse.Namespace) -> int:
    from crossfade.deploy.aws.job_checks import notes
    from crossfade.deploy.aws.prices import Cost, hourly_price
    from crossfade.deploy.aws.sagemaker.jobs import image_problem, start
    from crossfade.deploy.aws.sagemaker.request import make_request

    submission = _submission(aws, load_job_arguments(arguments), arguments)
    request = make_request(submission)
    aws.check_request(aws.sagemaker, "CreateTrainingJob", request)
    for note in notes(submission.job, submission.instance_type, submission.hosts):
        _logger.info(note)
    price = hourly_price(None if arguments.dry_run else aws, "AmazonSageMaker", submission.instance_type)
    cost = Cost(price, submission.hosts, submission.max_hours)
    _logger.info(cost.explain(submission.instance_type, spot=arguments.spot))
    if arguments.dry_run:
        if "Environment" in request:
            request["Environment"] = dict.fromkeys(request["Environment"], "generated for each job")
        print(json.dumps(request, indent=2))
        return 0
    if line := image_problem(aws, submission.image):
        _logger.info(line)
    start(aws, request)
    print_line(submission.name)
    if not arguments.wait:
        _logger.info(f"submitted; crossfade submit sagemaker --follow {submission.name} follows it, --stop stops it")
        return 0
    return _follow(aws, submission.name, arguments.poll_seconds)


def _submission(aws: Aws, job: JobConfig, arguments: argparse.Namespace) -> Submission:
    """Build the submission from the options and their defaults."""
    from crossfade.deploy.aws.sagemaker.request import Submission

    for option in ("role", "output"):
        if getattr(arguments, option) is None:
            raise InputError(f"--{option} is missing; see crossfade submit sagemaker --help")
    wait_hours = arguments.max_wait_hours or 2 * arguments.max_hours
    return Submission(
        job=job,
        name=arguments.name or f"{job.name.replace('_', '-').strip('-')[:47]}-{datetime.now(UTC):%Y%m%d-%H%M%S}",
        role=_role(aws, arguments.role),
        image=arguments.image or _image(aws, arguments.instance_type, job.train.engine),
        output=arguments.output,
        instance_type=arguments.instance_type,
        hosts=arguments.hosts or job.cluster.hosts,
        max_hours=arguments.max_hours,
        max_wait_hours=wait_hours if arguments.spot else None,
        volume_gib=arguments.volume_gb,
        volume_key=arguments.volume_key,
        output_key=arguments.output_key,
        subnets=arguments.subnet,
        security_groups=arguments.security_group,
        encrypt_traffic=arguments.encrypt_traffic,
        isolate_network=arguments.isolate_network,
        tags=dict(arguments.tag),
        channels=dict(arguments.channel),
        input_mode=arguments.input_mode,
    )


def _role(aws: Aws, role: str) -> str:
    return role if role.startswith("arn:") else f"arn:{aws.partition}:iam::{aws.account()}:role/{role}"


def _image(aws: Aws, instance_type: str, engine: EngineName) -> str:
    from crossfade.deploy.aws.accelerators import variant_of

    variant = variant_of(instance_type, engine)
    return f"{aws.account()}.dkr.ecr.{aws.region}.{aws.domain}/crossfade:{variant}"


def _follow(aws: Aws, name: str, poll_seconds: float) -> int:
    """Follow the job ``name`` to its end; return its exit code."""
    from crossfade.deploy.aws.sagemaker import jobs
    from crossfade.signals import stopper

    description: dict[str, Any] = {}
    with _Display(name) as display, stopper.deferred():
        for update in jobs.follow(aws, name, _pause, poll_seconds):
            display.show(update)
            description = update.description
            if stopper.number is None or description["TrainingJobStatus"] in _FINISHED:
                continue
            display.close()
            if not _confirm_stop(name):
                break
            jobs.stop(aws, name)
            stopper.forget()
            _logger.info(f"the training job {name} stops after a checkpoint; Ctrl-C stops following")
    stopper.check(f"following; the training job {name} continues (--follow {name} follows it, --stop {name} stops it)")
    code = jobs.raise_for_end(description, aws.region)
    _print_end(description)
    return code


def _pause(seconds: float) -> None:
    """Sleep until ``seconds`` have passed or a signal arrives."""
    from crossfade.signals import stopper

    deadline = time.monotonic() + seconds
    while stopper.number is None and time.monotonic() < deadline:
        time.sleep(min(0.1, seconds))


def _confirm_stop(name: str) -> bool:
    """Ask whether to stop the job, or only to stop following it; without a terminal, return False."""
    if not sys.stdin.isatty():
        return False
    answer = input(f"\nStop the training job {name}, or only stop following it? [s]top / [f]ollowing: ")
    return answer.strip().lower().startswith("s")


def _print_end(description: dict[str, Any]) -> None:
    name, status = description["TrainingJobName"], description["TrainingJobStatus"]
    seconds, billed = description.get("TrainingTimeInSeconds"), description.get("BillableTimeInSeconds")
    if seconds is not None and billed is not None:
        _logger.info(f"{name}: {seconds:,} s of training, {billed:,} s billed")
    model = description.get("ModelArtifacts", {}).get("S3ModelArtifacts")
    print_line(f"{name}: {status.lower()}" + (f"; model: {model}" if model and status == "Completed" else ""))


class _Display:
    """Shows log lines of the job on stdout, changes of its state on stderr, and a progress bar."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: Any = None

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the bar and leave it on the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def show(self, update: JobUpdate) -> None:
        """Show an update."""
        from tqdm import tqdm

        for line in update.transitions:
            tqdm.write(escape_unprintable(f"crossfade: {self._name}: {line}"), file=sys.stderr)
        for line in update.lines:
            tqdm.write(escape_unprintable(line.rstrip("\n").expandtabs()), file=sys.stdout)
        if self._bar is None:
            style = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
            self._bar = tqdm(total=1.0, desc=self._name, bar_format=style, dynamic_ncols=True, file=sys.stderr)
        self._bar.set_postfix_str(update.secondary, refresh=False)
        self._bar.update((1.0 if update.status == "Completed" else update.progress or 0.0) - self._bar.n)
        self._bar.refresh()
