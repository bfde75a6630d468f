"""When requests to S3 are repeated."""

import pytest

from crossfade.base.io.s3 import S3Files


@pytest.mark.parametrize(("interrupted", "requests"), [(False, 3), (True, 1)])
def test_transient_error_is_retried_unless_interrupted(
    monkeypatch: pytest.MonkeyPatch, interrupted: bool, requests: int
) -> None:
    monkeypatch.setenv("CROSSFADE_S3_ATTEMPTS", "3")
    files = S3Files("s3://music/plays")
    monkeypatch.setattr(files._interrupted, "wait", lambda _seconds: None)
    made = 0

    def request() -> None:
        nonlocal made
        made += 1
        raise OSError("When reading: AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 7")

    if interrupted:
        files.interrupt()
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        files.retry(request)
    assert made == requests
