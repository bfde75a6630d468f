"""Sign commands to servers, since ps-lite executes the commands of everyone who reaches a server's port.

    signer, verifier = CommandSigner(secret), CommandVerifier(secret)
    verifier.verify(signer.sign('{"command": "load"}'))       # '{"command": "load"}'

A signed command is ``MAC COUNTER JSON``: the HMAC-SHA256 of the rest under a secret that only the roles of a generation
have, and a number that grows by one from command to command. Nothing of a command is parsed before its MAC is verified.
"""

from __future__ import annotations

import hmac
import logging
from typing import Literal

from crossfade.base.errors import ClusterError

MAX_COMMAND_BYTES = 1 << 20
"""Several times the longest command, a reset. What is longer is rejected without computing its MAC."""
MIN_SECRET_LENGTH = 16

Rejection = Literal["size", "mac", "replay"]
_REASONS: dict[Rejection, str] = {
    "size": "it is longer than any command",
    "mac": "its message authentication code was not made with the job's secret",
    "replay": "it repeats a command that was executed",
}
_logger = logging.getLogger(__name__)


class CommandSigner:
    """Signs the commands of the one worker that sends them."""

    def __init__(self, secret: str) -> None:
        """Sign with ``secret``, from counter 1 on."""
        self._secret, self._counter = _key(secret), 0

    def sign(self, text: str) -> str:
        """Return ``text`` with the next counter and the MAC of both."""
        self._counter += 1
        signed = f"{self._counter} {text}"
        return f"{_mac(self._secret, signed.encode()).decode()} {signed}"


class CommandVerifier:
    """Verifies the commands that reach one server, and counts those that it rejects."""

    def __init__(self, secret: str) -> None:
        """Accept commands that are signed with ``secret``."""
        self._secret, self._counter = _key(secret), 0
        self.rejected: dict[str, int] = dict.fromkeys(_REASONS, 0)
        """Rejected commands by reason; any thread may read it."""

    def verify(self, body: bytes) -> str | None:
        """Return the text of a signed command; None if it was rejected, which is logged and counted.

        Raises:
            ClusterError: the command is authentic, but one before it is missing, so this server's state is wrong.
        """
        mac, _, signed = body.partition(b" ")
        number, _, text = signed.partition(b" ")
        rejection: Rejection | None = None
        if len(body) > MAX_COMMAND_BYTES:
            rejection = "size"
        elif not hmac.compare_digest(mac, _mac(self._secret, signed)):
            rejection = "mac"
        elif int(number) <= self._counter:
            rejection = "replay"
        if rejection is not None:
            self._reject(rejection)
            return None
        counter = int(number)
        if counter != self._counter + 1:
            raise ClusterError(
                f"received command {counter} after command {self._counter}: those in between were lost on the network"
            )
        self._counter = counter
        return text.decode()

    def _reject(self, reason: Rejection) -> None:
        """Count a rejection. Log the first, second, fourth … of each reason, so that a flood fills no disk."""
        self.rejected[reason] += 1
        count = self.rejected[reason]
        if count & (count - 1) == 0:
            _logger.warning(
                "ignored a command that no worker of this job has sent: %s (%d so far); let only the job's hosts "
                "reach the servers' ports (a firewall or security group)",
                _REASONS[reason],
                count,
            )


def _key(secret: str) -> bytes:
    assert len(secret) >= MIN_SECRET_LENGTH
    return secret.encode()


def _mac(secret: bytes, signed: bytes) -> bytes:
    return hmac.digest(secret, signed, "sha256").hex().encode()
