"""Who may send requests: host names and tokens."""

from pathlib import Path

import pytest

from crossfade.base.errors import InputError, OptionError
from crossfade.deploy.access import Access, AccessOptions, read_token

TOKEN = "a-secret-of-this-test-alone"
VARIABLE = "CROSSFADE_SERVE_TOKEN"


@pytest.mark.parametrize(
    ("listening", "allowed", "header", "accepted"),
    [
        ("127.0.0.1", (), "LOCALHOST.:8090", True),
        ("127.0.0.1", (), "127.0.0.1:8090", True),
        ("127.0.0.1", (), "[::1]:8090", True),
        ("127.0.0.1", (), "10.0.0.5:8090", False),
        ("127.0.0.1", (), "evil.example", False),
        ("127.0.0.1", (), "localhost.evil.example", False),
        ("127.0.0.1", (), "evil.example@localhost", False),
        ("127.0.0.1", (), "localhost:80:80", False),
        ("127.0.0.1", (), "[::1", False),
        ("127.0.0.1", (), "", False),
        ("127.0.0.1", (), None, False),
        ("127.0.0.1", ("Music.example.org",), "music.example.org:443", True),
        ("127.0.0.1", ("music.example.org",), "evil.music.example.org", False),
        ("music.example.org", (), "music.example.org", True),
        ("10.0.0.5", (), "10.0.0.5:8090", True),
        ("10.0.0.5", (), "10.0.0.6:8090", False),
        ("0.0.0.0", (), "10.0.0.6:8090", True),
        ("::", (), "[2001:db8::1]:8090", True),
        ("", (), "10.0.0.6", True),
        ("", (), "", False),
        ("0.0.0.0", (), "evil.example", False),
        ("0.0.0.0", ("*",), "any.example", True),
    ],
)
def test_host_is_accepted_only_by_its_names(
    listening: str, allowed: tuple[str, ...], header: str | None, accepted: bool
) -> None:
    assert (Access.of(listening, allowed, None).host_problem(header) is None) == accepted


def test_allowed_host_is_a_name() -> None:
    names = ("*", "music.example.org", "10.0.0.5", "::1", "[::1]")
    assert AccessOptions.of(allowed_host=names).allowed_host == names
    for name in ("", "music.example.org:80", "music.example.org/", "http://music.example.org/"):
        with pytest.raises(OptionError) as caught:
            AccessOptions.of(allowed_host=[name])
        assert caught.value.field == ("allowed_host", 0)


def test_token_is_compared_as_a_whole() -> None:
    access = Access(token=TOKEN)
    assert access.has_token(f"Bearer {TOKEN}")
    assert access.has_token(f"bearer {TOKEN}")
    for given in (None, "", TOKEN, "Bearer ", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}\n", "Bearer é", "Bearer \udcff"):
        assert not access.has_token(given)
    assert Access().has_token(None)
    assert TOKEN not in repr(access)


def test_token_is_read_from_the_file_or_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert read_token(VARIABLE, None) is None
    monkeypatch.setenv(VARIABLE, TOKEN)
    assert read_token(VARIABLE, None) == TOKEN
    (tmp_path / "token").write_text(f"{TOKEN}-in-a-file\n")
    assert read_token(VARIABLE, tmp_path / "token") == f"{TOKEN}-in-a-file"


WEAK = ("", "short", "sixteen letters and spaces", "sixteen-létters-and-more", "line-one-of-two\nline-two")


@pytest.mark.parametrize("content", [*(text.encode() for text in WEAK), b"\xff" * 16, None])
def test_weak_and_missing_tokens_are_rejected(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"token.*[:;] expected") as caught:
        read_token(VARIABLE, file)
    assert caught.value.exit_code == 2
