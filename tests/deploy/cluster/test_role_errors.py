"""What a role reports of an error, and its last line, from its log or its message."""

import subprocess
import sys

import pytest

from crossfade.base.errors import DivergedError, InputError, StoreError
from crossfade.deploy.cluster.role_process import _NETWORK_ABORT, last_error
from crossfade.deploy.cluster.run_role import report_error
from crossfade.trainer.runs.events import RoleError

HEAD = "2026-03-01T12:00:00.123Z ERROR server-0 generation=2 step=7 "


@pytest.mark.parametrize(
    ("error", "exit_code", "restart"),
    [
        (InputError("no such file"), 2, False),
        (DivergedError("not finite"), 1, False),
        (StoreError("row 9"), 1, False),
        (OSError("broken pipe"), 1, True),
        (MemoryError(), 1, True),
    ],
)
def test_only_errors_that_would_repeat_cause_no_restart(error: Exception, exit_code: int, restart: bool) -> None:
    emitted: list[RoleError] = []
    report_error(error, emitted.append)
    [reported] = emitted
    assert (reported.exit_code, reported.restart) == (exit_code, restart)


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (f"{HEAD}Traceback (most recent call last):\n{HEAD}ValueError: bad row\n{HEAD}ended", "ValueError: bad row"),
        (f"{HEAD}KeyError: 'a'\nTraceback:\nmxnet.base.MXNetError: b\n", "mxnet.base.MXNetError: b"),
        ("Fatal Python error: Segmentation fault\n\nCurrent thread 0x1:\n", "Fatal Python error: Segmentation fault"),
        (
            "terminate called after throwing an instance of 'dmlc::Error'\n  what():  Check failed: x\n",
            "what():  Check failed: x",
        ),
        (f"{HEAD.replace('ERROR', 'INFO')}phase name=training epoch=1\n", None),
        ("no errors so far\n", None),
        ("", None),
    ],
)
def test_last_exception_or_abort_in_a_log_is_found(log: str, expected: str | None) -> None:
    assert last_error(log) == expected


@pytest.mark.parametrize(
    ("check", "from_network"),
    [
        # As recorded when the port of a server had received a message that was not one of ps-lite's.
        ("van.cc:520: Check failed: pb.ParseFromArray(meta_buf, buf_size): failed to parse string into protobuf", True),
        ("van.cc:432: Check failed: my_node_.port != -1 (-1 vs. -1) : bind failed", False),
    ],
)
def test_abort_by_data_at_a_port_differs_from_a_port_in_use(check: str, from_network: bool) -> None:
    line = f"what():  [21:01:49] ../3rdparty/ps-lite/src/{check}"
    assert bool(_NETWORK_ABORT.search(line)) == from_network


def test_role_that_no_agent_has_started_is_rejected() -> None:
    words = [sys.executable, "-m", "crossfade.deploy.cluster.run_role", "worker", "run"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    line = "crossfade: error: only 'crossfade train' and 'crossfade agent' start roles\n"
    assert (result.returncode, result.stderr) == (2, line)
