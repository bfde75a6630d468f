"""Run a job for a Python program: as the command does, with the program's own signal handlers restored afterwards."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

from tqdm import tqdm

from crossfade.base.errors import worded
from crossfade.base.signals import StopSignal, stopper
from crossfade.deploy.cluster.store_choice import choose_store
from crossfade.deploy.launch.checks import check_runnable
from crossfade.deploy.launch.run_job import run_in_folder, serve_own_metrics
from crossfade.display import TrainDisplay, progress_bars
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.runs.run_folder import RunFolder

_logger = logging.getLogger(__name__)


def train(
    job: JobConfig, folder: RunFolder, *, overwrite: bool = False, resume: bool = False, progress: bool | None = None
) -> bool:
    """Train ``job`` in ``folder``, and return whether it finished.

    At Ctrl-C (SIGINT) it writes a checkpoint and returns False; a second Ctrl-C raises KeyboardInterrupt. SIGTERM
    writes a checkpoint too, and then has the effect that it had before. In a thread other than the main one, signals
    are left alone.

    Args:
        job: what to train.
        folder: the folder of the run.
        overwrite: whether to delete an earlier run in ``folder`` instead of moving it aside.
        resume: whether to resume the run in ``folder``.
        progress: whether to show progress bars; None: in terminals and notebooks.

    Raises:
        CrossfadeError: the job cannot run here, or failed.
    """
    job = choose_store(job, _logger.info)
    bars = bar_type(progress)
    with progress_bars(bars) as reporter:
        inputs = check_runnable(job, folder, reporter, resume=resume)
    job = inputs.job
    display = TrainDisplay(job.evaluate.best_metric, "bar", bar_type=bars)
    try:
        with (
            _listening(),
            serve_own_metrics(job) as listener,
            folder.open_run(job, overwrite=overwrite, resume=resume),
        ):
            run_in_folder(inputs, folder, display, listener, resume=resume)
    except StopSignal as stopped:
        _logger.warning(f"stopped {worded(stopped.args)}")
        return False
    return True


@contextmanager
def _listening() -> Iterator[None]:
    """Stop at signals while the context lasts; restore the handlers of the program after it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stopper.listen(on_second=signal.default_int_handler)
    stopper.forget()
    try:
        yield
    finally:
        received = stopper.number
        stopper.forget()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received == signal.SIGTERM:
            signal.raise_signal(received)


def _in_notebook() -> bool:
    """Return whether this process runs the cells of a notebook; one that only starts kernels imports ipykernel, too."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def bar_type(progress: bool | None) -> Any:
    """Return what creates a progress bar, called as ``tqdm`` is: in terminals and notebooks, unless one is requested.

    Args:
        progress: whether to show bars; None: if stderr is a terminal, or in a notebook.
    """
    in_notebook = _in_notebook()
    if progress is False or (progress is None and not (in_notebook or sys.stderr.isatty())):
        return partial(tqdm, disable=True)
    if in_notebook and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as notebook_bar

        return notebook_bar
    return tqdm
