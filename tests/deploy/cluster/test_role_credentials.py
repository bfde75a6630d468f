"""The secret of a role: from its agent by a pipe, or by hand from a file that is its owner's alone."""

import os
from pathlib import Path

import pytest
from error_table import documented

from crossfade.base.errors import ClusterError, InputError
from crossfade.deploy.cluster.role_credentials import RoleCredentials

SECRET = "0123456789abcdef0123456789abcdef"


def rejection(path: Path | None) -> str:
    with pytest.raises(InputError) as error:
        RoleCredentials.from_file(path)
    assert SECRET not in str(error.value)
    return str(error.value)


def test_credentials_pass_through_a_pipe_and_show_no_secret() -> None:
    sent = RoleCredentials(SECRET, ["10.0.0.1", "10.0.0.2"], f"10.0.0.1:7000/{SECRET}")
    reader, writer = os.pipe()
    sent.send(os.fdopen(writer, "wb"))
    with os.fdopen(reader, "rb") as pipe:
        assert RoleCredentials.receive(pipe) == sent
    assert SECRET not in repr(sent)


def test_agent_that_ends_first_is_reported() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe, pytest.raises(ClusterError, match="the agent has sent no credentials"):
        RoleCredentials.receive(pipe)


def test_secret_of_a_file_is_read_if_only_its_owner_can(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    path.write_text(f"{SECRET}\n")
    assert RoleCredentials.from_file(path) == RoleCredentials(SECRET, [])
    path.chmod(0o640)
    documented("a secret that others can read", rejection(path))
    path.chmod(0o600)
    path.write_text("short\n")
    documented("a secret that can be guessed", rejection(path))
    path.write_bytes(b"\xff" * 40)
    assert "cannot be read: is not UTF-8 text" in rejection(path)
    documented("a missing secret file", rejection(tmp_path / "missing"))
    documented("a role by hand without a secret", rejection(None))
