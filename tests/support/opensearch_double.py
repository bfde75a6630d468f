"""A double of OpenSearch on loopback, which keeps documents by index and answers the few requests of a push.

No OpenSearch runs in tests: it is a server in Java with native libraries, of which no package has all.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

from local_http import answering
from werkzeug.wrappers import Request, Response


class OpenSearchDouble:
    """What the server at ``url`` holds; ``failures`` are answers for the next bulk requests, as status codes."""

    def __init__(self) -> None:
        self.url = ""
        self.indexes: dict[str, dict[str, Any]] = {}
        self.documents: dict[str, dict[str, Any]] = {}
        self.aliases: dict[str, str] = {}
        self.logins: set[str | None] = set()
        self.failures: list[int] = []

    def answer(self, request: Request) -> Response:
        """Answer a request."""
        self.logins.add(request.headers.get("Authorization"))
        status, content = self._answer(request.method, request.path, request.get_data())
        return Response(json.dumps(content), status, content_type="application/json")

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        match method, path.strip("/").split("/"):
            case "DELETE", [index]:
                self.documents.pop(index, None)
                return 200, {"acknowledged": self.indexes.pop(index, None) is not None}
            case "PUT", [index]:
                self.indexes[index], self.documents[index] = json.loads(body), {}
            case "POST", [index, "_bulk"]:
                if self.failures:
                    return self.failures.pop(0), {"error": "of the test"}
                return 200, {"items": list(self._add(self.documents[index], body))}
            case "POST", [index, "_refresh"] if index in self.indexes:
                pass
            case "POST", ["_aliases"]:
                for action in json.loads(body)["actions"]:
                    self._change_alias(**action)
            case "GET", [pattern]:
                return 200, {name: {} for name in self.indexes if fnmatch(name, pattern)}
            case _:
                return 400, {"error": f"unexpected: {method} {path}"}
        return 200, {"acknowledged": True}

    def _add(self, documents: dict[str, Any], body: bytes) -> Iterator[dict[str, Any]]:
        lines = body.decode().splitlines()
        for action, document in zip(lines[::2], lines[1::2], strict=True):
            row_id = json.loads(action)["index"]["_id"]
            if len(row_id.encode()) > 512:
                yield {"index": {"status": 400, "error": {"reason": f"id is too long: {row_id[:9]}"}}}
                continue
            documents[row_id] = json.loads(document)
            yield {"index": {"status": 201}}

    def _change_alias(self, add: dict[str, Any] | None = None, remove: dict[str, Any] | None = None) -> None:
        if add is not None:
            assert add["index"] in self.indexes
            self.aliases[add["alias"]] = add["index"]
        if remove is not None and fnmatch(self.aliases.get(remove["alias"], ""), remove["index"]):
            del self.aliases[remove["alias"]]


@contextmanager
def running_opensearch() -> Iterator[OpenSearchDouble]:
    """Run the double while the context lasts."""
    double = OpenSearchDouble()
    with answering(double.answer) as double.url:
        yield double
