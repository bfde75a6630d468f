"""The command in the container of each host of a run on EC2: ``crossfade train`` on the head, an agent on workers.

    HostRunner(RunStorage(aws, uri), token, options).run()

Hosts find each other through the run's folder on S3. When the head is reclaimed, its replacement writes a new
coordinator address, and the workers join it there.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import yaml

from crossfade.base.errors import ClusterError, CrossfadeError
from crossfade.base.exit_codes import INTERRUPTED_EXIT_CODE, STOPPED_EXIT_CODE
from crossfade.deploy.aws.aws_errors import translate_aws_errors
from crossfade.deploy.aws.clients import Aws
from crossfade.deploy.aws.ec2.options import Ec2HostOptions
from crossfade.deploy.aws.ec2.run_storage import (
    COORDINATOR_FILE,
    END_FILE,
    JOB_FILE,
    STOP_FILE,
    CoordinatorAddress,
    RunEnd,
    RunStorage,
)
from crossfade.deploy.topology import TOKEN_VARIABLE
from crossfade.trainer.runs.run_folder import RunFolder

PORT = 7070
STOP_BEFORE_END = timedelta(minutes=5)
"""The run is stopped this long before its instances are terminated."""
_EXIT_CODES = {0, 1, 2, STOPPED_EXIT_CODE}


def run_host(options: Ec2HostOptions) -> int:
    """Run this host: return 0 once the run has ended, or 75 when the head's instance is interrupted.

    Raises:
        ClusterError: the run's folder no longer exists.
        CloudError, CloudRequestError: AWS does not answer, or the host may not read what it needs.
    """
    aws = Aws()
    with translate_aws_errors("fetching the token of the hosts", aws.region):
        token = aws.secretsmanager.get_secret_value(SecretId=options.token_secret)["SecretString"]
    return HostRunner(RunStorage(aws, options.storage), token, options).run()


class HostRunner:
    """Runs the command of a host."""

    def __init__(self, storage: RunStorage, token: str, options: Ec2HostOptions) -> None:
        """``token`` is the run's."""
        self._storage, self._token, self._options = storage, token, options

    def run(self) -> int:
        """Run until the run ends or the head's instance is interrupted; return the exit code of the host."""
        return self._coordinate() if self._options.role == "head" else self._join()

    def _coordinate(self) -> int:
        if self._storage.has(END_FILE):
            return 0  # the head was lost after the end
        text = self._storage.read_text(JOB_FILE)
        if text is None:
            raise ClusterError(f"{self._storage.uri}: has no {JOB_FILE}; the run's folder was deleted")
        folder, host = RunFolder(self._options.run_dir), self._options.address
        folder.path.parent.mkdir(parents=True, exist_ok=True)
        job = folder.path.with_name("job.yaml")
        job.write_text(text, encoding="utf-8")
        places = ["--set", f"cluster.host={host}"]
        if yaml.safe_load(text)["cluster"]["hosts"] > 1:
            places += ["--set", f"cluster.coordinator_address={host}:{PORT}"]
        coordinator = CoordinatorAddress(join=f"{host}:{PORT}", serial=secrets.token_hex(8))
        self._storage.write(COORDINATOR_FILE, coordinator.model_dump_json())
        stops = datetime.fromisoformat(self._options.ends) - STOP_BEFORE_END

        def should_stop() -> bool:
            return datetime.now(UTC) > stops or any(map(self._storage.has, (STOP_FILE, END_FILE)))

        train = ("train", job, "--run-dir", folder.path, "--resume", "--spot", "--progress", "lines", *places)
        code = self._run_command(*train, should_stop=should_stop)
        if code == INTERRUPTED_EXIT_CODE:
            return code
        self._upload_result(folder)
        end = RunEnd(exit_code=code if code in _EXIT_CODES else 1)
        self._storage.write(END_FILE, end.model_dump_json(), once=True)
        return 0

    def _upload_result(self, folder: RunFolder) -> None:
        """Upload the run folder, without hidden files and its lock."""
        for path in sorted(folder.path.rglob("*")):
            name = path.relative_to(folder.path)
            if path.is_file() and not any(part.startswith(".") for part in name.parts) and path.name != "run.lock":
                self._storage.upload(path, f"result/{name.as_posix()}")

    def _join(self) -> int:
        """Run the agent for each coordinator in turn, until the run has ended.

        A worker that is reclaimed waits for its end here.
        """
        serial: str | None = None
        while not self._storage.has(END_FILE):
            coordinator = self._storage.read(COORDINATOR_FILE, CoordinatorAddress)
            if coordinator is None or coordinator.serial == serial:
                time.sleep(self._options.poll_seconds)
                continue
            serial = coordinator.serial

            def is_replaced(serial: str | None = serial) -> bool:
                current = self._storage.read(COORDINATOR_FILE, CoordinatorAddress)
                return current is not None and current.serial != serial

            join = ("--join", coordinator.join, "--advertise-address", self._options.address)
            arguments = ("agent", *join, "--run-dir", self._options.run_dir, "--spot")
            code = self._run_command(*arguments, should_stop=is_replaced)
            if code not in {*_EXIT_CODES, INTERRUPTED_EXIT_CODE}:
                serial = None  # the agent was killed: join again
        return 0

    def _run_command(self, *arguments: object, should_stop: Callable[[], bool]) -> int:
        """Run a command of Crossfade to its end, and send it SIGTERM once it ``should_stop``; return its exit code."""
        command = [sys.executable, "-P", "-m", "crossfade", *map(str, arguments)]
        environment = {**os.environ, TOKEN_VARIABLE: self._token, "PYTHONUNBUFFERED": "1"}
        is_stopping = False
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment) as process:  # noqa: S603 - our own
            try:
                while process.poll() is None:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(self._options.poll_seconds)
                    if not is_stopping and self._is_true(should_stop):
                        process.terminate()
                        is_stopping = True
            finally:
                process.terminate()  # it has ended, unless a signal ends this process
        return process.returncode if process.returncode >= 0 else 128 - process.returncode

    @staticmethod
    def _is_true(condition: Callable[[], bool]) -> bool:
        """Evaluate a condition on the run's folder. An outage of S3 does not end the run."""
        try:
            return condition()
        except CrossfadeError as error:
            print(f"crossfade: {error}", file=sys.stderr, flush=True)
            return False
