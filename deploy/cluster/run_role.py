"""Run one role of a distributed job in this process: what ``crossfade scheduler``, ``server``, and ``worker`` do."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, cast

from crossfade.base import logs
from crossfade.base.memory_limit import check_address_space, lack_of_memory
from crossfade.deploy.cluster.options import SchedulerOptions, ServerOptions, WorkerOptions

if TYPE_CHECKING:
    from crossfade.deploy.cluster.role_credentials import RoleCredentials
    from crossfade.deploy.cluster.role_events import EventPipe
    from crossfade.deploy.topology import RoleKind
    from crossfade.kvstore.store import RowStore
    from crossfade.trainer.config.schema import JobConfig
    from crossfade.trainer.model.allreduce import AllReduce, HorovodAllReduce
    from crossfade.trainer.monitoring.registry import ProcessMetrics
    from crossfade.trainer.runs.events import Event, EventSink
    from crossfade.trainer.runs.run_folder import RunFolder

_logger = logging.getLogger(__name__)

LOAD_INTERVAL_SECONDS = 2.0
"""Time between two reports of a role's resource use."""
_REQUIRED = ("DMLC_PS_ROOT_URI", "DMLC_PS_ROOT_PORT", "DMLC_NODE_HOST", "DMLC_NUM_SERVER", "DMLC_NUM_WORKER")
_MAX_ROLES = 10_000
_QUIET_EVENTS = ("step", "load", "metrics", "totals", "report")
"""Events that are logged at debug level, since they are frequent or long."""


def run_role(kind: RoleKind, options: SchedulerOptions) -> int:
    """Run one role. An error is sent to the agent and ends the process at once: a clean exit waits for other roles."""
    from crossfade.deploy.cluster.role_events import EventPipe
    from crossfade.deploy.cluster.role_variables import RANK_VARIABLE, ROLE_VARIABLE, die_with_agent, role_generation

    gc.disable()  # until the role has started: imports create objects that stay, and scans of them take time
    options.configure(os.environ.get(ROLE_VARIABLE) or kind, role_generation())
    pipe = EventPipe()

    def fail(error: BaseException) -> NoReturn:
        try:
            _report_error(error, pipe)
        finally:
            os._exit(_exit_code(error))

    started_by_agent = die_with_agent()
    for number in (signal.SIGINT, signal.SIGTERM):
        # While blocked in MXNet, Python cannot run a handler.
        signal.signal(number, signal.SIG_DFL)
    try:
        check_address_space(kind)
        if not (started_by_agent and RANK_VARIABLE in os.environ):  # which workers that hold the tables have
            _check_environment(kind)
            os.environ["DMLC_ROLE"] = kind
        _run_role(kind, options, pipe, fail, started_by_agent=started_by_agent)
    except Exception as error:
        fail(error)
    return 0


def _check_environment(role: str) -> None:
    """Check what locates the roles: MXNet would wait forever if the number of roles is invalid.

    Raises:
        InputError: a variable is missing, or not a number in its range.
    """
    from crossfade.base.environment import environment_integer
    from crossfade.base.errors import InputError, command

    if missing := [name for name in _REQUIRED if not os.environ.get(name)]:
        raise InputError(f"the environment lacks {', '.join(missing)}; see {command(role, help=True)}")
    # With DMLC_LOCAL, the numbers of ports are names of Unix sockets.
    environment_integer("DMLC_PS_ROOT_PORT", 1, 1, 65_535 if "DMLC_LOCAL" not in os.environ else (1 << 31) - 1)
    for name in ("DMLC_NUM_SERVER", "DMLC_NUM_WORKER"):
        environment_integer(name, 1, 1, _MAX_ROLES)


def _exit_code(error: BaseException) -> int:
    from crossfade.base.errors import CrossfadeError

    return error.exit_code if isinstance(error, CrossfadeError) and not lack_of_memory(error) else 1


def _report_error(error: BaseException, pipe: EventPipe) -> None:
    """Send ``error`` to the agent, and log it, with whether a restart may help and which checkpoint is corrupt."""
    from crossfade.base.errors import CrossfadeError, DivergedError, InputError, StoreError, as_typed
    from crossfade.trainer.runs.events import RoleError

    without_memory = lack_of_memory(error)
    message = without_memory or (
        error.worded(as_typed) if isinstance(error, CrossfadeError) else f"{type(error).__name__}: {error}"
    )
    # The log comes first: the pipe may be what failed.
    _logger.error(message, exc_info=None if isinstance(error, InputError) else error)
    pipe.emit(
        RoleError(
            message=message,
            exit_code=_exit_code(error),
            restart=bool(without_memory) or not isinstance(error, InputError | DivergedError | StoreError),
            checkpoint=None if without_memory else getattr(error, "checkpoint", None),
        )
    )


def _log_event(event: Event) -> None:
    """Log ``event``; its step becomes the step of later log lines."""
    from crossfade.trainer.runs.events import to_json

    step = getattr(event, "step", None)
    if step is not None:
        logs.context.update(step=step)
    level = logging.DEBUG if event.kind in _QUIET_EVENTS else logging.INFO
    if _logger.isEnabledFor(level):  # formatting an event of every step would cost time
        values = {name: value for name, value in to_json(event).items() if name not in ("event", "step")}
        _logger.log(level, " ".join([event.kind, *_format_values(values)]))


def _format_values(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Format ``values`` as ``name=value``, those of nested objects as ``name.inner=value``."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _format_values(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}={value:.6g}" if isinstance(value, float) else f"{prefix}{name}={value}"


def _run_role(
    kind: RoleKind,
    options: SchedulerOptions,
    pipe: EventPipe,
    fail: Callable[[BaseException], NoReturn],
    *,
    started_by_agent: bool,
) -> None:
    """Run the role to its end, and serve its metrics at the job's port, or at a free one if that is 0."""
    from crossfade.trainer.runs.events import MetricsAddress, PhaseEvent

    def emit(event: Event) -> None:
        _log_event(event)
        pipe.emit(event)

    # Imports, here and in other roles, may take long: phases in between are signs of progress.
    emit(PhaseEvent(name="starting"))
    from crossfade.deploy.cluster.process_metrics import process_metrics
    from crossfade.deploy.cluster.role_variables import COMMAND_VARIABLE
    from crossfade.trainer.monitoring.final import write_final_metrics
    from crossfade.trainer.monitoring.http import serve_metrics
    from crossfade.trainer.runs.run_folder import RunFolder

    credentials = _credentials(options, started_by_agent=started_by_agent)
    folder = RunFolder(options.run_dir, os.environ.get(COMMAND_VARIABLE))
    job = folder.job()
    if not job.cluster.filter_ports:
        credentials.hosts.clear()
    metrics = process_metrics(job.name, kind, job.cluster.stall_timeout_seconds if kind == "worker" else None)
    port = 0 if started_by_agent and job.metrics.port is not None else job.metrics.port
    with serve_metrics(metrics, port, job.metrics.host, _address()) as listener:
        if listener.address is not None:
            emit(MetricsAddress(address=listener.address))
        threading.Thread(target=_report_load, args=(emit, metrics), name="load", daemon=True).start()
        if isinstance(options, WorkerOptions):
            _work(job, folder, options.checkpoint, emit, metrics, credentials)
        elif kind == "server":
            _serve(metrics, fail, credentials, folder.checkpoints(job))
        else:
            _schedule(metrics, credentials)
        write_final_metrics(folder, job, metrics)
    _logger.info("ended")


def _address() -> str:
    """Return the address on which this role listens: its agent's, or for one that was started by hand MXNet's."""
    from crossfade.deploy.cluster.role_variables import ADDRESS_VARIABLE

    return os.environ.get(ADDRESS_VARIABLE) or os.environ["DMLC_NODE_HOST"]


def _credentials(options: SchedulerOptions, *, started_by_agent: bool) -> RoleCredentials:
    """Return the role's credentials: from its agent, or for a role that was started by hand from the secret's file."""
    from crossfade.deploy.cluster.role_credentials import RoleCredentials

    if started_by_agent:
        return RoleCredentials.receive(sys.stdin.buffer)
    if isinstance(options, ServerOptions):
        return RoleCredentials.from_file(options.secret_file)
    return RoleCredentials("")  # the scheduler takes no commands


def _report_load(emit: EventSink, metrics: ProcessMetrics) -> NoReturn:
    """Send this process's resource use and counters to the agent, at regular intervals."""
    from crossfade.trainer.runs.events import LoadEvent

    while True:
        emit(LoadEvent(load=metrics.snapshot()))
        time.sleep(LOAD_INTERVAL_SECONDS)


def _schedule(metrics: ProcessMetrics, credentials: RoleCredentials) -> None:
    from crossfade.kvstore.mxnet.scheduler import run_scheduler

    metrics.state = lambda: "serving"
    metrics.set_identity()
    run_scheduler(credentials.hosts)


def _serve(
    metrics: ProcessMetrics,
    fail: Callable[[BaseException], NoReturn],
    credentials: RoleCredentials,
    checkpoints: str,
) -> None:
    from crossfade.kvstore.mxnet.row_server import RowServer, run_server
    from crossfade.trainer.monitoring.registry import CommandMetrics, TableMetrics

    def joined(server: RowServer) -> None:
        _resume_garbage_collection()
        metrics.register("rows", TableMetrics(server.stats))
        metrics.register("commands", CommandMetrics(server.verifier.rejected))
        metrics.state = lambda: "serving"
        metrics.set_identity(server.rank)
        _logger.info(f"joined as server {server.rank}")

    run_server(credentials.secret, credentials.hosts, checkpoints, fail, joined)


def _work(
    job: JobConfig,
    folder: RunFolder,
    checkpoint: str | None,
    emit: EventSink,
    metrics: ProcessMetrics,
    credentials: RoleCredentials,
) -> None:
    from crossfade.trainer.runs.events import PhaseEvent
    from crossfade.trainer.training.hooks import TrainingHooks
    from crossfade.trainer.training.run import run_training

    metrics.state = lambda: "joining"
    emit(PhaseEvent(name="joining"))
    is_held = job.cluster.workers_hold_tables
    store, all_reduce = _join_ranks(job, credentials, metrics) if is_held else _join_servers(job, credentials)
    _resume_garbage_collection()
    emit(PhaseEvent(name="joined"))
    hooks = TrainingHooks(
        on_event=emit,
        stop_requested=_remember_sigterm(folder),
        metrics=metrics,
    )
    run_training(job, folder, hooks, servers=store, checkpoint=checkpoint, all_reduce=all_reduce)
    if job.needs_horovod:
        cast("HorovodAllReduce", all_reduce).close()
    store.barrier()  # the first worker has written the report
    emit(PhaseEvent(name="leaving"))
    store.close()


def _join_servers(job: JobConfig, credentials: RoleCredentials) -> tuple[RowStore, AllReduce | None]:
    """Join MXNet's servers; return the store on them, and Horovod's all-reduce if the job needs it."""
    from crossfade.kvstore.mxnet.client import MXNetStore
    from crossfade.trainer.model.allreduce import HorovodAllReduce, check_horovod_env

    if job.needs_horovod:
        check_horovod_env()
    store = MXNetStore(credentials.secret, credentials.hosts, job.cluster.max_key_bytes)
    if not job.needs_horovod:
        return store, None
    return store, HorovodAllReduce(store.rank, store.workers, job.cluster.stall_timeout_seconds)


def _join_ranks(
    job: JobConfig, credentials: RoleCredentials, metrics: ProcessMetrics
) -> tuple[RowStore, AllReduce | None]:
    """Join the other workers, each of which holds a part of the tables; return the store, and the all-reduce."""
    from crossfade.base.environment import environment_integer
    from crossfade.base.errors import InputError, command
    from crossfade.deploy.cluster.role_variables import RANK_VARIABLE, RANKS_VARIABLE
    from crossfade.kvstore.sharded.ranks import Ranks
    from crossfade.kvstore.sharded.store import ShardedStore
    from crossfade.trainer.monitoring.registry import TableMetrics

    if credentials.rendezvous is None:
        raise InputError(
            f"job '{job.name}': its workers hold the tables, and only {command('train')} and "
            f"{command('agent')} connect them: start the job with one of these, or set cluster.servers"
        )
    rank = environment_integer(RANK_VARIABLE, 0, 0, _MAX_ROLES)
    num_ranks = environment_integer(RANKS_VARIABLE, 1, 1, _MAX_ROLES)
    ranks = Ranks.join(credentials.rendezvous, rank, num_ranks, _address(), job.cluster.stall_timeout_seconds)
    store = ShardedStore(ranks, job.cluster.wire_dtype)
    metrics.register("rows", TableMetrics(store.stats))
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
