"""``crossfade scheduler | server | worker``: the processes of a distributed job, one a process."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from deploy.cluster.role_events import EventPipe
    from trainer.config.schema import JobConfig
    from trainer.monitoring.registry import ProcessMetrics
    from trainer.runs.folder import RunFolder

_DESCRIPTION = """\
Run the {role} of a distributed job, and end when the job does. 'crossfade train --servers N --workers N' starts all
roles of a job by itself, on one host or, with 'crossfade agent', on several, and starts them again when one dies.
Started by hand nobody watches them: when one dies, the others wait for ever. DIR, on a file system that all share,
needs the job.yaml of a run. The environment says who is where:

  DMLC_PS_ROOT_URI, DMLC_PS_ROOT_PORT   address and port of the scheduler
  DMLC_NODE_HOST                        address that this process listens on
  DMLC_NUM_SERVER, DMLC_NUM_WORKER      how many of each the job has

Workers that train dense layers, if there are several, sum their gradients by Horovod, and need to know where they meet:

  HOROVOD_GLOO_RENDEZVOUS_ADDR          HOST or HOST:PORT/PATH of a rendezvous as horovodrun has one
  HOROVOD_GLOO_RENDEZVOUS_PORT          its port
  HOROVOD_GLOO_IFACE                    the network interface that they reach each other by

Each answers to /metrics and /healthz at DMLC_NODE_HOST and the job's metrics.port, which is one a process: where
several run on one host, 0.
"""
LOAD_INTERVAL_SECONDS = 2.0
"""How often a role tells what it takes."""
_NEEDED = ("DMLC_PS_ROOT_URI", "DMLC_PS_ROOT_PORT", "DMLC_NODE_HOST", "DMLC_NUM_SERVER", "DMLC_NUM_WORKER")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the three commands to the command line."""
    for role, summary in (
        ("scheduler", "introduce a job's servers and workers to each other"),
        ("server", "hold a part of the tables"),
        ("worker", "compute gradients"),
    ):
        parser = commands.add_parser(
            role,
            help=f"of a distributed job: {summary}",
            description=_DESCRIPTION.format(role=role),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument(
            "--run-dir", type=Path, required=True, metavar="DIR", help="folder of the run, with its job.yaml"
        )
        if role == "worker":
            parser.add_argument(
                "--checkpoint", metavar="URI", help="checkpoint to go on from (default: start from the beginning)"
            )
        parser.set_defaults(run=run, role=role)


def run(arguments: argparse.Namespace) -> int:
    """Run one role. An error is told to the agent and ends the process at once: a tidy end would wait for others."""
    from deploy.cluster.agent import die_with_agent
    from deploy.cluster.role_events import EventPipe
    from kvstore.errors import CrossfadeError, InputError
    from trainer.runs.events import RoleError

    pipe = EventPipe()

    def fail(error: BaseException) -> NoReturn:
        code = error.exit_code if isinstance(error, CrossfadeError) else 1
        if not isinstance(error, InputError):
            traceback.print_exception(error)
        message = str(error) if isinstance(error, CrossfadeError) else f"{type(error).__name__}: {error}"
        try:
            print(f"crossfade: error: {message}", file=sys.stderr, flush=True)
            pipe.emit(RoleError(message=message, exit_code=code, **_remedy(error)))
        finally:
            os._exit(code)

    started_by_agent = die_with_agent()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Blocked in MXNet, Python would not get to run a handler of its own.
        signal.signal(number, signal.SIG_DFL)
    try:
        missing = [name for name in _NEEDED if not os.environ.get(name)]
        if missing:
            raise InputError(f"the environment lacks {', '.join(missing)}; see 'crossfade {arguments.role} --help'")
        os.environ["DMLC_ROLE"] = arguments.role
        _run_role(arguments, pipe, fail, started_by_agent=started_by_agent)
    except Exception as error:
        fail(error)
    return 0


def _remedy(error: BaseException) -> dict[str, Any]:
    """Whether the job may do better when it is started again, and which checkpoint it must not start from then."""
    from kvstore.errors import DivergedError, InputError, StoreError

    return {
        "restart": not isinstance(error, InputError | DivergedError | StoreError),
        "checkpoint": getattr(error, "checkpoint", None),
    }


def _run_role(
    arguments: argparse.Namespace, pipe: EventPipe, fail: Callable[[BaseException], NoReturn], *, started_by_agent: bool
) -> None:
    """Run it to its end, and show its metrics meanwhile: at the job's port, or at a free one that the agent is told."""
    from trainer.runs.events import MetricsAddress, PhaseEvent

    # The imports and the others' may take a while: what comes in between is told, as signs of progress.
    pipe.emit(PhaseEvent(name="starting"))
    from deploy.cluster.metrics import process_metrics
    from trainer.monitoring.final import write_final_metrics
    from trainer.monitoring.http import serve_metrics
    from trainer.runs.folder import RunFolder

    folder = RunFolder(arguments.run_dir)
    job = folder.job()
    metrics = process_metrics(
        job.name, arguments.role, job.cluster.stall_timeout_seconds if arguments.role == "worker" else None
    )
    port = 0 if started_by_agent and job.metrics.port is not None else job.metrics.port
    with serve_metrics(metrics, port, job.metrics.host, os.environ["DMLC_NODE_HOST"]) as listener:
        if listener.address is not None:
            pipe.emit(MetricsAddress(address=listener.address))
        threading.Thread(target=_report_load, args=(pipe, metrics), name="load", daemon=True).start()
        if arguments.role == "worker":
            _work(job, folder, arguments.checkpoint, pipe, metrics)
        else:
            _serve(metrics, fail)
        write_final_metrics(folder, job, metrics)


def _report_load(pipe: EventPipe, metrics: ProcessMetrics) -> NoReturn:
    """Tell the agent now and then what this process takes and has done."""
    from trainer.runs.events import LoadEvent

    while True:
        pipe.emit(LoadEvent(load=metrics.snapshot()))
        time.sleep(LOAD_INTERVAL_SECONDS)


def _serve(metrics: ProcessMetrics, fail: Callable[[BaseException], NoReturn]) -> None:
    from kvstore.mxnet.server import RowServer, run_role
    from trainer.monitoring.registry import TableMetrics

    def joined(server: RowServer) -> None:
        metrics.register("rows", TableMetrics(server.stats))
        metrics.state = lambda: "serving"
        metrics.set_identity(server.rank)

    if metrics.labels["role"] == "scheduler":
        metrics.state = lambda: "serving"
        metrics.set_identity()
    run_role(fail, joined)


def _work(job: JobConfig, folder: RunFolder, checkpoint: str | None, pipe: EventPipe, metrics: ProcessMetrics) -> None:
    from kvstore.mxnet.client import MXNetStore
    from trainer.model.allreduce import HorovodAllReduce, check_horovod_env
    from trainer.runs.events import PhaseEvent
    from trainer.training.run import run_training

    if job.all_reduces_dense:
        check_horovod_env()
    metrics.state = lambda: "joining"
    pipe.emit(PhaseEvent(name="joining"))
    store = MXNetStore(max_key_bytes=job.cluster.max_key_bytes)
    reduction = None
    if job.all_reduces_dense:
        reduction = HorovodAllReduce(store.rank, store.workers, job.cluster.stall_timeout_seconds)
    pipe.emit(PhaseEvent(name="joined"))
    run_training(
        job,
        folder,
        store,
        pipe.emit,
        checkpoint=checkpoint,
        stop_requested=_remember_sigterm(),
        checkpoints_requested=_count_save_signals(),
        metrics=metrics,
        reduction=reduction,
    )
    if reduction is not None:
        reduction.close()
    store.close()


def _remember_sigterm() -> Callable[[], bool]:
    """From now on SIGTERM only asks to stop, at the next step that all workers agree on; a second one ends at once."""
    asked = []

    def remember(_number: int, _frame: FrameType | None) -> None:
        asked.append(True)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, remember)
    return lambda: bool(asked)


def _count_save_signals() -> Callable[[], int]:
    """How often the agent has asked for a checkpoint from now on."""
    from deploy.cluster.agent import CHECKPOINT_SIGNAL

    asked: list[int] = []
    signal.signal(CHECKPOINT_SIGNAL, lambda number, _frame: asked.append(number))
    return lambda: len(asked)
