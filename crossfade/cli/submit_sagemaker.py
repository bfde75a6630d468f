"""``crossfade submit sagemaker``: run a job as a SageMaker training job, and follow it."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from crossfade.base.command_line import command_line
from crossfade.cli.command import as_command
from crossfade.deploy.aws.sagemaker.options import SubmitSageMakerOptions
from crossfade.terminal import print_line, print_log

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws

_logger = logging.getLogger(__name__)

_DESCRIPTION = """\
Run a job as a SageMaker training job.
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
The dataset is read from S3 at data.path, or copied to each host first with --copy-data. Each of several hosts runs a
server and a worker, or with cluster.store: sharded a worker, unless cluster.servers and cluster.workers are set.
Checkpoints go to OUTPUT/NAME/checkpoints, unless checkpoint.path is set; embeddings, report and job to
OUTPUT/NAME/output/model.tar.gz.

The image depends on the GPU of the instance type: crossfade:torch for T4 and newer (ml.g4dn, ml.g5, ml.p4d, ml.p5),
crossfade:cu112 for V100 and M60 (ml.p3, ml.g3), crossfade:cu90 for K80 (ml.p2), crossfade:cpu without one. A job uses
the GPU unless it sets train.device or train.engine to cpu. AWS is retiring p2 and p3: where ml.p2.xlarge is not
available, choose another --instance-type, such as ml.g4dn.xlarge.

With --spot, SageMaker interrupts the job when it needs the hosts; the job writes a checkpoint and resumes when there is
capacity. With --wait or --follow, Ctrl-C only stops following; --stop stops the job.

Exit codes: 0 done (without --wait: submitted); 1 the job failed, or AWS cannot run it now; 2 invalid input; 130 no
longer following; 143 the job was stopped.
"""


@as_command("sagemaker", _DESCRIPTION, _EXAMPLES, _NOTES)
def run(options: SubmitSageMakerOptions) -> int:
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
    name = options.follow or _submit(aws, options)
    return 0 if name is None else follow(aws, name, options.poll_seconds, print_log)


def _submit(aws: Aws, options: SubmitSageMakerOptions) -> str | None:
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
