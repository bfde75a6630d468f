"""EC2's instance metadata service on loopback: an HTTP server that requires a token, as EC2's does.

with running_metadata() as metadata:
    started("train", job, "--spot", variables=metadata.variables)
    metadata.interrupt()                          # two minutes' notice
    metadata.expire_tokens()                      # they expire
"""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from local_http import answering
from werkzeug.wrappers import Request, Response

_MAX_SECONDS = 21600
"""For which a token is valid."""
_PREFIX = "/latest/meta-data/"


class Metadata:
    """The metadata of one instance: ``values`` by their names below latest/meta-data/.

    The first request of each program for credentials fails, as at a service that is overloaded.
    """

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.tokens: set[str] = set()
        self.endpoint = ""
        self._known_programs: set[str] = set()

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment of a process on the instance."""
        return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": self.endpoint}

    def answer(self, request: Request) -> Response:
        """Issue a token, or return a value if the request has a valid one."""
        if request.method == "PUT":
            seconds = request.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
            if request.path != "/latest/api/token" or not (seconds.isdecimal() and 1 <= int(seconds) <= _MAX_SECONDS):
                return Response(status=400)
            self.tokens.add(token := secrets.token_urlsafe())
            return Response(token)
        if request.headers.get("X-aws-ec2-metadata-token") not in self.tokens:
            return Response(status=401)
        name, program = request.path.removeprefix(_PREFIX), request.user_agent.string
        if name.startswith("iam/") and program not in self._known_programs:
            self._known_programs.add(program)
            return Response(status=503)
        value = self.values.get(name.rstrip("/")) if request.path.startswith(_PREFIX) else None
        return Response("not here", 404) if value is None else Response(value)

    def expire_tokens(self) -> None:
        """Invalidate all tokens."""
        self.tokens.clear()

    def interrupt(self, action: str = "terminate", when: str = "2017-09-18T08:22:00Z") -> None:
        """Publish an interruption notice, as "instance-action" of the EC2 user guide."""
        self.values["spot/instance-action"] = json.dumps({"action": action, "time": when})


@contextmanager
def running_metadata() -> Iterator[Metadata]:
    """Run a metadata service without notices."""
    metadata = Metadata()
    with answering(metadata.answer) as metadata.endpoint:
        yield metadata
