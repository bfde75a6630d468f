"""The options that say who may ask a server: the names it is known by, and the token."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossfade.deploy.access import Access


def add_access_options(group: argparse._ArgumentGroup, variable: str) -> None:
    """Add ``--allowed-host`` and ``--token-file``; ``variable`` of the environment replaces the latter."""
    group.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="accept requests to this name too, such as that of a proxy; repeatable; '*': any (default: loopback, and "
        "the address of --host)",
    )
    group.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"require the token in this file (default: that in {variable}; without one, no token)",
    )


def read_access(arguments: argparse.Namespace, host: str, variable: str) -> Access:
    """Return the rules for requests to a server that listens on ``host``.

    Raises:
        InputError: the token cannot be read, or it is too short.
    """
    from crossfade.deploy.access import Access, read_token

    return Access.of(host, arguments.allowed_host, read_token(variable, arguments.token_file))
