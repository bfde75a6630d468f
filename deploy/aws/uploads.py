"""Find and abort multipart uploads that a process which died has left on S3, where they cost as much as objects do.

No listing of objects shows them. ``deploy/aws/clients.py`` has why boto3 is used here and pyarrow elsewhere.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from crossfade.deploy.aws.errors import translate_aws_errors
from crossfade.kvstore.checkpoint.files import STEP_NAME
from crossfade.kvstore.checkpoint.lifecycle import Leftover

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws


def find_uploads(aws: Aws, checkpoints: str, started_before: float) -> list[Leftover]:
    """Return the uploads into the checkpoints at the URI ``checkpoints`` that began before ``started_before``.

    Raises:
        CloudError, CloudRequestError: S3 rejects the request.
    """
    bucket, _, prefix = checkpoints.removeprefix("s3://").rstrip("/").partition("/")
    prefix = f"{prefix}/" if prefix else ""
    found = []
    with translate_aws_errors(f"listing the unfinished uploads of {checkpoints}", aws.region):
        for page in aws.s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
            for upload in page.get("Uploads", []):
                key, started = upload["Key"], upload["Initiated"].timestamp()
                step = key.removeprefix(prefix).partition("/")[0]
                if key.startswith(prefix) and STEP_NAME.fullmatch(step) and started <= started_before:
                    abort = partial(_abort, aws, bucket, key, upload["UploadId"])
                    found.append(Leftover(f"s3://{bucket}/{key}", "unfinished upload", 0, started, abort))
    return found


def _abort(aws: Aws, bucket: str, key: str, upload: str) -> None:
    with translate_aws_errors(f"aborting the upload of s3://{bucket}/{key}", aws.region):
        aws.s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
