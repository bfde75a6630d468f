"""Answer HTTP requests of a test on loopback, in threads of this process."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from wsgiref.types import WSGIApplication

from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response


class QuietHandler(WSGIRequestHandler):
    """Logs no requests."""

    def log(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def running_application(
    application: WSGIApplication, handler: type[WSGIRequestHandler] = QuietHandler
) -> Iterator[str]:
    """Let ``application`` answer all requests while the context lasts; yield the URL."""
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answering(answer: Callable[[Request], Response]) -> AbstractContextManager[str]:
    """Let ``answer`` answer all requests while the context lasts; yield the URL."""
    return running_application(Request.application(answer))
