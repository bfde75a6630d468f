"""Answer HTTP requests on loopback and record them, to see what a script sends.

with recording_server({("GET", "/collections/x/exists"): '{"result":{"exists":false}}'}) as server:
    subprocess.run([...], env={"QDRANT_URL": server.url})
server.requests[0].path
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass(frozen=True)
class Request:
    """A request that was received."""

    method: str
    path: str
    body: bytes
    headers: Mapping[str, str]


@dataclass
class RecordingServer:
    """The address of a server, and what it received."""

    url: str
    requests: list[Request] = field(default_factory=list)


@contextmanager
def recording_server(
    answers: Mapping[tuple[str, str], str], statuses: Mapping[tuple[str, str], int] | None = None
) -> Iterator[RecordingServer]:
    """Run a server; ``answers`` and ``statuses`` are by method and path, by default {} and 200."""
    recording = RecordingServer("")

    class Handler(BaseHTTPRequestHandler):
        def _record(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            recording.requests.append(Request(self.command, self.path, body, dict(self.headers)))
            key = (self.command, self.path)
            content = answers.get(key, "{}").encode()
            self.send_response((statuses or {}).get(key, 200))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = _record

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        recording.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield recording
        finally:
            server.shutdown()
            thread.join()
