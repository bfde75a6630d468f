"""The folder of a run on S3, by which its hosts and whoever follows it tell each other how things stand.

plan.json            what the run is
hosts/N.json         how host N fares, by itself
coordinator.json     where the coordinator listens; another one after its host was replaced
log/N/000001.txt     what host N's command printed, piece by piece
stop.json            that the run is to stop, after a checkpoint
end.json             how the run ended
result/              its run folder, once it has ended
checkpoints/         see docs/checkpoint-format.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.aws.ec2.spec import split_uri
from deploy.aws.errors import translate_aws_errors
from kvstore.errors import CloudRequestError

if TYPE_CHECKING:
    from deploy.aws.clients import Aws

PLAN, COORDINATOR, STOP, END = "plan.json", "coordinator.json", "stop.json", "end.json"


class RunStorage:
    """The objects of one run. Every method raises CloudError or RefusedError where S3 does not do it."""

    def __init__(self, aws: Aws, storage: str) -> None:
        """Those below ``storage``, as s3://BUCKET/PREFIX/RUN."""
        self._aws, self.storage = aws, storage
        self._bucket, self._prefix = split_uri(storage, "the run's folder")

    def write(self, name: str, value: dict[str, Any]) -> None:
        """Write the JSON object ``name``."""
        self.write_text(name, json.dumps(value, indent=1) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write the text ``name``."""
        with self._explained("writing", name):
            self._aws.s3.put_object(Bucket=self._bucket, Key=self._key(name), Body=text.encode())

    def read(self, name: str) -> dict[str, Any] | None:
        """The JSON object ``name``; None if there is none."""
        text = self.read_text(name)
        if text is None:
            return None
        try:
            value: dict[str, Any] = json.loads(text)
        except ValueError as error:
            where = f"{self.storage}/{name}"
            raise CloudRequestError(f"{where}: is not JSON, which a host writes there: {error}", "request") from error
        return value

    def read_text(self, name: str) -> str | None:
        """The text ``name``; None if there is none."""
        try:
            with self._explained("reading", name):
                answer = self._aws.s3.get_object(Bucket=self._bucket, Key=self._key(name))
                return answer["Body"].read().decode("utf-8", errors="replace")
        except CloudRequestError as error:
            if error.code == "NoSuchKey":
                return None
            raise

    def delete(self, name: str) -> None:
        """Delete the object ``name``, if it is there."""
        with self._explained("deleting", name):
            self._aws.s3.delete_object(Bucket=self._bucket, Key=self._key(name))

    def upload(self, path: Path, name: str) -> None:
        """Write the file at ``path`` as the object ``name``."""
        with self._explained("writing", name):
            self._aws.s3.upload_file(str(path), self._bucket, self._key(name))

    def add_log(self, host: int, piece: int, text: str) -> None:
        """Write piece number ``piece`` of what ``host`` printed."""
        self.write_text(f"log/{host}/{piece:06d}.txt", text)

    def log_after(self, host: int, last: int) -> Iterator[tuple[int, str]]:
        """The pieces of what ``host`` printed after piece ``last``, each with its number."""
        prefix = self._key(f"log/{host}/")
        with self._explained("listing", f"log/{host}"):
            answer = self._aws.s3.list_objects_v2(
                Bucket=self._bucket, Prefix=prefix, StartAfter=f"{prefix}{last:06d}.txt"
            )
        for entry in answer.get("Contents", []):
            name = entry["Key"].removeprefix(prefix)
            text = self.read_text(f"log/{host}/{name}")
            if text is not None:
                yield int(name.removesuffix(".txt")), text

    def last_log(self, host: int) -> int:
        """The number of the newest piece of what ``host`` printed; 0 if there is none."""
        numbers, last = [0], 0
        while found := [number for number, _ in self.log_after(host, last)]:
            numbers += found
            last = found[-1]
        return max(numbers)

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _explained(self, doing: str, name: str) -> Any:
        return translate_aws_errors(f"{doing} {self.storage}/{name}", self._aws.region)
