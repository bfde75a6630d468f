"""Answer HTTP requests of a test on loopback, in threads of this process."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response


class _QuietHandler(WSGIRequestHandler):
    def log(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def answering(answer: Callable[[Request], Response]) -> Iterator[str]:
    """Let ``answer`` answer all requests while the context lasts; yield the URL."""
    application = Request.application(answer)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_QuietHandler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
