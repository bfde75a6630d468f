"""Who may ask the dashboard, 'crossfade serve', and the coordinator: the Host headers that are accepted, and the token.

    access = Access.of("0.0.0.0", ["music.example.org"], token=None)
    access.host_problem("evil.example")         # why the request is rejected; None if it is not
    access.has_token("Bearer …")

A page of any site can send requests to a server on loopback or in the user's network, once its name resolves there
(DNS rebinding). The browser then sends the name of that site as Host, which is why other names are rejected.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator

from crossfade.base.errors import InputError, Option, Text
from crossfade.base.options import Options, option

MIN_TOKEN_LENGTH = 16
SECURITY_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
"""Headers of every response, besides a content security policy."""
ANY_HOST = "*"
_NAME = r"\[[0-9A-Fa-f:.]+\]|[^\s:\[\]@/\\]+"
_HOST = re.compile(rf"(?P<name>{_NAME})(:\d+)?")


def _host_name(value: str) -> str:
    if not re.fullmatch(_NAME, value) and _address(value) is None:
        raise ValueError("expected the name of a host, without scheme, port, and path")
    return value


HostName = Annotated[str, AfterValidator(_host_name)]
"""A name as requests have it in their Host header, or ``*``."""


@dataclass(frozen=True)
class Access:
    """The rules for requests.

    Attributes:
        names: the host names accepted besides loopback, in lower case; ``*``: any.
        any_address: whether any IP address is accepted as a name, as when listening on all.
        token: the secret that requests need; None: they need none.
    """

    names: frozenset[str] = frozenset()
    any_address: bool = False
    token: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, host: str, allowed_hosts: Iterable[str], token: str | None) -> Access:
        """Return the rules of a server that listens on ``host`` and is also known by the names ``allowed_hosts``."""
        address = _address(host)
        is_any = host == "" or (address is not None and address.is_unspecified)
        return cls(frozenset(name.lower().strip("[]") for name in (host, *allowed_hosts)), is_any, token)

    def host_problem(self, header: str | None) -> str | None:
        """Return why a request with the Host ``header`` is rejected; None if it is not."""
        found = _HOST.fullmatch(header or "")
        name = found["name"].lower().strip("[]").rstrip(".") if found else ""
        address = _address(name)
        is_loopback = name == "localhost" or (address is not None and address.is_loopback)
        if ANY_HOST in self.names or is_loopback or (name and name in self.names):
            return None
        if self.any_address and address is not None:
            return None
        return (
            f"the Host '{(header or '')[:80]}' is not a name of this server: use its address, or have it "
            "allowed (allowed_host)"
        )

    def has_token(self, authorization: str | None) -> bool:
        """Return whether the Authorization header is ``Bearer`` and the token, or none is needed."""
        scheme, _, given = (authorization or "").partition(" ")
        return self.token is None or (scheme.lower() == "bearer" and self.is_token(given))

    def is_token(self, given: str) -> bool:
        """Return whether ``given`` is the token, in a time that does not depend on where they differ."""
        return self.token is not None and hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode())


class AccessOptions(Options):
    """Where a server listens, and who may ask it."""

    token_variable: ClassVar[str] = ""
    """The environment variable with the token, if no file has it."""

    host: str = option("127.0.0.1", "listen on this address", group="server", value="A")
    allowed_host: tuple[HostName, ...] = option(
        (),
        "accept requests to this name too, such as that of a proxy; repeatable; '*': any (default: loopback, and the "
        "address of the server)",
        group="server",
        value="NAME",
        repeat=True,
    )
    token_file: Path | None = option(
        None,
        "require the token in this file (default: the one in the server's variable, see below; without one, no token)",
        group="server",
        value="FILE",
    )

    def access(self) -> Access:
        """Return the rules for requests.

        Raises:
            InputError: the token cannot be read, or it is too short.
        """
        return Access.of(self.host, self.allowed_host, read_token(self.token_variable, self.token_file))


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def read_token(variable: str, file: Path | None, file_variable: str | None = None) -> str | None:
    """Return the token in ``file`` or, without one, in the environment variable ``variable``; None if it is unset.

    ``file_variable`` is the environment variable with the name of the file; None: an option has it.

    Raises:
        InputError: the file cannot be read, or the token can be guessed or cannot be sent.
    """
    name: Text = variable
    if file is not None:
        name = Option("token_file", file) if file_variable is None else f"{file_variable}: {file}"
    try:
        token = os.environ.get(variable, "") if file is None else file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise InputError(name, f": cannot be read as a token: {reason}; expected a file with one line") from error
    if file is None and not token:
        return None
    if len(token) < MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(
            name,
            f": expected {MIN_TOKEN_LENGTH} or more printable ASCII characters without spaces, as made by: "
            "openssl rand -hex 32",
        )
    return token
