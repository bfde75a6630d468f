"""Run a real S3 server on loopback: SeaweedFS, from its wheel.

with running_object_store(tmp_path) as server:
    variables = server.variables                  # the environment of a client
    server.uri("checkpoints")                     # s3://crossfade/checkpoints
    server.stop(), server.start()                 # its objects survive a restart
    with server.paused(): ...                     # it accepts connections but does not answer
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs
from server_process import is_ok, start_server
from waiting import wait_until

from crossfade.deploy.topology import free_address
from crossfade.trainer.config.sections import ClusterConfig

BUCKET = "crossfade"
ACCESS_KEY, SECRET_KEY = "tests", "tests-secret"
READER = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "reader-secret"}
"""Credentials that may read and list, but not write."""
FOREIGN_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "stranger", "AWS_SECRET_ACCESS_KEY": "stranger-secret"}
"""Credentials that may use only another bucket."""
_PORTS = ("master", "volume", "filer", "s3")


def free_ports(count: int) -> list[int]:
    """Return unused loopback ports, none of which the kernel assigns to a connection before a server listens."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_address(ClusterConfig()).port)
    return list(ports)


class ObjectStore:
    """One server, with one bucket."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        ports = free_ports(2 * len(_PORTS))
        self._ports = dict(zip(_PORTS, zip(ports[::2], ports[1::2], strict=True), strict=True))
        self.endpoint = f"http://127.0.0.1:{self._ports['s3'][0]}"
        self._config = folder / "s3.json"
        owner = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        identities = [
            {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
            for (key, secret), actions in (
                (owner.values(), ["Admin", "Read", "Write", "List", "Tagging"]),
                (READER.values(), ["Read", "List"]),
                (FOREIGN_CREDENTIALS.values(), ["Read:elsewhere", "List:elsewhere"]),
            )
        ]
        self._config.write_text(json.dumps({"identities": identities}))
        (folder / "data").mkdir()

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment of a client."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
        }

    def upload(self, folder: Path, path: str) -> str:
        """Upload the files of ``folder`` to a folder of the bucket, the manifest last; return its URI."""
        files = sorted((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.name)
        for file in sorted(files, key=lambda file: file.name == "manifest.json"):
            with self.client().open_output_stream(f"{BUCKET}/{path}/{file.relative_to(folder).as_posix()}") as out:
                out.write(file.read_bytes())
        return self.uri(path)

    def client(self) -> fs.S3FileSystem:
        """Return a new client."""
        return fs.S3FileSystem(
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
            region="us-east-1",
            scheme="http",
            endpoint_override=self.endpoint.partition("://")[2],
            allow_bucket_creation=True,
        )

    def uri(self, path: str) -> str:
        """Return the URI of a folder in the bucket."""
        return f"s3://{BUCKET}/{path}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        ports = [
            option
            for name, (http, grpc) in self._ports.items()
            for option in (f"-{name}.port={http}", f"-{name}.port.grpc={grpc}")
        ]
        command = [
            *(Path(sys.executable).with_name("weed"), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(f"-dir={self._folder / 'data'}", "-s3", f"-s3.config={self._config}"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=20", "-master.volumeSizeLimitMB=256"),
            *("-master.telemetry=false", "-master.electionTimeout=1s", *ports),
        ]
        # The server would take AWS_ variables as administrator credentials. It writes logs to TMPDIR.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        environment["TMPDIR"] = str(self._folder)
        healthz = f"{self.endpoint}/healthz"
        self._process = start_server(
            command, self._folder / "weed.log", lambda: is_ok(healthz, seconds=1.0), env=environment
        )

    def create_bucket(self) -> None:
        """Create the bucket."""
        client = self.client()

        def is_created() -> bool:
            try:
                client.create_dir(BUCKET)
                # The first object also creates the volumes that store it.
                with client.open_output_stream(f"{BUCKET}/ready") as file:
                    file.write(b"1")
            except OSError:
                return False
            return True

        wait_until(is_created, "a bucket that takes objects")

    def stop(self) -> None:
        """Stop the server; later connections are refused."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        for name, (http, grpc) in self._ports.items():
            for socket_name in (f"seaweedfs-{name}-{http}.sock", f"seaweedfs-{name}-grpc-{grpc}.sock"):
                Path("/tmp", socket_name).unlink(missing_ok=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Suspend the server while the context lasts: it accepts connections but does not answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


@contextmanager
def running_object_store(folder: Path) -> Iterator[ObjectStore]:
    """Run a server with its files in ``folder``, and with its bucket, while the context lasts."""
    server = ObjectStore(folder)
    try:
        server.start()
        server.create_bucket()
        yield server
    finally:
        server.stop()
