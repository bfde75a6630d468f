"""Commands to servers: those of the job are executed once and in order, all others are ignored and counted."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
from mutations import any_value, corrupt_bytes

from crossfade.base.errors import ClusterError, StoreError
from crossfade.kvstore.mxnet.row_server import RowServer, controller
from crossfade.kvstore.mxnet.server_protocol import create_command, encode_command
from crossfade.kvstore.mxnet.signatures import MAX_COMMAND_BYTES, CommandSigner, CommandVerifier
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import TableSpec

SECRET, OTHER = "the-secret-of-a-generation", "that-of-another-generation"
FUZZED = 3000
TABLE = TableSpec("track", rows=10, dim=2, init_std=0.1)


def test_signed_commands_are_verified_in_order() -> None:
    signer, verifier = CommandSigner(SECRET), CommandVerifier(SECRET)
    texts = [encode_command("lr_factor", factor=0.5), '{"name": "Sigur Rós"}', encode_command("status")]
    assert [verifier.verify(signer.sign(text).encode()) for text in texts] == texts
    assert set(verifier.rejected.values()) == {0}


def test_foreign_tampered_and_replayed_commands_are_rejected_by_reason(caplog: pytest.LogCaptureFixture) -> None:
    verifier = CommandVerifier(SECRET)
    signed = CommandSigner(SECRET).sign(encode_command("lr_factor", factor=0.5)).encode()
    mac, _, rest = signed.partition(b" ")
    foreign = [
        *(b"", b" ", b"GET / HTTP/1.1", encode_command("load").encode(), b"\xff" * 100, mac, rest),
        CommandSigner(OTHER).sign(encode_command("load")).encode(),
        signed.replace(b"0.5", b"0.0"),
        mac + b" 2" + rest[1:],
        mac.upper() + b" " + rest,
    ]
    assert [verifier.verify(body) for body in foreign] == [None] * len(foreign)
    assert verifier.verify(signed) is not None
    assert verifier.verify(signed) is None
    assert verifier.verify(b"1" * (MAX_COMMAND_BYTES + 1)) is None
    assert verifier.rejected == {"mac": len(foreign), "replay": 1, "size": 1}
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == 4 + 1 + 1  # of one reason the first, second, fourth and eighth
    assert all("ignored a command that no worker of this job has sent" in line for line in logged)
    assert not any(SECRET in line or mac.decode() in line for line in logged)


def test_missing_command_is_an_error_that_a_restart_mends() -> None:
    signer, verifier = CommandSigner(SECRET), CommandVerifier(SECRET)
    signer.sign(encode_command("load"))  # which the network loses
    with pytest.raises(ClusterError, match="received command 2 after command 0: those in between were lost"):
        verifier.verify(signer.sign(encode_command("status")).encode())


@pytest.mark.parametrize("factor", [0, -0.5, 1.5, "NaN", "Infinity"])
def test_lr_factor_that_no_schedule_has_is_rejected(tmp_path: Path, factor: float | str) -> None:
    server = RowServer(SimpleNamespace(rank=0), CommandVerifier(SECRET), str(tmp_path))
    with pytest.raises(StoreError, match="every schedule is above 0 and at most 1"):
        server.command(encode_command("lr_factor", factor=float(factor)))


@pytest.mark.parametrize(
    ("checkpoints", "folder"),
    [
        ("{}/checkpoints", "{}/elsewhere"),
        ("{}/checkpoints", "{}/checkpoints"),
        ("{}/checkpoints", "{}/checkpoints/../elsewhere"),
        ("{}/checkpoints", "{}/checkpoints-of-another"),
        ("{}/checkpoints", "{}/checkpoints/link/step-1"),
        ("{}/checkpoints", "s3://music/checkpoints/step-1"),
        ("s3://music/plays", "{}/step-1"),
        ("s3://music/plays", "s3://music/plays"),
        ("s3://music/plays", "s3://music/plays-of-another/step-1"),
        ("s3://music/plays", "s3://music/plays/../others/step-1"),
        ("s3://music/plays", "s3://others/plays/step-1"),
    ],
)
def test_save_outside_the_checkpoints_of_the_job_is_rejected(tmp_path: Path, checkpoints: str, folder: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "link").symlink_to(tmp_path / "elsewhere")
    server = RowServer(SimpleNamespace(rank=0), CommandVerifier(SECRET), checkpoints.format(tmp_path))
    with pytest.raises(StoreError, match=r"received a save to .*, which is not below "):
        server.command(encode_command("save", folder=folder.format(tmp_path)))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_none_of_thousands_of_generated_commands_is_obeyed_or_ends_the_server(tmp_path: Path) -> None:
    saved = tmp_path / "checkpoints" / "step-000000001"
    server = RowServer(SimpleNamespace(rank=0), CommandVerifier(SECRET), str(tmp_path / "checkpoints"))
    executed: list[str] = []

    def fail(error: BaseException) -> NoReturn:
        raise AssertionError("a command would have ended the server") from error

    control = controller(server, lambda: executed.append("before"), lambda: executed.append("after"), fail)
    signer, genuine = CommandSigner(SECRET), random.Random(17)
    create = create_command([TABLE], OptimizerSpec(), 1, servers=1, max_key_bytes=2**20, checkpoint=None)
    first = signer.sign(create).encode()
    control(0, first, None)
    assert executed == ["before", "after"]
    state = state_of(server)
    texts = [
        *(
            create,
            encode_command("load"),
            encode_command("status"),
            encode_command("save", folder=str(saved)),
            encode_command("lr_factor", factor=1e-9),
            '{"command": "stop"}',
        ),
        '{"command": "reset", "table": "track", "rows": [0, 1]}',
    ]
    for number in range(FUZZED):
        control(0, generated(genuine, texts, first), None)
        assert sum(server.verifier.rejected.values()) == number + 1
    assert executed == ["before", "after"]
    assert state_of(server) == state
    assert not saved.exists()
    genuine = signer.sign(encode_command("lr_factor", factor=0.5))
    control(0, genuine.encode(), None)  # the worker's next one still is
    assert len(executed) == 4


def state_of(server: RowServer) -> tuple[object, ...]:
    """Return what commands change."""
    status = (dict(server._status), server._checkpoint, server._snapshot)
    return (dict(server._layouts), server._optimizer, server._seed, server._servers, *status)


def generated(draw: random.Random, texts: list[str], executed: bytes) -> bytes:
    """Return a command that no worker has sent: random bytes, unsigned, signed by another, corrupt, or a replay."""
    text = draw.choice(texts)
    counter = draw.choice([0, 1, 2, 3, 2**63, -1])
    match draw.randrange(7):
        case 0:
            return draw.randbytes(draw.randrange(200)).replace(b"\0", b"")
        case 1:
            return text.encode()
        case 2:
            return CommandSigner(OTHER).sign(text).encode()
        case 3:
            body = corrupt_bytes(draw, executed, text.encode())
            return body if body != executed else body[:-1]
        case 4:
            return f"{draw.randbytes(32).hex()} {counter} {text}".encode()
        case 5:
            return json.dumps(any_value(draw)).encode()
        case _:
            return executed
