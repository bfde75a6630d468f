"""``crossfade submit ec2``: run a job on EC2 instances that are launched for it and terminated after it."""

from __future__ import annotations

import json

from crossfade.cli.command import as_command
from crossfade.deploy.aws.ec2.options import SubmitEc2Options
from crossfade.terminal import align, print_lines, print_log

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


@as_command("ec2", "run a job on EC2 instances that are launched for it", _DESCRIPTION, _EXAMPLES, _NOTES)
def run(options: SubmitEc2Options) -> int:
    """Perform the action; return the exit code of the run.

    Raises:
        InputError: the job or an option is invalid, or AWS rejects a request.
        CloudError: AWS cannot launch the instances now.
    """
    from crossfade.deploy.aws.ec2 import runs

    if options.dry_run:
        for name, request in runs.dry_requests(options):
            script = request.pop("UserData", None)
            print(f"{name} {json.dumps(request, indent=2)}")
            if script is not None:
                print(f"UserData of {name}:\n{script}")
        return 0
    if options.job is not None:
        return runs.submit(options, print_log)
    aws = options.aws()
    if options.follow is not None:
        return runs.follow_existing(aws, options.follow, print_log)
    if options.list:
        print_lines(align(runs.list_runs(aws), left=5))
    else:
        runs.clean_up(aws, options.cleanup or "")
    return 0
