"""AWS on loopback: moto's server in a process, behind a gateway that records calls and can script responses.

with running_aws() as aws:
    aws.fail("CreateTrainingJob", "ThrottlingException", "Rate exceeded", times=2)
    crossfade("submit", "sagemaker", "job.yaml", cwd=folder, variables=aws.variables)
    assert ("sagemaker", "CreateTrainingJob") in aws.actions()

``aws.answer("DescribeTrainingJob", {...}, {...})`` returns the first body once and then always the second. Scripted
responses have the format of the call's protocol, as botocore parses it.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import create_server
from typing import Any
from urllib.parse import parse_qs

import boto3
from botocore.config import Config
from waiting import wait_until

from crossfade.base.processes import die_with_parent

START_SECONDS = 180.0
REGION = "us-east-1"
ACCOUNT = "123456789012"
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
_ERROR_XML = {"ec2": _EC2_XML, "sts": _QUERY_XML, "iam": _QUERY_XML, "s3": _S3_XML}


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


class _DiedError(Exception):
    """moto exited before it was stopped."""


class AwsServer:
    """moto's server and the gateway in front of it."""

    def __init__(self) -> None:
        with create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self._moto_url = f"http://127.0.0.1:{port}"
        parent = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            env={name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: die_with_parent(parent),  # noqa: PLW1509 - it takes no locks
        )
        self.calls: list[Call] = []
        self._scripts: dict[str, _Script] = {}
        self._clients: dict[str, Any] = {}
        self.placement_groups: dict[str, dict[str, str]] = {}
        """Tags by name, if ``placement_groups.py`` handles these calls."""
        self._before: dict[str, Callable[[Call], object]] = {}
        self._handlers: dict[str, Callable[[Call], tuple[int, str]]] = {}
        self._lock = threading.Lock()
        self._gateway = _Gateway(("127.0.0.1", 0), _Handler)
        self._gateway.aws = self
        self._thread = threading.Thread(target=self._gateway.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._gateway.server_port}"

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

    def client(self, service: str) -> Any:
        """Return a client of moto itself: its calls bypass the gateway and are not recorded."""
        if service not in self._clients:
            self._clients[service] = self._new_client(service)
        return self._clients[service]

    def _new_client(self, service: str) -> Any:
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self._moto_url,
            aws_access_key_id="AKIAEXAMPLE",
            aws_secret_access_key="secret",
            config=Config(retries={"total_max_attempts": 1}),
        )

    def fail(self, action: str, code: str, message: str, *, times: int = 1, status: int = 400) -> None:
        """Let the next ``times`` calls of ``action`` fail with this error; 0: all later calls."""
        script = self._scripts.setdefault(action, _Script())
        script.left += [(status, lambda call: _error(call, code, message))] * max(1, times)
        script.repeat_last = times == 0

    def answer(self, action: str, *bodies: Mapping[str, Any]) -> None:
        """Answer calls of ``action``, which uses JSON, with ``bodies`` in turn; the last one repeats."""
        texts = [json.dumps(body) for body in bodies]
        self._scripts[action] = _Script([(200, lambda _, text=text: text) for text in texts], repeat_last=True)

    def respond(self, action: str, respond: Callable[[Call], Mapping[str, Any]]) -> None:
        """Answer all calls of ``action``, which uses JSON, with the result of ``respond``."""
        self._scripts[action] = _Script([(200, lambda call: json.dumps(respond(call)))], repeat_last=True)

    def handle(self, action: str, handler: Callable[[Call], tuple[int, str]]) -> None:
        """Answer calls of ``action``, which moto does not support, by ``handler``: status and body."""
        self._handlers[action] = handler

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
        self.post("/moto-api/reset")

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> None:
        """Call moto's own API."""
        data = json.dumps(body or {}).encode()
        request = urllib.request.Request(
            self._moto_url + path, data, {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=60):
            pass

    def wait_until_ready(self) -> None:
        """Return once moto answers.

        Raises:
            _DiedError: it exited, for example because another process took its port.
        """

        def answers() -> bool:
            if self._process.poll() is not None:
                raise _DiedError
            with suppress(OSError), urllib.request.urlopen(f"{self._moto_url}/moto-api/data.json", timeout=60):
                return True
            return False

        wait_until(answers, "moto's server")

    def record(self, call: Call) -> tuple[int, str] | None:
        """Record ``call``; return the scripted response, if there is one."""
        with self._lock:
            self.calls.append(call)
            script = self._scripts.get(call.action)
            scripted = script.next() if script else None
            first = self._before.get(call.action)
        if first:
            first(call)
        if scripted:
            return scripted[0], scripted[1](call)
        handler = self._handlers.get(call.action)
        return handler(call) if handler else None

    def forward(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Forward the request to moto and return its response."""
        headers = {name: value for name, value in handler.headers.items() if name.lower() != "connection"}
        headers.setdefault("Content-Type", "application/octet-stream")  # otherwise urllib sets that of a form
        request = urllib.request.Request(self._moto_url + handler.path, body or None, headers, method=handler.command)
        try:
            with urllib.request.urlopen(request, timeout=240) as response:
                return response.status, dict(response.headers), response.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def close(self) -> None:
        """Stop the gateway and moto."""
        self._gateway.shutdown()
        self._gateway.server_close()
        self._thread.join()
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


class _Gateway(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    aws: AwsServer


class _Handler(BaseHTTPRequestHandler):
    server: _Gateway
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        scripted = self.server.aws.record(self._call(body))
        if scripted is not None:
            status, text = scripted
            headers, data = (
                {"Content-Type": "text/xml" if text.startswith("<") else "application/x-amz-json-1.1"},
                text.encode(),
            )
        else:
            status, headers, data = self.server.aws.forward(self, body)
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in {"content-length", "connection", "transfer-encoding", "date", "server"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_DELETE = do_HEAD = do_POST

    def _call(self, body: bytes) -> Call:
        scope = _SCOPE.search(self.headers.get("Authorization", ""))
        region, service = (scope[1], scope[2]) if scope else ("", "")
        target = self.headers.get("X-Amz-Target")
        if target:
            return Call(service, target.rpartition(".")[2], region, json.loads(body or b"{}"))
        form = {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
        if "Action" in form:
            return Call(service, form["Action"], region, form)
        return Call(service, f"{self.command} {self.path.partition('?')[0]}", region, {})

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def _error(call: Call, code: str, message: str) -> str:
    if call.service in _ERROR_XML:
        return _ERROR_XML[call.service].format(code=code, message=message)
    return json.dumps({"__type": code, "message": message})


@contextmanager
def running_aws() -> Iterator[AwsServer]:
    """Run moto and the gateway while the context lasts."""
    server = _started()
    try:
        yield server
    finally:
        server.close()


def _started(attempts: int = 3) -> AwsServer:
    """Start both and wait until moto answers; retry at another port if it exits."""
    server = AwsServer()
    try:
        server.wait_until_ready()
    except BaseException as error:
        server.close()
        if not isinstance(error, _DiedError) or attempts == 1:
            raise
        return _started(attempts - 1)
    return server
