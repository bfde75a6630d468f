"""``crossfade submit sagemaker | ec2``: run a job on AWS."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from crossfade.base.command_line import command_line
from crossfade.base.options import Options
from crossfade.cli.command import Command, as_command
from crossfade.deploy.aws.ec2.options import SubmitEc2Options
from crossfade.deploy.aws.sagemaker.options import SubmitSageMakerOptions
from crossfade.terminal import align, print_line, print_lines, print_log

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws

_logger = logging.getLogger(__name__)

_SAGEMAKER_DESCRIPTION = """\
Run a job as a SageMaker training job.
"""
_SAGEMAKER_EXAMPLES = (
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
_SAGEMAKER_NOTES = """\
The dataset is read from S3 at data.path, or copied to each host first with --copy-data. Each of several hosts runs a
server and a worker, or with cluster.store: sharded a worker, unless cluster.servers and cluster.workers are set.
Checkpoints go to OUTPUT/NAME/checkpoints, unless checkpoint.path is set; embeddings, report and job to
OUTPUT/NAME/output/model.tar.gz.

The image depends on the GPU of the instance type: crossfade:torch for T4 and newer (ml.g4dn, ml.g5, ml.p4d, ml.p5),
crossfade:cu112 for V100 and M60 (ml.p3, ml.g3), crossfade:cu90 for K80 (ml.p2), crossfade:cpu without one. A job uses
the GPU unless it sets train.device or train.engine to cpu. AWS is retiring p2 and p3.

With --spot, SageMaker interrupts the job when it needs the hosts; the job writes a checkpoint and resumes when there is
capacity. With --wait or --follow, Ctrl-C only stops following; --stop stops the job.

Exit codes: 0 done (without --wait: submitted); 1 the job failed, or AWS cannot run it now; 2 invalid input; 130 no
longer following; 143 the job was stopped.
"""


@as_command("sagemaker", _SAGEMAKER_DESCRIPTION, _SAGEMAKER_EXAMPLES, _SAGEMAKER_NOTES)
def _run_on_sagemaker(options: SubmitSageMakerOptions) -> int:
    """Submit, follow or stop a training job; return the exit code of one followed to its end.

    Raises:
        InputError: the job or an option is invalid, or AWS rejects the request.
        CloudError: AWS cannot run the job now.
    """
    from crossfade.deploy.aws.sagemaker.jobs import follow, stop

    aws = options.aws()
    if options.stop is not None:
        stop(aws, options.stop)
        _logger.info(f"the training job {options.stop} stops after a checkpoint; --follow {options.stop} follows it")
        return 0
    name = options.follow or _submit_to_sagemaker(aws, options)
    return 0 if name is None else follow(aws, name, options.poll_seconds, print_log)


def _submit_to_sagemaker(aws: Aws, options: SubmitSageMakerOptions) -> str | None:
    """Submit a job, or print its request; return the name of a training job to follow."""
    from crossfade.deploy.aws.aws_errors import translate_aws_errors
    from crossfade.deploy.aws.ecr import check_image
    from crossfade.deploy.aws.sagemaker.request import make_request, make_submission

    submission = make_submission(aws, options)
    request = make_request(submission)
    if options.dry_run:
        if "Environment" in request:
            request["Environment"] = dict.fromkeys(request["Environment"], "generated for each job")
        print(json.dumps(request, indent=2))
        return None
    check_image(aws, submission.image)
    with translate_aws_errors(f"starting the training job {submission.name}", aws.region):
        aws.sagemaker.create_training_job(**request)
    print_line(submission.name)
    if options.wait:
        return submission.name
    following = command_line("submit", "sagemaker", follow=submission.name)
    _logger.info(f"submitted; to follow it (--stop stops it): {following}")
    return None


_EC2_DESCRIPTION = """\
Run a job on EC2: launch instances for it, follow it, and delete everything when it ends, fails or is stopped.
"""
_EC2_EXAMPLES = (
    (
        "crossfade submit ec2 jobs/plays.yaml --output s3://music/runs --dry-run",
        "Print the requests that create something, send none.",
    ),
    (
        "crossfade submit ec2 jobs/plays.yaml --output s3://music/runs --hosts 4 --spot --instance-type r6i.4xlarge",
        "Train on four spot instances.",
    ),
    (
        "crossfade submit ec2 jobs/plays.yaml --output s3://music/runs --instance-type p2.xlarge",
        "Train on a K80, with the image crossfade:cu90.",
    ),
    ("crossfade submit ec2 --list", "List the runs that have a cluster."),
    ("crossfade submit ec2 --follow plays-1a2b3c4d", "Follow a detached run."),
    ("crossfade submit ec2 --cleanup plays-1a2b3c4d", "End a run, and delete what is left of it."),
)
_EC2_NOTES = """\
The dataset must be on S3. Each of several hosts runs a server and a worker, or with cluster.store: sharded a worker,
unless the job or the options set more. The run's folder below --output gets the job, checkpoints and, at the end,
result/ with embeddings and report; CloudWatch gets the log, in the group /crossfade/runs. Instances need a route to S3,
Secrets Manager, Auto Scaling, CloudWatch Logs and ECR; in the default network they have one. No port is open to the
internet.

The cluster is a CloudFormation stack. Its Auto Scaling groups replace hosts that are lost, whether the run is followed
or not. With --spot, EC2 may interrupt instances: the job saves a checkpoint first, and another instance replaces the
host when there is capacity.

Ctrl-C makes the run write a checkpoint and deletes the cluster; a second one deletes it at once. With --follow it only
stops following. If this command is killed, hosts still terminate when the run ends, or after --max-hours at the latest,
and '--cleanup RUN' deletes the rest.

Exit codes are the run's: 0 done, 1 failed, 2 invalid input, 143 stopped; 130 no longer following.
"""


@as_command("ec2", _EC2_DESCRIPTION, _EC2_EXAMPLES, _EC2_NOTES)
def _run_on_ec2(options: SubmitEc2Options) -> int:
    """Perform the action; return the exit code of the run.

    Raises:
        InputError: the job or an option is invalid, or AWS rejects a request.
        CloudError: AWS cannot launch the instances now.
    """
    from crossfade.deploy.aws.ec2 import runs

    if options.dry_run:
        for name, request in runs.dry_requests(options):
            texts = {key: request.pop(key) for key in ("Body", "TemplateBody") if key in request}
            print(f"{name} {json.dumps(request, indent=2)}")
            for key, text in texts.items():
                print(f"{key} of {name}:\n{text}")
        return 0
    if options.job is not None:
        return runs.submit(options, print_log)
    aws = options.aws()
    if options.follow is not None:
        stack = runs.find_run(aws, options.follow)
        return runs.follow(aws, stack, options.poll_seconds, print_log, owns=False)
    if options.list:
        print_lines(align(runs.list_runs(aws), left=4))
    else:
        assert options.cleanup is not None, "the options require an action"
        runs.clean_up(aws, options.cleanup)
    return 0


_EXAMPLES = (
    (
        "crossfade submit sagemaker jobs/plays.yaml --role CrossfadeTraining --output s3://music/jobs --wait",
        "Run a job as a SageMaker training job, and follow it.",
    ),
    (
        "crossfade submit ec2 jobs/plays.yaml --output s3://music/runs --dry-run",
        "Print the requests to EC2, send none.",
    ),
)
_NOTES = """\
'crossfade train' takes the same job file; the dataset and the results are on S3. Credentials, region and endpoint come
from the configuration of the AWS tools (AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL ...). The package boto3 is required:
pip install 'crossfade[aws]'.
"""


run: Command[Options] = Command(
    "submit",
    "Run a job on AWS.",
    _EXAMPLES,
    _NOTES,
    actions=(
        (_run_on_sagemaker, "run a job as a SageMaker training job"),
        (_run_on_ec2, "run a job on EC2 instances that are launched for it"),
    ),
    kind="service",
)
