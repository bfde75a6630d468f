"""What runs in the container on each host of a run on EC2: ``crossfade train`` on the first, an agent on the others.

The hosts find each other through the run's folder on S3, where each says how it fares. When EC2 takes the first one
back, its successor says where it listens, and the others join it there.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from deploy.aws.ec2.spec import RunSpec
from deploy.aws.ec2.storage import COORDINATOR, END, PLAN, STOP, RunStorage
from deploy.aws.errors import translate_aws_errors
from deploy.aws.metadata import InstanceMetadata
from deploy.aws.spot import INTERRUPTED_EXIT_CODE
from deploy.topology import TOKEN_VARIABLE
from kvstore.errors import ClusterError, CrossfadeError, StorageUnavailableError
from trainer.runs.folder import RunFolder

if TYPE_CHECKING:
    from deploy.aws.clients import Aws

PORT = 7070
TURN_SECONDS = 0.2
STOP_SECONDS = 150.0
"""How long a command that is asked to stop may take to write its checkpoint."""
LAST_SECONDS = 300.0
"""So long before the instance ends itself, the run is asked to stop."""
_EXIT_CODES = {0, 1, 2, 143}
_TAIL_BYTES = 2000


@dataclass(frozen=True)
class Host:
    """One host: its number, its instance and its address."""

    number: int
    instance: str
    address: str

    @staticmethod
    def of(metadata: InstanceMetadata, number: int) -> Host:
        """This one, as the metadata service knows it.

        Raises:
            UnreachableError: it does not answer.
        """
        instance, address = metadata.get("instance-id"), metadata.get("local-ipv4")
        if not instance or not address:
            raise StorageUnavailableError(
                f"{metadata.endpoint}: the metadata service does not say which instance this is"
            )
        return Host(number, instance, address)


def fetch_token(aws: Aws, parameter: str) -> str:
    """The token by which the hosts know each other.

    Raises:
        CloudError, RefusedError: AWS does not give it.
    """
    with translate_aws_errors("fetching the token of the hosts", aws.region):
        return aws.ssm.get_parameter(Name=parameter, WithDecryption=True)["Parameter"]["Value"]


class HostRunner:
    """The command of a host, while it runs: what it prints, and what is told of it, goes to S3."""

    def __init__(self, objects: RunStorage, host: Host, token: str, metadata: InstanceMetadata, run_dir: Path) -> None:
        """Of ``host``, in ``run_dir``, with the ``token`` of the run."""
        self._objects, self._host, self._token, self._metadata = objects, host, token, metadata
        self._folder = RunFolder(run_dir)
        self._piece = objects.last_log(host.number)
        self._read = 0
        self._told: tuple[str, str] | None = None
        self._look_seconds = 5.0

    def run(self) -> int:
        """Be this host to the end of the run, or until it is taken; the exit code.

        Raises:
            CloudError, RefusedError: S3 does not take or give what is needed.
        """
        found = self._objects.read(PLAN)
        if found is None:
            raise ClusterError(f"{self._objects.storage}: holds no {PLAN}; the run has been cleaned away")
        plan = RunSpec.model_validate(found)
        self._look_seconds = plan.poll_seconds
        code = self._coordinate(plan) if self._host.number == 0 else self._take_part()
        states = {0: "done", INTERRUPTED_EXIT_CODE: "interrupted", 143: "stopped"}
        self._tell(states.get(code, "ended"), f"exit code {code}")
        return code

    # ---- the first host

    def _coordinate(self, plan: RunSpec) -> int:
        self._folder.path.parent.mkdir(parents=True, exist_ok=True)
        job = self._folder.path.with_name("job.yaml")
        job.write_text(yaml.safe_dump(plan.job, sort_keys=False), encoding="utf-8")
        at = f"{self._host.address}:{PORT}"
        settings = [f"cluster.host={self._host.address}"] + (
            [f"cluster.coordinator_address={at}"] if plan.hosts > 1 else []
        )
        options = [word for setting in settings for word in ("--set", setting)]
        self._objects.write(COORDINATOR, {"join": at, "serial": secrets.token_hex(8)})
        end = plan.max_hours * 3600

        def is_over() -> bool:
            # The instance's own clock, which began when its dead-man switch was set.
            last = time.clock_gettime(time.CLOCK_BOOTTIME) > end - min(LAST_SECONDS, end / 10)
            return last or self._objects.read(STOP) is not None

        train = ("train", job, "--run-dir", self._folder.path, "--resume", "--spot", "--progress", "lines", *options)
        code = self._command(*train, is_over=is_over)
        if code != INTERRUPTED_EXIT_CODE:
            code = code if code in _EXIT_CODES else 1
            if (self._folder.path / "job.yaml").exists():
                self._upload_result()
            self._objects.write(END, {"exit_code": code, "message": self._last_line()})
        return code

    def _upload_result(self) -> None:
        """Put the run folder on S3, but for what is there already."""
        for path in sorted(self._folder.path.rglob("*")):
            name = path.relative_to(self._folder.path)
            if path.is_file() and not any(part.startswith(".") for part in name.parts) and path.name != "run.lock":
                self._objects.upload(path, f"result/{name.as_posix()}")

    # ---- the others

    def _take_part(self) -> int:
        serial: str | None = None
        while True:
            coordinator = self._await_coordinator(serial)
            if coordinator is None:
                return 0 if (end := self._objects.read(END)) is None else int(end["exit_code"])
            serial = coordinator["serial"]

            def is_another(serial: str | None = serial) -> bool:
                now = self._objects.read(COORDINATOR)
                return now is not None and now["serial"] != serial

            join = ("--join", coordinator["join"], "--advertise-address", self._host.address)
            code = self._command("agent", *join, "--run-dir", self._folder.path, "--spot", is_over=is_another)
            if self._is_taken():
                return INTERRUPTED_EXIT_CODE
            if code != INTERRUPTED_EXIT_CODE and not is_another():
                return code

    def _await_coordinator(self, earlier: str | None) -> dict[str, Any] | None:
        """Where the coordinator listens, once it is another than ``earlier``; None once the run has ended."""
        while True:
            coordinator = self._objects.read(COORDINATOR)
            if coordinator is not None and coordinator["serial"] != earlier:
                return coordinator
            if self._objects.read(END) is not None or self._objects.read(STOP) is not None or self._is_taken():
                return None
            self._tell("waiting", "for the first host")
            time.sleep(self._look_seconds)

    def _is_taken(self) -> bool:
        try:
            return self._metadata.get("spot/instance-action") is not None
        except StorageUnavailableError:
            return False

    # ---- the command

    def _command(self, *arguments: object, is_over: Callable[[], bool]) -> int:
        """Run a command of Crossfade to its end; it is asked to stop once it ``is_over``."""
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-P", "-m", "crossfade", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, TOKEN_VARIABLE: self._token, "PYTHONUNBUFFERED": "1"},
            )
            self._read, self._output = 0, output
            try:
                self._watch(process, is_over)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            self._send_log()
        return process.returncode if process.returncode >= 0 else 128 - process.returncode

    def _watch(self, process: subprocess.Popen[bytes], is_over: Callable[[], bool]) -> None:
        asked: float | None = None
        next_look = 0.0
        while process.poll() is None:
            now = time.monotonic()
            if now >= next_look:
                next_look = now + self._look_seconds
                if self._attend(is_over) and asked is None:
                    process.send_signal(signal.SIGTERM)
                    asked = now
            if asked is not None and now - asked > STOP_SECONDS:
                process.kill()
            time.sleep(TURN_SECONDS)

    def _attend(self, is_over: Callable[[], bool]) -> bool:
        """Tell how things stand, and ask whether it is over; S3 that is away for a while does not end the run."""
        try:
            self._send_log()
            self._tell("running", "")
            return is_over()
        except CrossfadeError as error:
            print(f"crossfade: {error}", file=sys.stderr, flush=True)
            return False

    def _send_log(self) -> None:
        self._output.seek(self._read)
        data = self._output.read()
        if data:
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
            self._objects.add_log(self._host.number, self._piece + 1, data.decode("utf-8", errors="replace"))
            self._piece, self._read = self._piece + 1, self._read + len(data)

    def _last_line(self) -> str:
        text = self._objects.read_text(f"log/{self._host.number}/{self._piece:06d}.txt") or ""
        lines = [line.strip() for line in text[-_TAIL_BYTES:].splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def _tell(self, state: str, message: str) -> None:
        if self._told != (state, message):
            told = {"state": state, "message": message, "instance": self._host.instance, "address": self._host.address}
            self._objects.write(f"hosts/{self._host.number}.json", told)
            self._told = state, message
