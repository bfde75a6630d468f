"""The command in the container of each host of a run on EC2: ``crossfade train`` on the head, an agent on workers.

    HostRunner(RunStorage(aws, uri), Host.read(metadata), token, metadata, options).run()

Hosts find each other through the run's folder on S3, where each also writes its state. When the head is reclaimed, its
replacement writes a new coordinator address, and the workers join it there.
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
from datetime import UTC, datetime, timedelta

import yaml

from crossfade.base.errors import ClusterError, CrossfadeError, StorageUnavailableError
from crossfade.base.exit_codes import INTERRUPTED_EXIT_CODE, STOPPED_EXIT_CODE
from crossfade.deploy.aws.aws_errors import translate_aws_errors
from crossfade.deploy.aws.clients import Aws
from crossfade.deploy.aws.ec2.options import Ec2HostOptions
from crossfade.deploy.aws.ec2.run_storage import (
    COORDINATOR_FILE,
    END_FILE,
    HEAD,
    JOB_FILE,
    STOP_FILE,
    CoordinatorAddress,
    HostStatus,
    RunEnd,
    RunStorage,
)
from crossfade.deploy.aws.metadata import InstanceMetadata
from crossfade.deploy.aws.spot import ACTION_PATH
from crossfade.deploy.topology import TOKEN_VARIABLE
from crossfade.trainer.runs.run_folder import RunFolder

PORT = 7070
POLL_SECONDS = 0.2
STOP_SECONDS = 150.0
"""Time for a command to write its checkpoint after SIGTERM."""
STOP_BEFORE_END = timedelta(minutes=5)
"""The run is stopped this long before its instances are terminated."""
ROLE_TAG = "tags/instance/crossfade:role"
"""Where the metadata service has the tag of the host's Auto Scaling group, head or worker."""
_EXIT_CODES = {0, 1, 2, STOPPED_EXIT_CODE}
_STATES = {0: "done", INTERRUPTED_EXIT_CODE: "interrupted", STOPPED_EXIT_CODE: "stopped"}
_TAIL_BYTES = 2000
_LOG_PIECE_BYTES = 1 << 18
"""Below a third of what a client reads: a byte that is not UTF-8 is uploaded as three."""


@dataclass(frozen=True)
class Host:
    """One host: its instance, its address, and whether it is the head."""

    instance: str
    address: str
    is_head: bool

    @staticmethod
    def read(metadata: InstanceMetadata) -> Host:
        """Return this host.

        Raises:
            StorageUnavailableError: the metadata service does not answer.
        """
        instance, address, role = map(metadata.get_when_ready, ("instance-id", "local-ipv4", ROLE_TAG))
        if not instance or not address or not role:
            raise StorageUnavailableError(
                f"{metadata.endpoint}: the metadata service has no instance-id, local-ipv4, or {ROLE_TAG}"
            )
        return Host(instance, address, role == HEAD)


def run_host(options: Ec2HostOptions) -> int:
    """Run this host until the run ends or the instance is interrupted; return the exit code of its command.

    Raises:
        CloudError, CloudRequestError: AWS does not answer, or the host may not read what it needs.
    """
    metadata, aws = InstanceMetadata.of_this_host(), Aws()
    host = Host.read(metadata)
    with translate_aws_errors("fetching the token of the hosts", aws.region):
        token = aws.secretsmanager.get_secret_value(SecretId=options.token_secret)["SecretString"]
    return HostRunner(RunStorage(aws, options.storage), host, token, metadata, options).run()


class HostRunner:
    """Runs the command of a host, and uploads its log and its state to S3."""

    def __init__(
        self, storage: RunStorage, host: Host, token: str, metadata: InstanceMetadata, options: Ec2HostOptions
    ) -> None:
        """``token`` is the run's."""
        self._storage, self._host, self._token, self._metadata = storage, host, token, metadata
        self._folder = RunFolder(options.run_dir)
        self._stops = datetime.fromisoformat(options.ends) - STOP_BEFORE_END
        self._sync_seconds = options.poll_seconds
        self._log_name = HEAD if host.is_head else host.instance
        self._log_number = storage.last_log(self._log_name)
        self._log_offset = 0
        self._written_state: tuple[str, str] | None = None

    def run(self) -> int:
        """Run until the run ends or the host is reclaimed; return the exit code.

        Raises:
            ClusterError: the run's folder no longer exists.
            CloudError, CloudRequestError: S3 cannot be read or written.
        """
        code = self._coordinate() if self._host.is_head else self._join()
        self._write_state(_STATES.get(code, "ended"), f"exit code {code}")
        return code

    # ---- the head

    def _coordinate(self) -> int:
        if (end := self._storage.read(END_FILE, RunEnd)) is not None:
            return end.exit_code  # the head was lost after the end
        text = self._storage.read_text(JOB_FILE)
        if text is None:
            raise ClusterError(f"{self._storage.uri}: has no {JOB_FILE}; the run's folder was deleted")
        self._folder.path.parent.mkdir(parents=True, exist_ok=True)
        job = self._folder.path.with_name("job.yaml")
        job.write_text(text, encoding="utf-8")
        address = f"{self._host.address}:{PORT}"
        options = ["--set", f"cluster.host={self._host.address}"]
        if yaml.safe_load(text)["cluster"]["hosts"] > 1:
            options += ["--set", f"cluster.coordinator_address={address}"]
        self._storage.write(COORDINATOR_FILE, CoordinatorAddress(join=address, serial=secrets.token_hex(8)))

        def should_stop() -> bool:
            return datetime.now(UTC) > self._stops or self._storage.has(STOP_FILE)

        train = ("train", job, "--run-dir", self._folder.path, "--resume", "--spot", "--progress", "lines", *options)
        code = self._run_command(*train, should_stop=should_stop)
        if code != INTERRUPTED_EXIT_CODE:
            code = code if code in _EXIT_CODES else 1
            if (self._folder.path / "job.yaml").exists():
                self._upload_result()
            self._storage.write(END_FILE, RunEnd(exit_code=code, message=self._last_line()))
        return code

    def _upload_result(self) -> None:
        """Upload the run folder, without hidden files and its lock."""
        for path in sorted(self._folder.path.rglob("*")):
            name = path.relative_to(self._folder.path)
            if path.is_file() and not any(part.startswith(".") for part in name.parts) and path.name != "run.lock":
                self._storage.upload(path, f"result/{name.as_posix()}")

    # ---- a worker

    def _join(self) -> int:
        serial: str | None = None
        while True:
            coordinator = self._await_coordinator(serial)
            if isinstance(coordinator, int):
                return coordinator
            serial = coordinator.serial

            def is_replaced(serial: str | None = serial) -> bool:
                current = self._storage.read(COORDINATOR_FILE, CoordinatorAddress)
                return current is not None and current.serial != serial

            join = ("--join", coordinator.join, "--advertise-address", self._host.address)
            code = self._run_command("agent", *join, "--run-dir", self._folder.path, "--spot", should_stop=is_replaced)
            if self._is_interrupted():
                return INTERRUPTED_EXIT_CODE
            if code != INTERRUPTED_EXIT_CODE and not is_replaced():
                return code

    def _await_coordinator(self, last_serial: str | None) -> CoordinatorAddress | int:
        """Wait for a coordinator with another serial than ``last_serial``; return the exit code if none will come."""
        while True:
            if (end := self._storage.read(END_FILE, RunEnd)) is not None:
                return end.exit_code
            coordinator = self._storage.read(COORDINATOR_FILE, CoordinatorAddress)
            if coordinator is not None and coordinator.serial != last_serial:
                return coordinator
            if self._storage.has(STOP_FILE):
                return 0
            if self._is_interrupted():
                return INTERRUPTED_EXIT_CODE
            self._write_state("waiting", "for the head")
            time.sleep(self._sync_seconds)

    def _is_interrupted(self) -> bool:
        try:
            return self._metadata.get(ACTION_PATH) is not None
        except StorageUnavailableError:
            return False

    # ---- the command

    def _run_command(self, *arguments: object, should_stop: Callable[[], bool]) -> int:
        """Run a command of Crossfade to its end, and send it SIGTERM once it ``should_stop``."""
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-P", "-m", "crossfade", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, TOKEN_VARIABLE: self._token, "PYTHONUNBUFFERED": "1"},
            )
            self._log_offset, self._output = 0, output
            try:
                self._supervise(process, should_stop)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            self._upload_log()
        return process.returncode if process.returncode >= 0 else 128 - process.returncode

    def _supervise(self, process: subprocess.Popen[bytes], should_stop: Callable[[], bool]) -> None:
        stopped_at: float | None = None
        next_sync = 0.0
        while process.poll() is None:
            now = time.monotonic()
            if now >= next_sync:
                next_sync = now + self._sync_seconds
                if self._sync(should_stop) and stopped_at is None:
                    process.send_signal(signal.SIGTERM)
                    stopped_at = now
            if stopped_at is not None and now - stopped_at > STOP_SECONDS:
                process.kill()
            time.sleep(POLL_SECONDS)

    def _sync(self, should_stop: Callable[[], bool]) -> bool:
        """Upload log and state, and return whether to stop. An S3 outage does not end the run."""
        try:
            self._upload_log()
            self._write_state("running", "")
            return should_stop()
        except CrossfadeError as error:
            print(f"crossfade: {error}", file=sys.stderr, flush=True)
            return False

    def _upload_log(self) -> None:
        self._output.seek(self._log_offset)
        while data := self._output.read(_LOG_PIECE_BYTES):
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
            self._log_number, self._log_offset = self._log_number + 1, self._log_offset + len(data)
            self._storage.write_text(self._log_piece(), data.decode("utf-8", errors="replace"))

    def _log_piece(self) -> str:
        return f"log/{self._log_name}/{self._log_number:06d}.txt"

    def _last_line(self) -> str:
        text = self._storage.read_text(self._log_piece()) or ""
        lines = [line.strip() for line in text[-_TAIL_BYTES:].splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def _write_state(self, state: str, message: str) -> None:
        if self._written_state != (state, message):
            status = HostStatus(state=state, message=message)
            self._storage.write(f"hosts/{self._host.instance}.json", status)
            self._written_state = state, message
