"""Run one role of a distributed job in this process, which an agent has started.

python -m crossfade.deploy.cluster.run_role worker runs/plays s3://music/checkpoints/step-000001200

The arguments are the kind of the role, the run folder, and for a worker the checkpoint to resume from, if there is one.
The environment (``role_variables.py``) and standard input have the rest.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, cast

from crossfade.base import logs
from crossfade.base.errors import CrossfadeError, DivergedError, InputError, StoreError, as_typed, command
from crossfade.base.memory_limit import lack_of_memory
from crossfade.base.packages import hidden
from crossfade.deploy.cluster.process_metrics import process_metrics
from crossfade.deploy.cluster.role_variables import (
    ADDRESS_VARIABLE,
    COMMAND_VARIABLE,
    EVENTS_VARIABLE,
    GENERATION_VARIABLE,
    RANK_VARIABLE,
    RANKS_VARIABLE,
    ROLE_VARIABLE,
    RoleCredentials,
    die_with_agent,
)
from crossfade.trainer.monitoring.http import serve_metrics
from crossfade.trainer.runs.events import Event, LoadEvent, MetricsAddress, PhaseEvent, RoleError, StepEvent, to_json
from crossfade.trainer.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from crossfade.kvstore.store import RowStore
    from crossfade.trainer.config.schema import JobConfig
    from crossfade.trainer.model.allreduce import AllReduce, HorovodAllReduce
    from crossfade.trainer.monitoring.registry import ProcessMetrics

_logger = logging.getLogger("crossfade.deploy.cluster.run_role")  # in the process of a role, __name__ is __main__

LOAD_INTERVAL_SECONDS = 2.0
"""Time between two reports of a role's resource use."""
_STEP_SECONDS = 0.1
"""Minimum time between two step events; those in between are dropped."""
_QUIET_EVENTS = ("step", "load", "metrics", "totals", "report")
"""Events that are logged at debug level, since they are frequent or long."""


class EventPipe:
    """A role's end of the pipe to its agent: events as JSON objects, one a line. Any thread may emit."""

    def __init__(self, descriptor: int) -> None:
        """Write to the open file ``descriptor``."""
        self._descriptor = descriptor
        self._last_step_at = float("-inf")
        self._write_lock = threading.Lock()

    def emit(self, event: Event) -> None:
        """Send ``event``, unless it is a step that follows another too closely and is not the last."""
        now = time.monotonic()
        if isinstance(event, StepEvent):
            if now - self._last_step_at < _STEP_SECONDS and event.step != event.steps:
                return
            self._last_step_at = now
        line = json.dumps(to_json(event)).encode() + b"\n"
        with self._write_lock:
            while line:  # a signal may cut a long write short
                line = line[os.write(self._descriptor, line) :]


def main(kind: str, run_dir: str, checkpoint: str | None = None) -> int:
    """Run one role. An error is sent to the agent and ends the process at once: a clean exit waits for other roles."""
    if not die_with_agent():
        print(f"crossfade: error: only {command('train')} and {command('agent')} start roles", file=sys.stderr)
        return InputError.exit_code
    gc.disable()  # until the role has started: imports create objects that stay, and scans of them take time
    logs.LogOptions().configure(os.environ[ROLE_VARIABLE], int(os.environ[GENERATION_VARIABLE]))
    for number in (signal.SIGINT, signal.SIGTERM):
        # While blocked in MXNet, Python cannot run a handler.
        signal.signal(number, signal.SIG_DFL)
    role = _RunningRole(EventPipe(int(os.environ.pop(EVENTS_VARIABLE))))
    try:
        with hidden("pandas"):  # pyarrow would import it to return arrays: 40 MiB and a fifth of a second
            role.run(kind, run_dir, checkpoint)
    except Exception as error:
        role.fail(error)
    return 0


def report_error(error: BaseException, emit: Callable[[RoleError], None]) -> None:
    """Log ``error``, and emit it with whether a restart may help and which checkpoint is corrupt."""
    without_memory = lack_of_memory(error)
    message = without_memory or (
        error.worded(as_typed) if isinstance(error, CrossfadeError) else f"{type(error).__name__}: {error}"
    )
    # The log comes first: the pipe may be what failed.
    _logger.error(message, exc_info=None if isinstance(error, InputError) else error)
    emit(
        RoleError(
            message=message,
            exit_code=_exit_code(error),
            restart=bool(without_memory) or not isinstance(error, InputError | DivergedError | StoreError),
            checkpoint=None if without_memory else getattr(error, "checkpoint", None),
        )
    )


def _exit_code(error: BaseException) -> int:
    return error.exit_code if isinstance(error, CrossfadeError) and not lack_of_memory(error) else 1


def log_event(event: Event) -> None:
    """Log ``event``; its step becomes the step of later log lines."""
    step = getattr(event, "step", None)
    if step is not None:
        logs.context.update(step=step)
    level = logging.DEBUG if event.kind in _QUIET_EVENTS else logging.INFO
    if _logger.isEnabledFor(level):  # formatting an event of every step would cost time
        values = {name: value for name, value in to_json(event).items() if name not in ("event", "step")}
        _logger.log(level, " ".join([event.kind, *_format_values(values)]))


def _format_values(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Format ``values`` as ``name=value``, and the values of nested objects as ``name.inner=value``."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _format_values(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}={value:.6g}" if isinstance(value, float) else f"{prefix}{name}={value}"


class _RunningRole:
    """The role of this process: its events, its credentials, and its metrics."""

    def __init__(self, pipe: EventPipe) -> None:
        self._pipe = pipe
        self._credentials = RoleCredentials.receive(sys.stdin.buffer)
        self._address = os.environ[ADDRESS_VARIABLE]
        self._metrics: ProcessMetrics

    def emit(self, event: Event) -> None:
        """Log ``event``, and send it to the agent."""
        log_event(event)
        self._pipe.emit(event)

    def fail(self, error: BaseException) -> NoReturn:
        """End this process because of ``error``."""
        try:
            report_error(error, self._pipe.emit)
        finally:
            os._exit(_exit_code(error))

    def run(self, kind: str, run_dir: str, checkpoint: str | None) -> None:
        """Run the role to its end, and serve its metrics at a free port, unless the job serves none."""
        # Imports, here and in other roles, may take long: phases in between are signs of progress.
        self.emit(PhaseEvent(name="starting"))
        folder = RunFolder(Path(run_dir), os.environ[COMMAND_VARIABLE])
        job = folder.job()
        if not job.cluster.filter_ports:
            self._credentials.hosts.clear()
        self._metrics = process_metrics(job.name, kind, job.cluster.stall_timeout_seconds if kind == "worker" else None)
        port = None if job.metrics.port is None else 0
        with serve_metrics(self._metrics, port, job.metrics.host, self._address) as listener:
            if listener.address is not None:
                self.emit(MetricsAddress(address=listener.address))
            threading.Thread(target=self._report_load, name="load", daemon=True).start()
            if kind == "worker":
                self._work(job, folder, checkpoint)
            elif kind == "server":
                self._serve(folder.checkpoints(job))
            else:
                self._schedule()
        _logger.info("ended")

    def _report_load(self) -> NoReturn:
        """Send this process's resource use and counters to the agent, at regular intervals."""
        while True:
            self.emit(LoadEvent(load=self._metrics.snapshot()))
            time.sleep(LOAD_INTERVAL_SECONDS)

    def _schedule(self) -> None:
        from crossfade.kvstore.mxnet.scheduler import run_scheduler

        self._metrics.state = lambda: "serving"
        self._metrics.set_identity()
        run_scheduler(self._credentials.hosts)

    def _serve(self, checkpoints: str) -> None:
        from crossfade.kvstore.mxnet.row_server import RowServer, run_server
        from crossfade.trainer.monitoring.registry import CommandMetrics, TableMetrics

        def joined(server: RowServer) -> None:
            _resume_garbage_collection()
            self._metrics.register("rows", TableMetrics(server.stats))
            self._metrics.register("commands", CommandMetrics(server.verifier.rejected))
            self._metrics.state = lambda: "serving"
            self._metrics.set_identity(server.rank)
            _logger.info(f"joined as server {server.rank}")

        run_server(self._credentials.secret, self._credentials.hosts, checkpoints, self.fail, joined)

    def _work(self, job: JobConfig, folder: RunFolder, checkpoint: str | None) -> None:
        from crossfade.trainer.training.hooks import TrainingHooks
        from crossfade.trainer.training.run import run_training

        self._metrics.state = lambda: "joining"
        self.emit(PhaseEvent(name="joining"))
        store, all_reduce = self._join_ranks(job) if job.cluster.workers_hold_tables else self._join_servers(job)
        _resume_garbage_collection()
        self.emit(PhaseEvent(name="joined"))
        hooks = TrainingHooks(on_event=self.emit, stop_requested=_remember_sigterm(folder), metrics=self._metrics)
        run_training(job, folder, hooks, servers=store, checkpoint=checkpoint, all_reduce=all_reduce)
        if job.needs_horovod:
            cast("HorovodAllReduce", all_reduce).close()
        store.barrier()  # the first worker has written the report
        self.emit(PhaseEvent(name="leaving"))
        store.close()

    def _join_servers(self, job: JobConfig) -> tuple[RowStore, AllReduce | None]:
        """Join MXNet's servers; return the store on them, and Horovod's all-reduce if the job needs it."""
        from crossfade.kvstore.mxnet.client import MXNetStore
        from crossfade.trainer.model.allreduce import HorovodAllReduce

        store = MXNetStore(self._credentials.secret, self._credentials.hosts, job.cluster.max_key_bytes)
        if not job.needs_horovod:
            return store, None
        return store, HorovodAllReduce(store.rank, store.workers, job.cluster.stall_timeout_seconds)

    def _join_ranks(self, job: JobConfig) -> tuple[RowStore, AllReduce | None]:
        """Join the other workers, each of which holds a part of the tables; return the store, and the all-reduce."""
        from crossfade.kvstore.sharded.ranks import Ranks
        from crossfade.kvstore.sharded.store import ShardedStore
        from crossfade.trainer.monitoring.registry import TableMetrics

        assert self._credentials.rendezvous is not None
        ranks = Ranks.join(
            self._credentials.rendezvous,
            int(os.environ[RANK_VARIABLE]),
            int(os.environ[RANKS_VARIABLE]),
            self._address,
            job.cluster.stall_timeout_seconds,
        )
        store = ShardedStore(ranks)
        self._metrics.register("rows", TableMetrics(store.stats))
        return store, ranks if job.all_reduces_dense else None


def _resume_garbage_collection() -> None:
    gc.freeze()
    gc.enable()


def _remember_sigterm(folder: RunFolder) -> Callable[[], bool]:
    """Turn the first SIGTERM into a request to stop at the next step that all workers agree on.

    A second SIGTERM ends the process at once. The request is an error once another command runs in ``folder``.
    """
    received: list[bool] = []

    def is_requested() -> bool:
        folder.lock.check_owned()
        return bool(received)

    def remember(_number: int, _frame: FrameType | None) -> None:
        received.append(True)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, remember)
    return is_requested


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
