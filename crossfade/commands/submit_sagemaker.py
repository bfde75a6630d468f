"""``crossfade submit sagemaker``: run a job as a SageMaker training job, and follow it."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from crossfade.options.job import load_job_arguments
from kvstore.errors import InputError

if TYPE_CHECKING:
    from deploy.aws.clients import Aws
    from deploy.aws.sagemaker.jobs import JobUpdate
    from deploy.aws.sagemaker.request import Submission
    from trainer.config.schema import JobConfig

_logger = logging.getLogger(__name__)

_DESCRIPTION = """\
Run a job as a SageMaker training job. What it costs an hour, and at most, is said before it starts.
"""
_EPILOG = """\
Examples:
  crossfade submit sagemaker jobs/plays.yaml --role CrossfadeTraining --output s3://music/jobs --dry-run
  crossfade submit sagemaker jobs/plays.yaml --role CrossfadeTraining --output s3://music/jobs \\
      --instance-type ml.g5.xlarge --hosts 2 --spot --wait
  crossfade submit sagemaker --follow plays-20260301-120000
  crossfade submit sagemaker --stop plays-20260301-120000

The data are read from S3, as data.path says, or are copied to each host first: --channel shards=s3://BUCKET/PREFIX.
With several hosts each has a server and a worker, unless cluster.servers and cluster.workers say otherwise, and
checkpoints go to OUTPUT/NAME/checkpoints, unless checkpoint.path says otherwise. Embeddings, report and job come to
OUTPUT/NAME/output/model.tar.gz.

The image follows from the GPU of the instance type: crossfade:cu90 for K80 (ml.p2), crossfade:cu112 for V100, T4, A100,
A10G (ml.p3, ml.g4dn, ml.p4d, ml.g5), crossfade:cpu where there is none. AWS has been retiring p2 and p3: where
ml.p2.xlarge is not to be had, name another --instance-type, such as ml.g4dn.xlarge.

With --spot SageMaker interrupts the job when it needs the hosts; it writes a checkpoint and goes on from it when there
are hosts again. With --wait, Ctrl-C asks whether to stop the job or only to stop watching.

Exit codes: 0 done (without --wait: submitted); 1 the job failed, or AWS cannot do it now; 2 something is to be mended;
130 no longer watched; 143 the job was stopped.
"""
_HOURS = 24.0


def add_parser(backends: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    from crossfade.commands.submit import add_common
    from deploy.aws.accelerators import DEFAULT_SAGEMAKER_TYPE

    parser = backends.add_parser(
        "sagemaker",
        help="as a SageMaker training job",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common(parser)
    what = parser.add_argument_group("what runs")
    what.add_argument("--role", metavar="ROLE", help="name or ARN of the IAM role that the job has (needed)")
    what.add_argument("--output", metavar="URI", help="s3://BUCKET/PREFIX under which the job's results come (needed)")
    what.add_argument("--name", metavar="NAME", help="name of the training job (default: that of the job and the time)")
    what.add_argument("--image", metavar="URI", help="image in ECR (default: crossfade:VARIANT of this account)")
    what.add_argument(
        "--instance-type", default=DEFAULT_SAGEMAKER_TYPE, metavar="TYPE", help="default: %(default)s, with a K80"
    )
    what.add_argument("--hosts", type=_whole, metavar="N", help="how many (default: cluster.hosts of the job)")
    what.add_argument("--volume-gb", type=_whole, default=50, metavar="N", help="disk of each, GiB (default: 50)")
    what.add_argument(
        "--channel", action="append", default=[], type=_pair, metavar="NAME=URI", help="copy this to each host first"
    )
    what.add_argument("--input-mode", choices=("File", "FastFile"), default="File", help="how (default: File)")
    what.add_argument("--tag", action="append", default=[], type=_pair, metavar="KEY=VALUE", help="tag of the job")
    limits = parser.add_argument_group("how long")
    limits.add_argument(
        "--max-hours", type=_positive, default=_HOURS, metavar="H", help="of training (default: %(default)g)"
    )
    limits.add_argument("--spot", action="store_true", help="on spare capacity, which costs less and may be taken away")
    limits.add_argument(
        "--max-wait-hours", type=_positive, metavar="H", help="for capacity and training (default: twice --max-hours)"
    )
    network = parser.add_argument_group("network and keys")
    network.add_argument("--subnet", action="append", default=[], metavar="ID", help="of the VPC that it runs in")
    network.add_argument("--security-group", action="append", default=[], metavar="ID", help="of that VPC")
    network.add_argument("--encrypt-traffic", action="store_true", help="encrypt what hosts send each other")
    network.add_argument("--volume-key", metavar="KEY", help="KMS key of the hosts' disks")
    network.add_argument("--output-key", metavar="KEY", help="KMS key of the results")
    action = parser.add_argument_group("what to do")
    action.add_argument("--dry-run", action="store_true", help="print the request as JSON, and start nothing")
    action.add_argument("--wait", action="store_true", help="follow the job to its end")
    action.add_argument("--follow", metavar="NAME", help="follow a job that was submitted before")
    action.add_argument("--stop", metavar="NAME", help="stop a job; it writes a checkpoint first")
    action.add_argument(
        "--poll-seconds",
        type=_positive,
        default=10.0,
        metavar="SECONDS",
        help="between two looks (default: %(default)g)",
    )
    parser.set_defaults(run=run)


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, but found '{text}'")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, but found '{text}'")
    return value


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, but found '{text}'")
    return key, value


def run(arguments: argparse.Namespace) -> int:
    """Submit, watch or stop."""
    from deploy.aws.clients import Aws
    from deploy.aws.sagemaker.jobs import stop

    if sum(value is not None for value in (arguments.job, arguments.follow, arguments.stop)) != 1:
        raise InputError(
            "expected one of a job file, --follow NAME and --stop NAME; see crossfade submit sagemaker --help"
        )
    aws = Aws(arguments.region, arguments.profile)
    if arguments.stop is not None:
        stop(aws, arguments.stop)
        _logger.info(f"the training job {arguments.stop} is asked to stop; --follow {arguments.stop} follows it")
        return 0
    if arguments.follow is not None:
        return _watch(aws, arguments.follow, arguments.poll_seconds)
    return _submit(aws, arguments)


def _submit(aws: Aws, arguments: argparse.Namespace) -> int:
    from deploy.aws.accelerators import horovod_note
    from deploy.aws.prices import Cost, hourly_price
    from deploy.aws.sagemaker.jobs import image_problem, start
    from deploy.aws.sagemaker.request import idle_gpu, make_request

    submission = _submission(aws, load_job_arguments(arguments), arguments)
    request = make_request(submission)
    aws.check_request(aws.sagemaker, "CreateTrainingJob", request)
    for line in (idle_gpu(submission), horovod_note(submission.job, submission.hosts)):
        if line is not None:
            _logger.info(line)
    price = hourly_price(None if arguments.dry_run else aws, "AmazonSageMaker", submission.instance_type)
    cost = Cost(price, submission.hosts, submission.max_hours)
    _logger.info(cost.explain(submission.instance_type, spot=arguments.spot))
    if arguments.dry_run:
        if "Environment" in request:
            request["Environment"] = dict.fromkeys(request["Environment"], "made anew for each job")
        print(json.dumps(request, indent=2))
        return 0
    if line := image_problem(aws, submission.image):
        _logger.info(line)
    start(aws, request)
    print(submission.name)
    if not arguments.wait:
        _logger.info(f"submitted; crossfade submit sagemaker --follow {submission.name} follows it, --stop stops it")
        return 0
    return _watch(aws, submission.name, arguments.poll_seconds)


def _submission(aws: Aws, job: JobConfig, arguments: argparse.Namespace) -> Submission:
    """What the arguments say, with what they leave out."""
    from deploy.aws.sagemaker.request import Submission

    for option in ("role", "output"):
        if getattr(arguments, option) is None:
            raise InputError(f"--{option} is missing; see crossfade submit sagemaker --help")
    wait_hours = arguments.max_wait_hours or 2 * arguments.max_hours
    return Submission(
        job=job,
        name=arguments.name or f"{job.name.replace('_', '-').strip('-')[:47]}-{datetime.now(UTC):%Y%m%d-%H%M%S}",
        role=_role(aws, arguments.role),
        image=arguments.image or _image(aws, arguments.instance_type),
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
        tags=dict(arguments.tag),
        channels=dict(arguments.channel),
        input_mode=arguments.input_mode,
    )


def _role(aws: Aws, role: str) -> str:
    return role if role.startswith("arn:") else f"arn:{aws.partition}:iam::{aws.account()}:role/{role}"


def _image(aws: Aws, instance_type: str) -> str:
    from deploy.aws.accelerators import variant_of

    variant = variant_of(instance_type)
    return f"{aws.account()}.dkr.ecr.{aws.region}.{aws.domain}/crossfade:{variant}"


def _watch(aws: Aws, name: str, poll_seconds: float) -> int:
    """Follow the job ``name`` to its end; its exit code."""
    from crossfade.signals import stopper
    from deploy.aws.sagemaker.jobs import follow, raise_for_end, stop

    description: dict[str, Any] = {}
    with _Display(name) as display, stopper.deferred():
        for news in follow(aws, name, _pause, poll_seconds):
            display.show(news)
            description = news.description
            if stopper.number is None or description["TrainingJobStatus"] in {"Completed", "Failed", "Stopped"}:
                continue
            display.close()
            if not _wants_stop(name):
                break
            stop(aws, name)
            stopper.forget()
            _logger.info(
                f"the training job {name} is asked to stop; it writes a checkpoint first. Ctrl-C stops watching"
            )
    stopper.check(f"watching; the training job {name} goes on (--follow {name} follows it, --stop {name} stops it)")
    code = raise_for_end(description, aws.region)
    _print_end(description)
    return code


def _pause(seconds: float) -> None:
    """Sleep, but not through a signal."""
    from crossfade.signals import stopper

    deadline = time.monotonic() + seconds
    while stopper.number is None and time.monotonic() < deadline:
        time.sleep(min(0.1, seconds))


def _wants_stop(name: str) -> bool:
    """Whether the user wants the job stopped, and not only to stop watching; where nobody can be asked, no."""
    if not sys.stdin.isatty():
        return False
    answer = input(f"\nStop the training job {name}, or only stop watching? [s]top / [w]atching: ")
    return answer.strip().lower().startswith("s")


def _print_end(description: dict[str, Any]) -> None:
    name, status = description["TrainingJobName"], description["TrainingJobStatus"]
    seconds, billed = description.get("TrainingTimeInSeconds"), description.get("BillableTimeInSeconds")
    if seconds is not None and billed is not None:
        _logger.info(f"{name}: {seconds:,} s of training, {billed:,} s billed")
    model = description.get("ModelArtifacts", {}).get("S3ModelArtifacts")
    print(f"{name}: {status.lower()}" + (f"; model: {model}" if model and status == "Completed" else ""))


class _Display:
    """Lines of the log on stdout, changes of state on stderr, and a bar of how far it is."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: Any = None

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def show(self, news: JobUpdate) -> None:
        """Show what is new."""
        from tqdm import tqdm

        for line in news.transitions:
            tqdm.write(f"crossfade: {self._name}: {line}", file=sys.stderr)
        for line in news.lines:
            tqdm.write(line.rstrip("\n"), file=sys.stdout)
        if self._bar is None:
            style = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
            self._bar = tqdm(total=1.0, desc=self._name, bar_format=style, dynamic_ncols=True, file=sys.stderr)
        self._bar.set_postfix_str(news.secondary, refresh=False)
        self._bar.update((1.0 if news.status == "Completed" else news.progress or 0.0) - self._bar.n)
        self._bar.refresh()
