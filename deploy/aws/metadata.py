"""Client of EC2's instance metadata service, version 2 (IMDSv2).

    InstanceMetadata.of_this_host().get("local-ipv4")          # "10.0.0.5", or None if there is no such key

Each request carries a token, which is fetched with PUT and is valid for six hours. The service listens on a link-local
address; AWS_EC2_METADATA_SERVICE_ENDPOINT overrides it, as it does for the AWS SDKs.

Source: EC2 user guide, "Use IMDSv2".
"""

from __future__ import annotations

import http.client
import os
import threading
import time
from http import HTTPStatus
from urllib.parse import urlsplit

from crossfade.base.errors import InputError, StorageUnavailableError

ENDPOINT_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
DISABLED_VARIABLE = "AWS_EC2_METADATA_DISABLED"
DEFAULT_ENDPOINT = "http://169.254.169.254"
TIMEOUT_SECONDS = 2.0
READY_SECONDS = 60.0
"""How long a host that boots waits for the service: it limits the requests of an instance, and may start later."""
_TOKEN_SECONDS = 21600
_MAX_RESPONSE_BYTES = 1 << 20


class InstanceMetadata:
    """The metadata service at one address. Thread-safe."""

    def __init__(self, endpoint: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """Use the service at ``endpoint``, as in http://169.254.169.254.

        Raises:
            InputError: ``endpoint`` is not an HTTP URL without a path.
        """
        try:
            parts = urlsplit(endpoint)
            self._address = parts.hostname or "", parts.port or 80
            is_valid = parts.scheme == "http" and bool(parts.hostname) and parts.path in {"", "/"}
        except ValueError:
            is_valid = False
        if not is_valid:
            raise InputError(f"{ENDPOINT_VARIABLE}: expected a URL such as {DEFAULT_ENDPOINT}, but found '{endpoint}'")
        self.endpoint = endpoint.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._token: str | None = None
        self._lock = threading.Lock()

    @staticmethod
    def of_this_host() -> InstanceMetadata:
        """Return the service that the environment names, or EC2's.

        Raises:
            InputError: the environment disables the service, or names an invalid address.
        """
        if os.environ.get(DISABLED_VARIABLE, "").lower() == "true":
            raise InputError(f"{DISABLED_VARIABLE} is true, which disables EC2's metadata service; unset it")
        return InstanceMetadata(os.environ.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT)

    def get(self, name: str) -> str | None:
        """Return the value of ``latest/meta-data/NAME``; None if there is no such key.

        Raises:
            StorageUnavailableError: there is no answer, or not one of this service.
        """
        with self._lock:
            status, text = self._authorized(name)
            if status == HTTPStatus.UNAUTHORIZED:  # the token has expired
                self._token = None
                status, text = self._authorized(name)
        if status == HTTPStatus.NOT_FOUND:
            return None
        if status != HTTPStatus.OK:
            raise StorageUnavailableError(f"{self.endpoint}: the metadata service answered {name} with status {status}")
        return text

    def get_when_ready(self, name: str, seconds: float = READY_SECONDS, pause_seconds: float = 1.0) -> str | None:
        """Return the value as ``get`` does, and ask again for ``seconds`` while the service does not answer.

        Raises:
            StorageUnavailableError: it has not answered in that time.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self.get(name)
            except StorageUnavailableError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(pause_seconds)

    def _authorized(self, name: str) -> tuple[int, str]:
        if self._token is None:
            status, token = self._request("PUT", "/latest/api/token", "ttl-seconds", str(_TOKEN_SECONDS))
            if status != HTTPStatus.OK or not token:
                raise StorageUnavailableError(
                    f"{self.endpoint}: the metadata service returned no token, but status {status}"
                )
            self._token = token
        return self._request("GET", f"/latest/meta-data/{name}", "", self._token)

    def _request(self, method: str, path: str, header: str, value: str) -> tuple[int, str]:
        # http.client, because urllib would send the request to a proxy that the environment names.
        connection = http.client.HTTPConnection(*self._address, timeout=self._timeout_seconds)
        name = "X-aws-ec2-metadata-token" + (f"-{header}" if header else "")
        try:
            connection.request(method, path, headers={name: value})
            response = connection.getresponse()
            return response.status, response.read(_MAX_RESPONSE_BYTES).decode("utf-8", errors="replace")
        except (OSError, http.client.HTTPException) as error:
            reason = "timed out" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            raise StorageUnavailableError(
                f"{self.endpoint}: the metadata service cannot be reached: {reason}"
            ) from error
        finally:
            connection.close()
