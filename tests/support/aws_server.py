"""AWS on loopback: moto, which answers in a thread, behind a gateway that records calls and can script responses.

with running_aws() as aws:
    aws.fail("CreateTrainingJob", "ThrottlingException", "Rate exceeded", times=2)
    crossfade("submit", "sagemaker", "job.yaml", cwd=folder, variables=aws.variables)
    assert ("sagemaker", "CreateTrainingJob") in aws.actions()

``aws.answer("DescribeTrainingJob", {...}, {...})`` returns the first body once and then always the second. Scripted
responses have the format of the call's protocol, as botocore parses it.
"""

import io
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unittest import mock
from urllib.parse import parse_qs

import boto3
import stack_resources  # noqa: F401 - adds a resource to moto
from botocore.config import Config
from local_http import QuietHandler, running_application
from moto.moto_api._internal.models import moto_api_backend
from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.utilities.utils import load_resource
from werkzeug.wrappers import Response

from crossfade.deploy.aws.ec2.stack import IMAGE_PARAMETERS

REGION = "us-east-1"
ACCOUNT = "123456789012"
_OF_TESTS = "of-tests"
"""What the gateway finds in the user agent of tests, whose calls it does not record."""
_SCOPE = re.compile(r"Credential=[^/]+/[0-9]{8}/([^/]+)/([^/]+)/aws4_request")
_QUERY_XML = (
    '<ErrorResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/"><Error><Type>Sender</Type><Code>{code}</Code>'
    "<Message>{message}</Message></Error><RequestId>0</RequestId></ErrorResponse>"
)
_EC2_XML = (
    "<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
    "<RequestID>0</RequestID></Response>"
)
_S3_XML = "<Error><Code>{code}</Code><Message>{message}</Message></Error>"
_ERROR_XML = {
    "ec2": _EC2_XML,
    "s3": _S3_XML,
    **dict.fromkeys(("autoscaling", "cloudformation", "iam", "sts"), _QUERY_XML),
}


@dataclass(frozen=True)
class Call:
    """One request, as the gateway received it."""

    service: str
    action: str
    region: str
    body: dict[str, Any]


@dataclass
class _Script:
    """Responses to the next calls of an action: complete bodies with their status."""

    left: list[tuple[int, Callable[[Call], str]]] = field(default_factory=list)
    repeat_last: bool = False

    def next(self) -> tuple[int, Callable[[Call], str]] | None:
        if not self.left:
            return None
        return self.left[0] if self.repeat_last and len(self.left) == 1 else self.left.pop(0)


class _RequestHandler(QuietHandler, MotoRequestHandler):
    """Decodes paths as moto expects them."""


class AwsServer:
    """moto and the gateway in front of it."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self.endpoint = ""
        self.calls: list[Call] = []
        self._scripts: dict[str, _Script] = {}
        self._before: dict[str, Callable[[Call], object]] = {}
        self._lock = threading.Lock()
        self.client = cache(self._new_client)
        """Returns a client of moto itself for a service: its calls are not recorded."""

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment that directs a command to this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def _new_client(self, service: str) -> Any:
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.endpoint,
            aws_access_key_id="AKIAEXAMPLE",
            aws_secret_access_key="secret",
            config=Config(retries={"total_max_attempts": 1}, user_agent_extra=_OF_TESTS),
        )

    def fail(self, action: str, code: str, message: str, *, times: int = 1, status: int = 400) -> None:
        """Let the next ``times`` calls of ``action`` fail with this error; 0: all later calls."""
        script = self._scripts.setdefault(action, _Script())
        script.left += [(status, lambda call: error_text(call, code, message))] * max(1, times)
        script.repeat_last = times == 0

    def answer(self, action: str, *bodies: Mapping[str, Any]) -> None:
        """Answer calls of ``action``, which uses JSON, with ``bodies`` in turn; the last one repeats."""
        texts = [json.dumps(body) for body in bodies]
        self._scripts[action] = _Script([(200, lambda _, text=text: text) for text in texts], repeat_last=True)

    def respond(self, action: str, respond: Callable[[Call], Mapping[str, Any]]) -> None:
        """Answer all calls of ``action``, which uses JSON, with the result of ``respond``."""
        self._scripts[action] = _Script([(200, lambda call: json.dumps(respond(call)))], repeat_last=True)

    def answer_xml(self, action: str, result: str) -> None:
        """Answer the next call of ``action``, which uses XML, with this result."""
        text = f"<{action}Response><{action}Result>{result}</{action}Result></{action}Response>"
        self._scripts.setdefault(action, _Script()).left.append((200, lambda _: text))

    def before(self, action: str, do: Callable[[Call], object]) -> None:
        """Call ``do`` before each call of ``action`` is answered."""
        self._before[action] = do

    def actions(self) -> set[tuple[str, str]]:
        """Return service and action of all calls so far."""
        with self._lock:
            return {(call.service, call.action) for call in self.calls}

    def calls_of(self, action: str) -> list[Call]:
        """Return the calls of ``action`` so far."""
        with self._lock:
            return [call for call in self.calls if call.action == action]

    def reset(self) -> None:
        """Delete all resources, recorded calls and scripts."""
        with self._lock:
            self.calls.clear()
            self._scripts.clear()
            self._before.clear()
        moto_api_backend.reset()

    def answer_request(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request: by a script, or by moto."""
        if _OF_TESTS not in environ.get("HTTP_USER_AGENT", ""):
            is_chunked = environ.get("wsgi.input_terminated")
            body = environ["wsgi.input"].read(-1 if is_chunked else int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
            if (scripted := self._record(_call(environ, body))) is not None:
                status, text = scripted
                kind = "text/xml" if text.startswith("<") else "application/x-amz-json-1.1"
                return Response(text, status, content_type=kind)(environ, start)
        answer: Iterable[bytes] = self._moto(environ, start)
        return answer

    def _record(self, call: Call) -> tuple[int, str] | None:
        """Record ``call``; return the response unless it is moto's."""
        with self._lock:
            self.calls.append(call)
            script = self._scripts.get(call.action)
            scripted = script.next() if script else None
            first = self._before.get(call.action)
        if first:
            first(call)
        return (scripted[0], scripted[1](call)) if scripted else None


def _call(environ: Mapping[str, Any], body: bytes) -> Call:
    scope = _SCOPE.search(environ.get("HTTP_AUTHORIZATION", ""))
    region, service = (scope[1], scope[2]) if scope else ("", "")
    target = environ.get("HTTP_X_AMZ_TARGET")
    if target:
        return Call(service, target.rpartition(".")[2], region, json.loads(body or b"{}"))
    form = {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
    if "Action" in form:
        return Call(service, form["Action"], region, form)
    return Call(service, f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}", region, {})


def error_text(call: Call, code: str, message: str) -> str:
    """Return an error in the format of the call's protocol."""
    if call.service in _ERROR_XML:
        return _ERROR_XML[call.service].format(code=code, message=message)
    return json.dumps({"__type": code, "message": message})


def write_log(aws: AwsServer, group: str, stream: str, *lines: str) -> None:
    """Append ``lines`` to a log stream of CloudWatch, which is created if it does not exist."""
    logs = aws.client("logs")
    if not logs.describe_log_groups(logGroupNamePrefix=group)["logGroups"]:
        logs.create_log_group(logGroupName=group)
    if not logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=stream)["logStreams"]:
        logs.create_log_stream(logGroupName=group, logStreamName=stream)
    events = [{"timestamp": int(time.time() * 1000) + number, "message": line} for number, line in enumerate(lines)]
    logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)


def push_images(aws: AwsServer, *variants: str) -> None:
    """Create the repository of the product's image, with these variants as tags."""
    ecr = aws.client("ecr")
    ecr.create_repository(repositoryName="crossfade")
    for variant in variants:
        kind = "application/vnd.oci.image.manifest.v1+json"
        manifest = {"schemaVersion": 2, "mediaType": kind, "config": {"digest": f"sha256:{variant}"}, "layers": []}
        ecr.put_image(repositoryName="crossfade", imageManifest=json.dumps(manifest), imageTag=variant)


def _image_id(parameter: str) -> str:
    """Return the machine image that moto has as the value of a public parameter."""
    value = load_resource(f"ssm/resources/ecs/optimized_amis/{REGION}.json")
    for part in parameter.strip("/").split("/"):
        value = value[part]
    return str(value["Value"])


@contextmanager
def running_aws() -> Iterator[AwsServer]:
    """Run moto and the gateway while the context lasts, with nothing that another server has left in this process.

    Of machine images it has those that the ECS parameters name: a reset takes half a second with all that moto brings.
    """
    recommended = {_image_id(name) for name in IMAGE_PARAMETERS.values()}
    images = load_resource(f"ec2/resources/ecs/optimized_amis/{REGION}.json")
    images = [image for image in images if image["ami_id"] in recommended]
    assert len(images) == len(recommended)
    only_these = {"MOTO_AMIS_PATH": "set, so that moto adds none"}
    with mock.patch("moto.ec2.models.amis.AMIS", images), mock.patch.dict(os.environ, only_these):
        moto_api_backend.reset()
        server = AwsServer()
        with running_application(server.answer_request, _RequestHandler) as server.endpoint:
            yield server
