"""``crossfade scheduler | server | worker``: run one role of a distributed job in this process."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from crossfade import logs
from crossfade.cli.command import add_command
from crossfade.memory_limit import check_address_space, lack_of_memory

if TYPE_CHECKING:
    from crossfade.deploy.cluster.role_credentials import RoleCredentials
    from crossfade.deploy.cluster.role_events import EventPipe
    from crossfade.trainer.config.schema import JobConfig
    from crossfade.trainer.model.allreduce import HorovodAllReduce
    from crossfade.trainer.monitoring.registry import ProcessMetrics
    from crossfade.trainer.runs.events import Event, EventSink
    from crossfade.trainer.runs.folder import RunFolder

_logger = logging.getLogger(__name__)

_ROLES = {
    "scheduler": "Run the scheduler of a distributed job, which introduces its servers and workers to each other.",
    "server": "Run one server of a distributed job, which holds table shards and applies row-sparse updates.",
    "worker": "Run one worker of a distributed job, which reads its partitions and computes gradients.",
}
_DETAILS = """

'crossfade train --servers N --workers N' starts and restarts all roles of a job; 'crossfade agent' does so on further
hosts. Run by hand, a role is not supervised: when one dies, the others wait for it.
"""
_NOTES = """\
The environment locates the roles:
  DMLC_PS_ROOT_URI, DMLC_PS_ROOT_PORT   address and port of the scheduler
  DMLC_NODE_HOST                        address that this process listens on
  DMLC_NUM_SERVER, DMLC_NUM_WORKER      number of servers and workers of the job

Servers execute only commands that are signed with the secret in --secret-file: 16 or more characters, the same for all
servers and workers, new for each start, so that nobody can replay the commands of an earlier one:
  (umask 077; openssl rand -hex 32 > FILE)

Several workers that train dense layers all-reduce gradients with Horovod, which needs:
  HOROVOD_GLOO_RENDEZVOUS_ADDR          HOST or HOST:PORT/PATH of a rendezvous server, as horovodrun has one
  HOROVOD_GLOO_RENDEZVOUS_PORT          its port
  HOROVOD_GLOO_IFACE                    network interface between the workers

Each role serves /metrics and /healthz at DMLC_NODE_HOST and the job's metrics.port; for several roles on one host set
metrics.port to 0.
"""
LOAD_INTERVAL_SECONDS = 2.0
"""Time between two reports of a role's resource use."""
_REQUIRED = ("DMLC_PS_ROOT_URI", "DMLC_PS_ROOT_PORT", "DMLC_NODE_HOST", "DMLC_NUM_SERVER", "DMLC_NUM_WORKER")
_MAX_ROLES = 10_000
_QUIET_EVENTS = ("step", "load", "metrics", "totals", "report")
"""Events that are logged at debug level, since they are frequent or long."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the three commands to the command line, but not to its help: 'crossfade train' runs them."""
    for role, sentence in _ROLES.items():
        secret = " --secret-file secret" * (role != "scheduler")
        checkpoint = " --checkpoint s3://music/plays/step-000001200" * (role == "worker")
        options = f"--run-dir /shared/plays{secret}{checkpoint}"
        parser = add_command(
            commands,
            role,
            None,
            sentence + _DETAILS,
            examples=(
                (
                    f"DMLC_PS_ROOT_URI=10.0.0.1 DMLC_PS_ROOT_PORT=9000 DMLC_NODE_HOST=10.0.0.2 DMLC_NUM_SERVER=1 \\\n"
                    f"    DMLC_NUM_WORKER=2 crossfade {role} --run-dir /shared/plays{secret}",
                    f"Run a {role} of a job with one server and two workers.",
                ),
                (f"crossfade {role} {options} \\\n    --log-format json", "Write log lines as JSON objects."),
            ),
            notes=_NOTES,
        )
        job = parser.add_argument_group("job")
        job.add_argument(
            "--run-dir",
            type=Path,
            required=True,
            metavar="DIR",
            help="read the job from job.yaml in DIR, on a file system that all roles share",
        )
        if role != "scheduler":
            job.add_argument(
                "--secret-file",
                type=Path,
                metavar="FILE",
                help="sign and verify commands with the secret in FILE, which only its owner may read; a role that an "
                "agent starts gets its secret from the agent",
            )
        if role == "worker":
            job.add_argument(
                "--checkpoint", metavar="URI", help="resume from this checkpoint (default: start from scratch)"
            )
        logs.add_log_options(parser)
        parser.set_defaults(run=run, role=role)


def run(arguments: argparse.Namespace) -> int:
    """Run one role. An error is sent to the agent and ends the process at once: a clean exit waits for other roles."""
    from crossfade.deploy.cluster.role_events import EventPipe
    from crossfade.deploy.cluster.role_variables import ROLE_VARIABLE, die_with_agent, role_generation

    gc.disable()  # until the role has started: imports create objects that stay, and scans of them take time
    logs.configure(
        os.environ.get(ROLE_VARIABLE) or arguments.role,
        arguments.log_format,
        arguments.log_level,
        role_generation(),
    )
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
        check_address_space(arguments.role)
        _check_environment(arguments.role)
        os.environ["DMLC_ROLE"] = arguments.role
        _run_role(arguments, pipe, fail, started_by_agent=started_by_agent)
    except Exception as error:
        fail(error)
    return 0


def _check_environment(role: str) -> None:
    """Check what locates the roles: MXNet would wait forever if the number of roles is invalid.

    Raises:
        InputError: a variable is missing, or not a number in its range.
    """
    from crossfade.base.environment import environment_integer
    from crossfade.base.errors import InputError

    if missing := [name for name in _REQUIRED if not os.environ.get(name)]:
        raise InputError(f"the environment lacks {', '.join(missing)}; see 'crossfade {role} --help'")
    # With DMLC_LOCAL, the numbers of ports are names of Unix sockets.
    environment_integer("DMLC_PS_ROOT_PORT", 1, 1, 65_535 if "DMLC_LOCAL" not in os.environ else (1 << 31) - 1)
    for name in ("DMLC_NUM_SERVER", "DMLC_NUM_WORKER"):
        environment_integer(name, 1, 1, _MAX_ROLES)


def _exit_code(error: BaseException) -> int:
    from crossfade.base.errors import CrossfadeError

    return error.exit_code if isinstance(error, CrossfadeError) and not lack_of_memory(error) else 1


def _report_error(error: BaseException, pipe: EventPipe) -> None:
    """Send ``error`` to the agent, and log it, with whether a restart may help and which checkpoint is corrupt."""
    from crossfade.base.errors import CrossfadeError, DivergedError, InputError, StoreError
    from crossfade.trainer.runs.events import RoleError

    without_memory = lack_of_memory(error)
    message = without_memory or (
        str(error) if isinstance(error, CrossfadeError) else f"{type(error).__name__}: {error}"
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
    arguments: argparse.Namespace, pipe: EventPipe, fail: Callable[[BaseException], NoReturn], *, started_by_agent: bool
) -> None:
    """Run the role to its end, and serve its metrics at the job's port, or at a free one if that is 0."""
    from crossfade.trainer.runs.events import LoadEvent, MetricsAddress, PhaseEvent

    def emit(event: Event) -> None:
        _log_event(event)
        pipe.emit(event)

    # Imports, here and in other roles, may take long: phases in between are signs of progress.
    emit(PhaseEvent(name="starting"))
    from crossfade.deploy.cluster.process_metrics import process_metrics
    from crossfade.deploy.cluster.role_variables import COMMAND_VARIABLE
    from crossfade.trainer.monitoring.final import write_final_metrics
    from crossfade.trainer.monitoring.http import serve_metrics
    from crossfade.trainer.runs.folder import RunFolder
    from crossfade.trainer.training.periodic import PeriodicAction

    credentials = _credentials(arguments, started_by_agent=started_by_agent)
    folder = RunFolder(arguments.run_dir, os.environ.get(COMMAND_VARIABLE))
    job = folder.job()
    if not job.cluster.filter_ports:
        credentials.hosts.clear()
    metrics = process_metrics(
        job.name, arguments.role, job.cluster.stall_timeout_seconds if arguments.role == "worker" else None
    )
    port = 0 if started_by_agent and job.metrics.port is not None else job.metrics.port
    with serve_metrics(metrics, port, job.metrics.host, os.environ["DMLC_NODE_HOST"]) as listener:
        if listener.address is not None:
            emit(MetricsAddress(address=listener.address))
        load = PeriodicAction(lambda: emit(LoadEvent(load=metrics.snapshot())), every_seconds=LOAD_INTERVAL_SECONDS)
        threading.Thread(target=load.repeat, name="load", daemon=True).start()
        if arguments.role == "worker":
            _work(job, folder, arguments.checkpoint, emit, metrics, credentials)
        elif arguments.role == "server":
            _serve(metrics, fail, credentials, folder.checkpoints(job))
        else:
            _schedule(metrics, credentials)
        write_final_metrics(folder, job, metrics)
    _logger.info("ended")


def _credentials(arguments: argparse.Namespace, *, started_by_agent: bool) -> RoleCredentials:
    """Return the role's credentials: from its agent, or for a role that was started by hand from the secret's file."""
    from crossfade.deploy.cluster.role_credentials import RoleCredentials

    if started_by_agent:
        return RoleCredentials.receive(sys.stdin.buffer)
    if arguments.role == "scheduler":  # it takes no commands
        return RoleCredentials("")
    return RoleCredentials.from_file(arguments.secret_file)


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
    from crossfade.kvstore.mxnet.server import RowServer, run_server
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
    from crossfade.kvstore.mxnet.client import MXNetStore
    from crossfade.trainer.model.allreduce import check_horovod_env
    from crossfade.trainer.runs.events import PhaseEvent
    from crossfade.trainer.training.hooks import TrainingHooks
    from crossfade.trainer.training.run import run_training

    if job.all_reduces_dense:
        check_horovod_env()
    metrics.state = lambda: "joining"
    emit(PhaseEvent(name="joining"))
    store = MXNetStore(credentials.secret, credentials.hosts, job.cluster.max_key_bytes)
    all_reduce = _open_all_reduce(job, store.rank, store.workers)
    _resume_garbage_collection()
    emit(PhaseEvent(name="joined"))
    hooks = TrainingHooks(
        on_event=emit,
        stop_requested=_remember_sigterm(folder),
        checkpoints_requested=_count_save_signals(),
        metrics=metrics,
    )
    run_training(job, folder, hooks, servers=store, checkpoint=checkpoint, all_reduce=all_reduce)
    if all_reduce is not None:
        all_reduce.close()
    store.barrier()  # the first worker has written the report
    emit(PhaseEvent(name="leaving"))
    store.close()


def _resume_garbage_collection() -> None:
    gc.freeze()
    gc.enable()


def _open_all_reduce(job: JobConfig, rank: int, workers: int) -> HorovodAllReduce | None:
    from crossfade.trainer.model.allreduce import HorovodAllReduce

    if not job.all_reduces_dense:
        return None
    return HorovodAllReduce(rank, workers, job.cluster.stall_timeout_seconds)


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


def _count_save_signals() -> Callable[[], int]:
    """Return a function that counts the checkpoints that the agent has requested from now on."""
    from crossfade.deploy.cluster.role_variables import CHECKPOINT_SIGNAL

    received: list[int] = []
    signal.signal(CHECKPOINT_SIGNAL, lambda number, _frame: received.append(number))
    return lambda: len(received)
