"""The folder of a run on S3, through which its hosts and the client exchange their state.

    storage = RunStorage(aws, "s3://music/runs/plays-1a2b3c4d")
    storage.read(END_FILE, RunEnd)       # None until the run has ended

job.yaml             the job
stop.json            request to stop the run after a checkpoint
coordinator.json     address of the coordinator; rewritten when its host is replaced
end.json             exit code and message of the run; a host that fails writes it, too
result/              its run folder, once it has ended
checkpoints/         see docs/reference.md

The client writes the first two, which the role of the hosts may only read, and the hosts write the others (the role in
``cluster.yaml`` lists them). A client does not trust what hosts have written: sizes are bounded, and values are
validated.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from crossfade.base.errors import command
from crossfade.deploy.aws.aws_errors import CloudRequestError, translate_aws_errors
from crossfade.deploy.aws.ec2.run_spec import split_uri

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws

JOB_FILE, COORDINATOR_FILE, STOP_FILE, END_FILE = "job.yaml", "coordinator.json", "stop.json", "end.json"
MAX_BYTES = 1 << 20
"""Maximum size of an object that is read as text or JSON."""
_Model = TypeVar("_Model", bound=BaseModel)


class CoordinatorAddress(BaseModel):
    """Where hosts join; ``serial`` differs for each coordinator."""

    join: str
    serial: str


class RunEnd(BaseModel):
    """How a run ended."""

    exit_code: Literal[0, 1, 2, 143]
    message: str = ""


class RunStorage:
    """The objects of one run. Every method raises CloudError or CloudRequestError if S3 rejects the request."""

    def __init__(self, aws: Aws, uri: str) -> None:
        """Use the folder ``uri``, as in s3://BUCKET/PREFIX/RUN."""
        self._aws, self.uri = aws, uri
        self._bucket, self._prefix = split_uri(uri, "the run's folder")

    def write(self, name: str, text: str, *, once: bool = False) -> None:
        """Write the object ``name``; with ``once``, only if it does not exist."""
        condition: Any = {"IfNoneMatch": "*"} if once else {}
        try:
            with self._translate_errors("writing", name):
                self._aws.s3.put_object(Bucket=self._bucket, Key=self._key(name), Body=text.encode(), **condition)
        except CloudRequestError as error:
            if error.code != "PreconditionFailed":
                raise

    def read(self, name: str, model: type[_Model]) -> _Model | None:
        """Return the JSON object ``name``, validated; None if it does not exist."""
        text = self.read_text(name)
        if text is None:
            return None
        try:
            return model.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CloudRequestError(
                f"{self.uri}/{name}: expected the JSON of a {model.__name__}, but found: {where}: {first['msg']}; "
                f"end the run with {command('submit ec2', cleanup='RUN')}",
                kind="request",
            ) from error

    def has(self, name: str) -> bool:
        """Return whether the object ``name`` exists."""
        return self.read_text(name) is not None

    def read_text(self, name: str) -> str | None:
        """Return the text ``name``; None if it does not exist."""
        try:
            with self._translate_errors("reading", name):
                response = self._aws.s3.get_object(Bucket=self._bucket, Key=self._key(name))
                with response["Body"] as body:
                    data = body.read(MAX_BYTES + 1)
        except CloudRequestError as error:
            if error.code == "NoSuchKey":
                return None
            raise
        if len(data) > MAX_BYTES:
            raise CloudRequestError(
                f"{self.uri}/{name}: expected at most {MAX_BYTES:,} bytes, but found {response['ContentLength']:,}; "
                f"end the run with {command('submit ec2', cleanup='RUN')}",
                kind="request",
            )
        return data.decode("utf-8", errors="replace")

    def upload(self, path: Path, name: str) -> None:
        """Upload the file ``path`` as the object ``name``."""
        with self._translate_errors("writing", name):
            self._aws.s3.upload_file(str(path), self._bucket, self._key(name))

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _translate_errors(self, action: str, name: str) -> AbstractContextManager[None]:
        return translate_aws_errors(f"{action} {self.uri}/{name}", self._aws.region)
