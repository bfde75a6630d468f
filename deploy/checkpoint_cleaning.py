"""Find the checkpoints of a run folder or URI, and what processes that died have left there.

    with leftovers_of("runs/lastfm", written_before=time.time() - 3600) as found:
        for leftover in found:
            leftover.remove()

Unfinished uploads to S3 cost as much as objects do, and no listing of objects shows them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.deploy.aws.aws_errors import translate_aws_errors
from crossfade.kvstore.checkpoint.format import MANIFEST_NAME, STEP_NAME
from crossfade.kvstore.checkpoint.lifecycle import Leftover, find_leftovers
from crossfade.trainer.runs.run_folder import JOB_FILE, RunFolder

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws


def locate_checkpoints(text: str) -> str:
    """Return the folder of the checkpoints that ``text``, a path or URI, names.

    Raises:
        InputError: it names none.
    """
    folder = Folder(text)
    expected = "expected a run folder, or a folder of checkpoints such as runs/NAME/checkpoints"
    with translate_storage_errors(text, action="read", unreachable=InputError):
        names = folder.names()
    if not names:
        raise InputError(f"{text}: no such folder, or an empty one; {expected}")
    if MANIFEST_NAME in names:
        raise InputError(f"{text}: is not a folder of checkpoints; {expected}")
    if JOB_FILE not in names:
        return folder.uri
    if folder.path is None:
        return folder.child("checkpoints").uri
    run = RunFolder(folder.path)
    return run.checkpoints(run.job())


@contextmanager
def leftovers_of(source: str, written_before: float) -> Iterator[list[Leftover]]:
    """Yield what can be deleted of a run or a folder of checkpoints; no run starts in a run folder meanwhile.

    Raises:
        InputError: there are no checkpoints, or a run is in progress.
        MissingExtraError: they are on S3, and boto3 is not installed.
        CloudError, CloudRequestError: S3 rejects the request.
    """
    checkpoints = locate_checkpoints(source)
    found: list[Leftover] = []
    with ExitStack() as locked:
        if "://" not in source and (Path(source) / JOB_FILE).exists():
            run = RunFolder(Path(source))
            locked.enter_context(run.lock.kept_free())
            found += [
                Leftover(str(path), "temporary file", path.stat().st_size, path.stat().st_mtime, path.unlink)
                for path in run.unfinished_files()
                if path.stat().st_mtime <= written_before
            ]
        found += find_leftovers(checkpoints, written_before)
        if checkpoints.startswith("s3://"):
            found += find_uploads(checkpoints, written_before)
        yield found


def find_uploads(checkpoints: str, started_before: float) -> list[Leftover]:
    """Return the unfinished uploads into the checkpoints at a URI of S3 that began before ``started_before``.

    Raises:
        CloudError, CloudRequestError: S3 rejects the request.
    """
    from crossfade.deploy.aws.clients import Aws

    aws = Aws()
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
