"""Read the logs of a run's hosts in CloudWatch, where SageMaker and the hosts of EC2 write them.

log = LogReader(aws, "/aws/sagemaker/TrainingJobs", "plays-1/")
for line in log.read():                # new lines of the streams plays-1/algo-1-1700000000 and so on
    print(line)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from crossfade.deploy.aws.aws_errors import CloudRequestError, translate_aws_errors

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws


class LogReader:
    """The log streams of a group whose names begin with a prefix: a host's name, a hyphen, and a number.

    Each line is returned once, after the name of its host where there are several.
    """

    def __init__(self, aws: Aws, group: str, prefix: str) -> None:
        self._aws, self._group, self._prefix = aws, group, prefix
        self._tokens: dict[str, str] = {}
        self._is_denied = False
        self._lines: list[str] = []  # read, and not yet returned

    def read(self) -> list[str]:
        """Return the new lines. Without permission, return an error line once, and no lines later.

        Lines that were read before an error are in the result of the next call.

        Raises:
            CloudError, CloudRequestError: AWS does not answer, or rejects the request for another reason.
        """
        if self._is_denied:
            return []
        try:
            with translate_aws_errors("reading the log", self._aws.region):
                for line in self._new_lines():
                    self._lines.append(line)
        except CloudRequestError as error:
            if error.kind == "permission":
                self._is_denied = True
                return [f"crossfade: {error}"]
            if error.kind == "missing":  # AWS creates the group with the first run
                return []
            raise
        lines, self._lines = self._lines, []
        return lines

    def _new_lines(self) -> Iterator[str]:
        pages = self._aws.logs.get_paginator("describe_log_streams").paginate(
            logGroupName=self._group, logStreamNamePrefix=self._prefix
        )
        streams = [stream["logStreamName"] for page in pages for stream in page["logStreams"]]
        hosts = {stream: stream.removeprefix(self._prefix).rpartition("-")[0] for stream in streams}
        for stream, host in hosts.items():
            label = f"{host}: " if len(set(hosts.values())) > 1 else ""
            yield from (f"{label}{line}" for line in self._messages(stream))

    def _messages(self, stream: str) -> Iterator[str]:
        while True:
            before = self._tokens.get(stream)
            token: Any = {} if before is None else {"nextToken": before}
            response = self._aws.logs.get_log_events(
                logGroupName=self._group, logStreamName=stream, startFromHead=True, **token
            )
            yield from (event["message"].rstrip("\n") for event in response["events"])
            self._tokens[stream] = response["nextForwardToken"]
            if not response["events"] or before == response["nextForwardToken"]:
                return
