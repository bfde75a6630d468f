"""The folder of a run on S3, through which its hosts and the client exchange their state.

    storage = RunStorage(aws, "s3://music/runs/plays-1a2b3c4d")
    storage.read(END_FILE, RunEnd)       # None until the run has ended

job.yaml             the job
stop.json            request to stop the run after a checkpoint
hosts/INSTANCE.json  state of a host, written by itself
coordinator.json     address of the coordinator; rewritten when its host is replaced
log/head/000001.txt  output of the head's command, in pieces; log/INSTANCE of a worker's
end.json             exit code and message of the run
result/              its run folder, once it has ended
checkpoints/         see docs/checkpoint-format.md

The client writes the first two, which the role of the hosts may only read, and the hosts write the others (the role in
``cluster.yaml`` lists them). A client does not trust what hosts have written: sizes are bounded, and values are
validated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from crossfade.base.errors import command
from crossfade.deploy.aws.aws_errors import CloudRequestError, translate_aws_errors
from crossfade.deploy.aws.ec2.run_spec import split_uri

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws

JOB_FILE, COORDINATOR_FILE, STOP_FILE, END_FILE = "job.yaml", "coordinator.json", "stop.json", "end.json"
HEAD = "head"
"""The name of the head's log, which its replacements continue."""
MAX_BYTES = 1 << 20
"""Maximum size of an object that is read as text or JSON."""
_LOG_NAME = re.compile(r"[0-9]{6}\.txt")
_Model = TypeVar("_Model", bound=BaseModel)


class HostStatus(BaseModel):
    """The state of a host."""

    state: Literal["starting", "waiting", "running", "done", "interrupted", "stopped", "ended", "failed"]
    message: str


class CoordinatorAddress(BaseModel):
    """Where hosts join; ``serial`` differs for each coordinator."""

    join: str
    serial: str


class RunEnd(BaseModel):
    """How a run ended."""

    exit_code: Literal[0, 1, 2, 143]
    message: str


class RunStorage:
    """The objects of one run. Every method raises CloudError or CloudRequestError if S3 rejects the request."""

    def __init__(self, aws: Aws, uri: str) -> None:
        """Use the folder ``uri``, as in s3://BUCKET/PREFIX/RUN."""
        self._aws, self.uri = aws, uri
        self._bucket, self._prefix = split_uri(uri, "the run's folder")

    def write(self, name: str, value: BaseModel) -> None:
        """Write the JSON object ``name``."""
        self.write_text(name, json.dumps(value.model_dump(mode="json"), indent=1) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write the text ``name``."""
        with self._translate_errors("writing", name):
            self._aws.s3.put_object(Bucket=self._bucket, Key=self._key(name), Body=text.encode())

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

    def log_after(self, host: str, last: int) -> Iterator[tuple[int, str]]:
        """Yield number and text of the pieces of the output of ``host`` after piece ``last``."""
        prefix = self._key(f"log/{host}/")
        with self._translate_errors("listing", f"log/{host}"):
            response = self._aws.s3.list_objects_v2(
                Bucket=self._bucket, Prefix=prefix, StartAfter=f"{prefix}{last:06d}.txt"
            )
        for entry in response.get("Contents", []):
            name = entry["Key"].removeprefix(prefix)
            text = self.read_text(f"log/{host}/{name}") if _LOG_NAME.fullmatch(name) else None
            if text is not None:
                yield int(name.removesuffix(".txt")), text

    def last_log(self, host: str) -> int:
        """Return the number of the newest piece of the output of ``host``; 0 if there is none."""
        last = 0
        while numbers := [number for number, _ in self.log_after(host, last)]:
            last = numbers[-1]
        return last

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _translate_errors(self, action: str, name: str) -> AbstractContextManager[None]:
        return translate_aws_errors(f"{action} {self.uri}/{name}", self._aws.region)
