"""Environment variables with values that cannot be used: an error names the variable and what it holds."""

import re

import pytest

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ENDPOINT_URL", "localhost:1"),
        ("AWS_ENDPOINT_URL_S3", "ftp://127.0.0.1"),
        ("AWS_ENDPOINT_URL", "http://[::1"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:99999"),
        *(("CROSSFADE_S3_ATTEMPTS", text) for text in ("0", "101", "-1", "1e1", "\u00b2")),
        ("CROSSFADE_S3_ATTEMPTS", "9" * 5000),
        ("CROSSFADE_S3_TIMEOUT_SECONDS", "1.5"),
        ("CROSSFADE_S3_TIMEOUT_SECONDS", "99999999999"),
    ],
)
def test_invalid_environment_variable_is_rejected_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=re.escape(f"{name} is '{value[:40]}")):
        Folder("s3://music/x").names()
