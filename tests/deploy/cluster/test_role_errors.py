"""What a role reports of an error, and its last line, from its log or its message."""

import pytest

from crossfade.base.errors import DivergedError, InputError, StoreError
from crossfade.deploy.cluster.role_process import last_error
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
