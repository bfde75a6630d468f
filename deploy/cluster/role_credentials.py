"""What an agent hands to its roles so that they accept each other and nobody else, through their standard input.

An environment or a command line could be read by others, and would be inherited; a pipe ends with its two processes.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from crossfade.base.errors import ClusterError, OptionError
from crossfade.kvstore.mxnet.signatures import MIN_SECRET_LENGTH

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class RoleCredentials:
    """The secret of a generation, with which commands are signed, who may connect to its roles, and where they meet."""

    secret: str = field(repr=False)
    hosts: list[str] = field(default_factory=list)
    """Addresses from which others connect; empty if no filter is needed, as on one host, or wanted."""
    rendezvous: str | None = field(default=None, repr=False)
    """HOST:PORT/SECRET where workers that hold the tables meet; None: MXNet's servers hold them."""

    def send(self, pipe: IO[bytes]) -> None:
        """Write them to the standard input of a role, and close it."""
        with pipe:
            pipe.write(json.dumps(asdict(self)).encode())

    @staticmethod
    def receive(pipe: IO[bytes]) -> RoleCredentials:
        """Read what ``send`` has written.

        Raises:
            ClusterError: the agent has ended before it wrote them.
        """
        data = pipe.read()
        if not data:
            raise ClusterError("the agent has sent no credentials: it ended while it started this role")
        return RoleCredentials(**json.loads(data))

    @staticmethod
    def from_file(path: Path | None) -> RoleCredentials:
        """Read the secret of a role that was started by hand, for which there is no filter.

        Raises:
            InputError: there is no file, it cannot be read, others can read it, or it is too short to be a secret.
        """
        how = f"make it with: (umask 077; openssl rand -hex 32 > {path or 'FILE'})"
        if path is None:
            raise OptionError(
                "secret_file",
                problem="a server or worker that no agent has started needs it, the same on all of them",
                fix=how,
            )
        try:
            with path.open(encoding="utf-8") as file:
                mode = os.fstat(file.fileno()).st_mode
                secret = file.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
            raise OptionError("secret_file", found=path, problem=f"cannot be read: {reason}", fix=how) from error
        if mode & _OTHERS:
            raise OptionError(
                "secret_file",
                found=path,
                problem=f"others may access it (mode {stat.S_IMODE(mode):04o})",
                fix=f"allow its owner alone: chmod 600 {path}",
            )
        if len(secret) < MIN_SECRET_LENGTH:
            raise OptionError(
                "secret_file",
                found=path,
                problem=f"expected {MIN_SECRET_LENGTH} or more characters, but found {len(secret)}",
                fix=how,
            )
        return RoleCredentials(secret)
