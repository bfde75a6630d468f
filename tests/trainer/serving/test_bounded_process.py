"""A process for questions: it is killed at its limits of time and memory, replaced, and dies with its parent."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

from crossfade.base.errors import CrossfadeError, InputError
from crossfade.trainer.serving.bounded_process import BoundedProcess, LimitError, TimeLimitError

pytestmark = pytest.mark.slow  # the server of forks imports pandas


class Answering:
    """Answers questions of every kind."""

    def __init__(self, works: bool = True) -> None:
        if not works:
            raise RuntimeError("no database")

    def pid(self) -> int:
        return os.getpid()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def end(self) -> None:
        os._exit(1)

    def reject(self) -> None:
        raise InputError("expected another question")

    def fail(self) -> None:
        raise ValueError("a fault of this question\nin several lines")

    def allocate(self, count: int) -> int:
        return len(bytearray(count))


@pytest.fixture
def process() -> Iterator[BoundedProcess]:
    with closing(BoundedProcess(Answering)) as started:
        yield started


def test_answer_that_takes_too_long_is_ended_with_its_process(process: BoundedProcess) -> None:
    first = psutil.Process(process.ask("pid", seconds=30))
    with pytest.raises(TimeLimitError, match=r"took longer than 0\.2 seconds"):
        process.ask("sleep", 600.0, seconds=0.2)
    assert process.ask("pid", seconds=30) != first.pid
    assert not first.is_running()


def test_long_temporary_folder_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    script = (
        "from crossfade.trainer.serving.bounded_process import BoundedProcess\n"
        "process = BoundedProcess(str, ('answer',))\n"
        "print(process.ask('upper', seconds=60))\n"
        "process.close()\n"
    )
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "TMPDIR": str(folder)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("ANSWER\n", "")


def test_faults_of_a_question_are_its_own(process: BoundedProcess) -> None:
    with pytest.raises(InputError, match=r"^expected another question$"):
        process.ask("reject", seconds=30)
    with pytest.raises(LimitError, match=r"^cannot be evaluated$"):
        process.ask("fail", seconds=30)
    with pytest.raises(LimitError, match=r"^needs too much memory$"):
        process.ask("allocate", 8 << 30, seconds=30)
    with pytest.raises(LimitError, match=r"^ended the process"):
        process.ask("end", seconds=30)
    assert process.ask("allocate", 1 << 20, seconds=30) == 1 << 20


def test_process_that_cannot_start_is_reported() -> None:
    with closing(BoundedProcess(Answering, (False,))) as process, pytest.raises(CrossfadeError, match="no database"):
        process.start()


def test_closed_process_ends() -> None:
    process = BoundedProcess(Answering)
    child = psutil.Process(process.ask("pid", seconds=30))
    process.close()
    wait_until(lambda: not child.is_running(), "the end of the process")
