"""Tables that are divided among ranks: sums as a tree, rounds in which ranks want different things, lost ranks."""

import json
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from drive_store import SEED, STEPS, TABLES, gradient, lr_factor, optimizer
from partition_trees import add_rows_as_tree
from saved_shards import wait_for_save
from sharded_ranks import SECRET, Meeting, RunningRanks, join_ranks, running_ranks

from crossfade.base.arrays import FloatArray
from crossfade.base.errors import CheckpointError, ClusterError, DivergedError
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.optimizer_spec import OptimizerKind
from crossfade.kvstore.sharded import connections
from crossfade.kvstore.sharded import ranks as ranks_module
from crossfade.kvstore.sharded.ranks import MIN_SHARED_BYTES, Ranks
from crossfade.kvstore.sharded.store import ShardedStore
from crossfade.kvstore.store import RowGradient, RowStore, TableSpec

LARGE = [TableSpec("customer", rows=4_000, dim=64, init_std=0.1), TableSpec("track", rows=900, dim=5, init_std=0.5)]
"""Tables of which messages are large enough for shared memory."""


def all_rows(store: RowStore, tables: list[TableSpec] = TABLES) -> dict[str, FloatArray]:
    return store.pull({table.name: np.arange(table.rows) for table in tables})


def summed(step: int, workers: int, table: TableSpec) -> RowGradient:
    """Return the sum of all ranks' gradients, row by row."""
    pushed = [gradient(step, rank, table) for rank in range(workers)]
    return RowGradient(*add_rows_as_tree([each.rows_A for each in pushed], [each.values_AD for each in pushed]))


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "hosts", "kind"), [(2, 1, "adam"), (3, 3, "rowwise_adagrad"), (5, 2, "adagrad")])
def test_ranks_hold_after_each_step_what_one_process_holds(ranks: int, hosts: int, kind: OptimizerKind) -> None:
    local = LocalStore()
    local.create(TABLES, optimizer(kind), SEED)

    def take_steps(store: ShardedStore) -> list[dict[str, FloatArray]]:
        store.create(TABLES, optimizer(kind), SEED)
        held = [all_rows(store)]
        for step in range(STEPS):
            store.set_lr_factor(lr_factor(step))
            step_rows = {table.name: gradient(step, store.rank, table) for table in TABLES}
            if step % 2:  # the rows that were pulled, so that only gradients are sent
                store.pull({name: each.rows_A for name, each in step_rows.items()})
            store.push(step_rows)
            held.append(all_rows(store))
        return held

    with running_ranks(ranks, hosts=hosts) as running:
        by_rank = running.each(take_steps)
    expected = [all_rows(local)]
    for step in range(STEPS):
        local.set_lr_factor(lr_factor(step))
        local.push({table.name: summed(step, ranks, table) for table in TABLES})
        expected.append(all_rows(local))
    for held in by_rank:
        for step, tables in enumerate(expected):
            for name, values_ND in tables.items():
                assert held[step][name].tobytes() == values_ND.tobytes(), (step, name)


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [1, 2])
def test_large_messages_arrive_whole_by_shared_memory_and_by_tcp(hosts: int) -> None:
    generator = np.random.default_rng(1)
    local = LocalStore()
    local.create(LARGE, optimizer("sgd"), SEED)
    rows = {table.name: np.sort(generator.choice(table.rows, table.rows // 2, replace=False)) for table in LARGE}
    assert len(rows["customer"]) // 2 * 64 * 4 > 4 * MIN_SHARED_BYTES
    values = {
        name: generator.normal(size=(len(rows_A), dim)).astype(np.float32)
        for (name, rows_A), dim in zip(rows.items(), (64, 5), strict=True)
    }

    def take_steps(store: ShardedStore) -> dict[str, FloatArray]:
        store.create(LARGE, optimizer("sgd"), SEED)
        for step in range(6):
            some = {name: rows_A[step * 50 :] for name, rows_A in rows.items()}
            store.pull(some)
            push = {name: RowGradient(rows_A, values[name][step * 50 :]) for name, rows_A in some.items()}
            empty = {name: RowGradient(each.rows_A[:0], each.values_AD[:0]) for name, each in push.items()}
            store.push(push if store.rank == step % 2 else empty)
        return all_rows(store, LARGE)

    with running_ranks(2, hosts=hosts) as running:
        by_rank = running.each(take_steps)
    for step in range(6):
        local.push({name: RowGradient(rows_A[step * 50 :], values[name][step * 50 :]) for name, rows_A in rows.items()})
    for held in by_rank:
        for name, values_ND in all_rows(local, LARGE).items():
            assert held[name].tobytes() == values_ND.tobytes(), name


@pytest.fixture
def three() -> Iterator[RunningRanks]:
    """Three ranks, with tables."""
    with running_ranks(3) as running:
        running.each(lambda store: store.create(TABLES, optimizer("sgd"), SEED))
        yield running


def test_ranks_pull_as_often_as_they_like_before_a_step(three: RunningRanks) -> None:
    def work(store: ShardedStore) -> list[FloatArray]:
        pulled = [store.pull({"customer": np.arange(store.rank, 60)})["customer"] for _ in range(3 * store.rank)]
        store.push({table.name: gradient(0, store.rank, table) for table in TABLES})
        store.barrier()
        return pulled

    first = three.each(all_rows)[0]["customer"]
    for rank, pulled in enumerate(three.each(work)):
        assert len(pulled) == 3 * rank
        for block_AD in pulled:
            np.testing.assert_array_equal(block_AD, first[rank:60])


def test_save_that_fails_names_the_rank_and_a_long_reason_and_keeps_the_ranks_together(
    three: RunningRanks, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "/".join(["контрольная-точка-" * 3] * 9)
    three.first(lambda store: store.save(str(folder)))

    def poll(store: ShardedStore) -> str:
        with pytest.raises(CheckpointError, match=r"worker-0: .*file/контрольная") as caught:
            wait_for_save(store)
        return str(caught.value)

    assert len(json.dumps(three.first(poll))) > 1024
    three.each(lambda store: store.pull({"customer": np.arange(9)}))


def test_memory_is_not_reused_while_its_receiver_may_read_it() -> None:
    sender, receiver = join_ranks(2)
    nothing_W, refilled = np.zeros(2, np.int64), Event()
    to_receiver_W = np.array([0, MIN_SHARED_BYTES])
    from_sender_W = np.array([MIN_SHARED_BYTES, 0])

    def send() -> None:
        for number in (1, 2, 3):  # in two buffers in turn
            sender.buffer(MIN_SHARED_BYTES)[:] = number
            if number == 3:
                refilled.set()
            sender.exchange(to_receiver_W, nothing_W)

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        for number in (1, 2, 3):
            receiver.buffer(0)
            section = receiver.exchange(nothing_W, from_sender_W)[0]
            if number == 1:  # the sender fills this buffer again only once the receiver is in the next exchange
                assert not refilled.wait(0.5)
            assert (section == number).all()
        sending.result()
    sender.close()
    receiver.close()


def test_diverged_row_is_named_by_its_owner_and_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks_module, "_ERROR_DELAY_SECONDS", 0.0)
    running = RunningRanks(3)

    def work(store: ShardedStore) -> str:
        store.create(TABLES, optimizer("sgd"), SEED)
        values_AD = np.full((1, 8), np.inf if store.rank == 0 else 0, np.float32)
        try:
            store.push({"customer": RowGradient(np.array([7]), values_AD)})
            store.barrier()
        except (DivergedError, ClusterError) as error:
            store.abandon()
            return str(error)
        return ""

    first, owner, last = running.each(work)
    assert owner.startswith("table 'customer', row 7: the gradients or values of 1 of ")
    assert "worker 0 has lost worker" in first
    assert "worker 2 has lost worker" in last


# ---- joining


def listener(meeting: Meeting) -> tuple[str, int]:
    """Return where rank 0 listens."""
    host, port = json.loads(meeting.get("rank-0"))["tcp"]
    return host, port


def test_strangers_are_turned_away_and_the_listener_closes() -> None:
    meeting = Meeting()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(Ranks.meet, meeting, SECRET, 0, 2, "127.0.0.1", 60.0)
        address = listener(meeting)
        with socket.create_connection(address) as scanner:
            scanner.sendall(os.urandom(200))
            assert len(scanner.recv(64, socket.MSG_WAITALL)) == 64  # a proof and a challenge
            with suppress(ConnectionResetError):
                assert scanner.recv(1) == b""
        with pytest.raises(ClusterError, match="what answers for worker 0 is not a worker of this job"):
            Ranks.meet(meeting, "another-secret", 1, 2, "127.0.0.1", 60.0)
        second = Ranks.meet(meeting, SECRET, 1, 2, "127.0.0.1", 60.0)
        ranks = first.result(), second
        for total in pool.map(_sum_of_ranks, ranks):
            assert total == 1.0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    for each in ranks:
        each.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"], ids=["one host", "two hosts"])
def test_silent_strangers_delay_nobody_and_are_turned_away(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_HANDSHAKE_SECONDS", 1000.0)
    monkeypatch.setattr(connections, "_MAX_UNPROVED", 8)
    meeting = Meeting()
    with ThreadPoolExecutor(3) as pool, ExitStack() as stack:
        first = pool.submit(Ranks.meet, meeting, SECRET, 0, 3, "127.0.0.1", 60.0)
        silent = [stack.enter_context(socket.create_connection(listener(meeting), 10.0)) for _ in range(20)]
        for stranger in silent[:10]:  # those beyond eight, and one for each rank that is missing
            assert stranger.recv(1) == b""
        others = [pool.submit(Ranks.meet, meeting, SECRET, rank, 3, host, 60.0) for rank in (1, 2)]
        for each in [first, *others]:
            each.result(30).close()


def test_stranger_who_stays_silent_is_turned_away_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_HANDSHAKE_SECONDS", 0.05)
    meeting = Meeting()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(Ranks.meet, meeting, SECRET, 0, 2, "127.0.0.1", 60.0)
        with socket.create_connection(listener(meeting)) as stranger:
            stranger.sendall(b"x")
            assert stranger.recv(1) == b""
            assert not first.done()
        monkeypatch.setattr(connections, "_HANDSHAKE_SECONDS", 60.0)
        Ranks.meet(meeting, SECRET, 1, 2, "127.0.0.1", 60.0).close()
        first.result().close()


def _sum_of_ranks(ranks: Ranks) -> float:
    return float(ranks.sum(np.array([ranks.rank], np.float32))[0])


def test_rank_that_does_not_come_is_named() -> None:
    with pytest.raises(
        ClusterError, match=r"worker 0 at 127\.0\.0\.1 could not connect .*: timed out; not connected to 1, 2"
    ):
        Ranks.meet(Meeting(), SECRET, 0, 3, "127.0.0.1", 0.05)
