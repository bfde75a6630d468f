"""``crossfade submit sagemaker``: run a job as a SageMaker training job, and follow it."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

from crossfade.base.command_line import command_line
from crossfade.base.errors import escape_unprintable
from crossfade.base.signals import stopper
from crossfade.cli.command import as_command
from crossfade.deploy.aws.sagemaker.options import SubmitSageMakerOptions
from crossfade.terminal import print_line

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws
    from crossfade.deploy.aws.sagemaker.jobs import JobUpdate

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
)
_NOTES = """\
The dataset is read from S3 at data.path, or copied to each host first with --channel training=s3://BUCKET/PREFIX. Each
of several hosts runs a server and a worker, or with cluster.store: sharded a worker, unless cluster.servers and
cluster.workers are set. Checkpoints go to OUTPUT/NAME/checkpoints, unless checkpoint.path is set; embeddings, report
and job to OUTPUT/NAME/output/model.tar.gz.

The image depends on the GPU of the instance type: crossfade:torch for T4 and newer (ml.g4dn, ml.g5, ml.p4d, ml.p5),
crossfade:cu112 for V100 and M60 (ml.p3, ml.g3), crossfade:cu90 for K80 (ml.p2), crossfade:cpu without one. A job uses
the GPU unless it sets train.device or train.engine to cpu. AWS is retiring p2 and p3: where ml.p2.xlarge is not
available, choose another --instance-type, such as ml.g4dn.xlarge.

With --spot, SageMaker interrupts the job when it needs the hosts; the job writes a checkpoint and resumes when there is
capacity. With --wait or --follow, Ctrl-C asks whether to stop the job or only to stop following.

Exit codes: 0 done (without --wait: submitted); 1 the job failed, or AWS cannot run it now; 2 invalid input; 130 no
longer following; 143 the job was stopped.
"""
_FINISHED = {"Completed", "Failed", "Stopped"}


@as_command("sagemaker", _DESCRIPTION, _EXAMPLES, _NOTES)
def run(options: SubmitSageMakerOptions) -> int:
    """Submit, follow or stop a training job; return the exit code of one followed to its end.

    Raises:
        InputError: the job or an option is invalid, or AWS rejects the request.
        CloudError: AWS cannot run the job now.
    """
    from crossfade.deploy.aws.sagemaker.jobs import stop

    aws, job = options.aws(), options.stop
    if job is not None:
        stop(aws, job)
        _logger.info(f"the training job {job} stops after a checkpoint; --follow {job} follows it")
        return 0
    if options.follow is not None:
        return _follow(aws, options.follow, options.poll_seconds)
    return _submit(aws, options)


def _submit(aws: Aws, options: SubmitSageMakerOptions) -> int:
    from crossfade.deploy.aws.accelerators import notes
    from crossfade.deploy.aws.prices import describe_cost
    from crossfade.deploy.aws.sagemaker.jobs import image_problem, start
    from crossfade.deploy.aws.sagemaker.request import make_request, make_submission

    submission = make_submission(aws, options)
    request = make_request(submission)
    aws.check_request(aws.sagemaker, "CreateTrainingJob", request)
    for note in notes(submission.job, options.instance_type, submission.hosts):
        _logger.info(note)
    asked, kind = None if options.dry_run else aws, options.instance_type
    cost = describe_cost(
        asked, "AmazonSageMaker", kind, hosts=submission.hosts, hours=options.max_hours, spot=options.spot
    )
    _logger.info(cost)
    if options.dry_run:
        if "Environment" in request:
            request["Environment"] = dict.fromkeys(request["Environment"], "generated for each job")
        print(json.dumps(request, indent=2))
        return 0
    if line := image_problem(aws, submission.image):
        _logger.info(line)
    start(aws, request)
    print_line(submission.name)
    if not options.wait:
        following = command_line("submit", "sagemaker", follow=submission.name)
        _logger.info(f"submitted; to follow it (--stop stops it): {following}")
        return 0
    return _follow(aws, submission.name, options.poll_seconds)


def _follow(aws: Aws, name: str, poll_seconds: float) -> int:
    """Follow the job ``name`` to its end; return its exit code."""
    from crossfade.deploy.aws.sagemaker import jobs

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
