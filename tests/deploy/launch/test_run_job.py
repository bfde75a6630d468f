"""The end of a run: the wait for a final scrape."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from waiting import wait_until

from crossfade.base.errors import ClusterError
from crossfade.base.signals import stopper
from crossfade.deploy.launch.run_job import final_scrape
from crossfade.trainer.monitoring.http import MAX_FINAL_WAIT_SECONDS, serve_metrics
from crossfade.trainer.monitoring.registry import ProcessMetrics


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """Handle signals as a command does, and restore the handlers of pytest."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stopper.listen()
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_signal_ends_the_wait_of_a_failed_run_and_not_its_outcome() -> None:
    waited = threading.Event()

    def interrupt() -> None:
        wait_until(lambda: stopper._deferring, "the wait for a scrape")
        waited.set()
        os.kill(os.getpid(), signal.SIGINT)

    with serve_metrics(ProcessMetrics("plays", "worker"), 0, None, "127.0.0.1") as endpoint:
        began = time.monotonic()
        endpoint._scrapes.extend([began - 100, began])  # a scrape every 100 seconds
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(ClusterError, match="a role died"), final_scrape(endpoint):
            raise ClusterError("a role died")
        thread.join()
    assert waited.is_set()
    assert time.monotonic() < began + MAX_FINAL_WAIT_SECONDS
    assert stopper.number is None
