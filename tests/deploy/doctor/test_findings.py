"""A check ends within its deadline, and its errors are findings."""

import subprocess
import threading
from collections.abc import Iterator

import pytest

from crossfade.base.errors import StorageUnavailableError
from crossfade.deploy.doctor.findings import Finding, run_check

OK = Finding("disk", "ok", "there")


def test_check_that_hangs_is_given_up_and_keeps_what_it_has_found() -> None:
    goes_on = threading.Event()

    def check() -> Iterator[Finding]:
        yield OK
        goes_on.wait()

    found, hangs = run_check("disk", check, 0.01)
    goes_on.set()
    assert found == OK
    assert (hangs.check, hangs.state) == ("disk", "fix")
    assert hangs.message.startswith("did not end within 0.01 s; ")


@pytest.mark.parametrize(
    "error", [StorageUnavailableError("s3: gone"), OSError("s3: gone"), subprocess.TimeoutExpired("python", 7)]
)
def test_error_of_a_check_is_to_be_fixed(error: Exception) -> None:
    def check() -> Iterator[Finding]:
        yield OK
        raise error

    expected = "did not end within 7 s" if isinstance(error, subprocess.TimeoutExpired) else "s3: gone"
    found, failed = run_check("disk", check, 7)
    assert (found, failed.state) == (OK, "fix")
    assert failed.message.startswith(expected)


def test_bug_in_a_check_is_raised() -> None:
    def check() -> Iterator[Finding]:
        raise KeyError("x")
        yield OK

    with pytest.raises(KeyError):
        list(run_check("disk", check, 7))
