"""The folder of a run on S3, through which its hosts and the client exchange their state.

    storage = RunStorage(aws, "s3://music/runs/plays-1a2b3c4d")
    storage.read(END_FILE)               # None until the run has ended

spec.json            the run's RunSpec
hosts/N.json         state of host N, written by itself
coordinator.json     address of the coordinator; rewritten when its host is replaced
log/N/000001.txt     output of host N's command, in pieces
stop.json            request to stop the run after a checkpoint
end.json             exit code and message of the run
result/              its run folder, once it has ended
checkpoints/         see docs/checkpoint-format.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfade.deploy.aws.ec2.spec import split_uri
from crossfade.deploy.aws.errors import translate_aws_errors
from crossfade.kvstore.errors import CloudRequestError

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws

SPEC_FILE, COORDINATOR_FILE, STOP_FILE, END_FILE = "spec.json", "coordinator.json", "stop.json", "end.json"


class RunStorage:
    """The objects of one run. Every method raises CloudError or CloudRequestError if S3 rejects the request."""

    def __init__(self, aws: Aws, uri: str) -> None:
        """Use the folder ``uri``, as in s3://BUCKET/PREFIX/RUN."""
        self._aws, self.uri = aws, uri
        self._bucket, self._prefix = split_uri(uri, "the run's folder")

    def write(self, name: str, value: dict[str, Any]) -> None:
        """Write the JSON object ``name``."""
        self.write_text(name, json.dumps(value, indent=1) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write the text ``name``."""
        with self._translate_errors("writing", name):
            self._aws.s3.put_object(Bucket=self._bucket, Key=self._key(name), Body=text.encode())

    def read(self, name: str) -> dict[str, Any] | None:
        """Return the JSON object ``name``; None if it does not exist."""
        text = self.read_text(name)
        if text is None:
            return None
        try:
            value: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise CloudRequestError(f"{self.uri}/{name}: expected JSON, but found: {error}", "request") from error
        return value

    def read_text(self, name: str) -> str | None:
        """Return the text ``name``; None if it does not exist."""
        try:
            with self._translate_errors("reading", name):
                response = self._aws.s3.get_object(Bucket=self._bucket, Key=self._key(name))
                return response["Body"].read().decode("utf-8", errors="replace")
        except CloudRequestError as error:
            if error.code == "NoSuchKey":
                return None
            raise

    def delete(self, name: str) -> None:
        """Delete the object ``name``, if it exists."""
        with self._translate_errors("deleting", name):
            self._aws.s3.delete_object(Bucket=self._bucket, Key=self._key(name))

    def upload(self, path: Path, name: str) -> None:
        """Upload the file ``path`` as the object ``name``."""
        with self._translate_errors("writing", name):
            self._aws.s3.upload_file(str(path), self._bucket, self._key(name))

    def add_log(self, host: int, number: int, text: str) -> None:
        """Write piece ``number`` of the output of ``host``."""
        self.write_text(f"log/{host}/{number:06d}.txt", text)

    def log_after(self, host: int, last: int) -> Iterator[tuple[int, str]]:
        """Yield number and text of the pieces of the output of ``host`` after piece ``last``."""
        prefix = self._key(f"log/{host}/")
        with self._translate_errors("listing", f"log/{host}"):
            response = self._aws.s3.list_objects_v2(
                Bucket=self._bucket, Prefix=prefix, StartAfter=f"{prefix}{last:06d}.txt"
            )
        for entry in response.get("Contents", []):
            name = entry["Key"].removeprefix(prefix)
            text = self.read_text(f"log/{host}/{name}")
            if text is not None:
                yield int(name.removesuffix(".txt")), text

    def last_log(self, host: int) -> int:
        """Return the number of the newest piece of the output of ``host``; 0 if there is none."""
        last = 0
        while numbers := [number for number, _ in self.log_after(host, last)]:
            last = numbers[-1]
        return last

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _translate_errors(self, action: str, name: str) -> AbstractContextManager[None]:
        return translate_aws_errors(f"{action} {self.uri}/{name}", self._aws.region)
