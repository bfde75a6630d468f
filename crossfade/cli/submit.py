"""``crossfade submit sagemaker | ec2``: run a job on AWS."""

from __future__ import annotations

import json

from crossfade.base.options import Options
from crossfade.cli import submit_sagemaker
from crossfade.cli.command import Command, as_command
from crossfade.deploy.aws.ec2.options import SubmitEc2Options
from crossfade.terminal import align, print_lines, print_log

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
unless the job or the options set more. The run's folder below --output gets the job, the log, checkpoints and, at the
end, result/ with embeddings and report. Instances need a route to S3, Secrets Manager, Auto Scaling and ECR; in the
default network they have one. No port is open to the internet. docs/aws.md lists the permissions of this command, and
explains how to push an image to ECR.

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
pip install 'crossfade[aws]'. docs/aws.md lists permissions and quotas, and explains how to push an image to ECR.
"""


run: Command[Options] = Command(
    "submit",
    "Run a job on AWS.",
    _EXAMPLES,
    _NOTES,
    actions=(
        (submit_sagemaker.run, "run a job as a SageMaker training job"),
        (_run_on_ec2, "run a job on EC2 instances that are launched for it"),
    ),
    kind="service",
)
