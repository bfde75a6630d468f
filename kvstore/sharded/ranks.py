"""The ranks of a job: processes that exchange arrays, all-to-all.

    ranks = Ranks.join("10.0.0.1:7071/SECRET", rank=0, num_ranks=4, address="10.0.0.1", timeout_seconds=600)
    message = ranks.buffer(sent_W.sum())                        # fill it with a section for each other rank, in order
    sections = ranks.exchange(sent_W, received_W)               # the section that each rank has sent
    ranks.sum(values_N)                                         # the same bits for every rank

Each pair of ranks has a connection (``connections.py``): TCP between hosts, a Unix socket on one host. There, large
sections are not sent: their receiver reads them in the sender's memory, which both map. The thread that calls sends and
receives by itself, so an exchange waits for no other thread.

Shapes: W ranks, K values of each rank, N values.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import ClusterError
from crossfade.kvstore.sharded.connections import Connection, Meeting, RendezvousClient, connect_ranks

MIN_SHARED_BYTES = 1 << 14
"""Sections from this size on are read in shared memory where that is possible."""
_PLACE = struct.Struct("<QQ")
"""What is sent in place of a section in shared memory: the size of its buffer, and where the section begins."""
_ERROR_DELAY_SECONDS = 2.0
"""Time that a rank waits before it reports the loss of a peer, so that the peer reports its own error first."""
_MAX_CALL_BYTES = 1 << 30
"""Bytes that one call sends or receives: some systems take less than 2 GiB."""
_NOTHING = memoryview(b"")
_TOKEN = memoryview(b"\0")
"""Stands for an empty section on one host, so that whoever sends one waits for the receiver before it reuses memory."""

Bytes = NDArray[np.uint8]


class _Buffer:
    """Memory for messages; if ``shared``, other processes can map it once they have its descriptor."""

    def __init__(self, size: int, *, shared: bool) -> None:
        self.descriptor: int | None = None
        self.bytes: Bytes
        if shared:
            self.descriptor = os.memfd_create("crossfade-rows", os.MFD_CLOEXEC)
            os.ftruncate(self.descriptor, size)
            self.bytes = np.frombuffer(mmap(self.descriptor, size), np.uint8)
        else:
            self.bytes = np.empty(size, np.uint8)

    def close(self) -> None:
        """Close the descriptor. The memory is released with the last array of it."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


@dataclass
class _Peer:
    """Another rank: its connection, and what is left to be sent and received in an exchange."""

    connection: Connection
    to_send: memoryview = _NOTHING
    to_receive: memoryview = _NOTHING
    descriptor: int | None = None
    """To be sent with the next byte."""
    takes_descriptor: bool = False
    taken: list[int] = field(default_factory=list)
    informed: list[_Buffer | None] = field(default_factory=lambda: [None, None])
    """The buffers of this rank whose descriptors the peer has."""
    mapped: list[Bytes] = field(default_factory=lambda: [np.empty(0, np.uint8)] * 2)
    """The peer's two buffers."""

    def advance(self) -> bool:
        """Send and receive what is possible at once; return whether that was anything.

        Raises:
            OSError: the connection broke off.
        """
        sent, received = bool(self.to_send) and self._send(), bool(self.to_receive) and self._receive()
        return sent or received

    def _send(self) -> bool:
        try:
            if self.descriptor is None:
                count = self.connection.socket.send(self.to_send[:_MAX_CALL_BYTES])
            else:
                count = socket.send_fds(self.connection.socket, [self.to_send], [self.descriptor])
        except BlockingIOError:
            return False
        self.to_send, self.descriptor = self.to_send[count:], None
        return True

    def _receive(self) -> bool:
        try:
            if self.takes_descriptor:
                data, descriptors, _, _ = socket.recv_fds(self.connection.socket, len(self.to_receive), 1)
                count = len(data)
                self.to_receive[:count] = data
                self.taken += descriptors
            else:
                count = self.connection.socket.recv_into(self.to_receive[:_MAX_CALL_BYTES])
        except BlockingIOError:
            return False
        if count == 0:
            raise ConnectionResetError("it has closed the connection")
        self.to_receive = self.to_receive[count:]
        return True

    @property
    def events(self) -> int:
        """Return what to wait for."""
        return (select.POLLOUT if self.to_send else 0) | (select.POLLIN if self.to_receive else 0)

    def section(self, slot: int, place: bytearray, size: int) -> Bytes:
        """Return the section of ``size`` bytes at ``place`` of the peer's buffer ``slot``, which both map."""
        buffer_size, begin = _PLACE.unpack(place)
        for descriptor in self.taken:
            self.mapped[slot] = np.frombuffer(mmap(descriptor, buffer_size), np.uint8)
            os.close(descriptor)
        self.taken.clear()
        if len(self.mapped[slot]) != buffer_size:
            raise ClusterError(
                "the memory of another worker on this host cannot be mapped: its descriptor did not arrive, as beyond "
                "the limit of open files (ulimit -n)"
            )
        return self.mapped[slot][begin : begin + size]


class Ranks:
    """This process, one of the ranks of a job. Every rank calls the same methods in the same order."""

    def __init__(self, rank: int, connections: dict[int, Connection]) -> None:
        """Be rank ``rank``, with a connection to each of the others."""
        self.rank, self.num_ranks = rank, len(connections) + 1
        self._peers = {other: _Peer(connection) for other, connection in sorted(connections.items())}
        self._shares = any(connection.is_local for connection in connections.values())
        # Two, since a peer may still read the last message in one while this rank fills the other.
        self._buffers = [_Buffer(1, shared=self._shares) for _ in range(2)]
        self._slot = 0
        self._received: Bytes = np.empty(0, np.uint8)

    @staticmethod
    def join(rendezvous: str, rank: int, num_ranks: int, address: str, timeout_seconds: float) -> Ranks:
        """Join the other ranks; return when all have joined.

        Args:
            rendezvous: where they meet, as ``HOST:PORT/SECRET``.
            rank: this process's number.
            num_ranks: how many there are.
            address: the numeric address at which this process listens.
            timeout_seconds: how long to wait for the others.

        Raises:
            ClusterError: another rank did not join, or could not be reached.
        """
        client, secret = RendezvousClient(rendezvous, timeout_seconds), rendezvous.partition("/")[2]
        return Ranks.meet(client, secret, rank, num_ranks, address, timeout_seconds)

    @staticmethod
    def meet(meeting: Meeting, secret: str, rank: int, num_ranks: int, address: str, timeout_seconds: float) -> Ranks:
        """Join the other ranks at ``meeting``; see ``connect_ranks``."""
        return Ranks(rank, connect_ranks(meeting, secret, rank, num_ranks, address, timeout_seconds))

    def buffer(self, size: int) -> Bytes:
        """Return memory for the next message, ``size`` bytes, which a later call reuses."""
        self._slot = 1 - self._slot
        buffer = self._buffers[self._slot]
        if len(buffer.bytes) < size:
            buffer.close()
            buffer = self._buffers[self._slot] = _Buffer(size + size // 8, shared=self._shares)
        return buffer.bytes[:size]

    def exchange(self, sent_W: IntArray, received_W: IntArray) -> list[Bytes]:
        """Send the sections of the last ``buffer``; return the sections that the other ranks sent.

        Sections are valid until the next exchange, and may be written to.

        Args:
            sent_W: the bytes of the section for each rank, in the order of ranks; none for this one.
            received_W: the bytes of the section that each rank sends.

        Raises:
            ClusterError: another rank was lost.
        """
        sent, received = sent_W.tolist(), received_W.tolist()
        shared = [rank for rank, peer in self._peers.items() if self._is_shared(peer, received[rank])]
        places = {rank: bytearray(_PLACE.size) for rank in shared}
        size = sum(count for rank, count in enumerate(received) if rank not in places)
        if len(self._received) < size:
            self._received = np.empty(size + size // 8, np.uint8)
        sections, at, sent_from = [self._received[:0]] * self.num_ranks, 0, 0
        for rank, peer in self._peers.items():
            self._prepare(peer, sent_from, sent[rank])
            sent_from += sent[rank]
            peer.takes_descriptor = rank in places
            if rank in places:
                peer.to_receive = memoryview(places[rank])
            else:
                sections[rank] = self._received[at : at + received[rank]]
                peer.to_receive = sections[rank].data
                at += received[rank]
                if peer.connection.is_local and not received[rank]:
                    peer.to_receive = memoryview(bytearray(1))
        self._transfer()
        for rank, place in places.items():
            sections[rank] = self._peers[rank].section(self._slot, place, received[rank])
        return sections

    def _is_shared(self, peer: _Peer, size: int) -> bool:
        return peer.connection.is_local and size >= MIN_SHARED_BYTES

    def _prepare(self, peer: _Peer, begin: int, size: int) -> None:
        """Let ``peer`` be sent the section at ``begin`` of the last buffer, or where it is in shared memory."""
        buffer = self._buffers[self._slot]
        if not self._is_shared(peer, size):
            peer.to_send = buffer.bytes[begin : begin + size].data
            if peer.connection.is_local and not size:
                peer.to_send = _TOKEN
            return
        assert buffer.descriptor is not None
        peer.to_send = memoryview(_PLACE.pack(len(buffer.bytes), begin))
        if peer.informed[self._slot] is not buffer:
            peer.descriptor, peer.informed[self._slot] = buffer.descriptor, buffer

    def _transfer(self) -> None:
        """Send and receive until nothing is left."""
        waiting = [(rank, peer) for rank, peer in self._peers.items() if peer.events]
        while waiting:
            advanced = False
            for rank, peer in waiting:
                try:
                    advanced |= peer.advance()
                except OSError as error:
                    time.sleep(_ERROR_DELAY_SECONDS)
                    raise ClusterError(f"worker {self.rank} has lost worker {rank}: {error}") from error
            waiting = [(rank, peer) for rank, peer in waiting if peer.events]
            if waiting and not advanced:
                poll = select.poll()
                for _, peer in waiting:
                    poll.register(peer.connection.socket, peer.events)
                poll.poll()

    def gather(self, values_K: NDArray[Any]) -> NDArray[Any]:
        """Return ``values_K`` of every rank: (W, K), of the same type. All have the same K."""
        sizes_W = self.sizes(values_K.nbytes)
        message = self.buffer(int(sizes_W.sum())).view(values_K.dtype)
        message.reshape(self.num_ranks - 1, len(values_K))[:] = values_K
        sections = self.exchange(sizes_W, sizes_W)
        return np.stack(
            [values_K if w == self.rank else section.view(values_K.dtype) for w, section in enumerate(sections)]
        )

    def sizes(self, size: int) -> IntArray:
        """Return sizes of sections of which all have ``size`` bytes, this rank's excepted: int64 (W,)."""
        sizes_W = np.full(self.num_ranks, size, np.int64)
        sizes_W[self.rank] = 0
        return sizes_W

    def sum(self, values_N: FloatArray) -> FloatArray:
        """Return the sum over all ranks, in their order: (N,), of the type of ``values_N``.

        Each rank adds up a part of the values, and sends it to the others.
        """
        size = -(-len(values_N) // self.num_ranks)
        parts_WK = np.zeros((self.num_ranks, size), values_N.dtype)
        parts_WK.reshape(-1)[: len(values_N)] = values_N
        sizes_W = self.sizes(parts_WK[0].nbytes)
        message = self.buffer(int(sizes_W.sum())).view(values_N.dtype).reshape(self.num_ranks - 1, size)
        message[:] = np.delete(parts_WK, self.rank, axis=0)
        total_K = np.zeros(size, values_N.dtype)
        for w, section in enumerate(self.exchange(sizes_W, sizes_W)):
            total_K += parts_WK[self.rank] if w == self.rank else section.view(values_N.dtype)
        result: FloatArray = self.gather(total_K).reshape(-1)[: len(values_N)]
        return result

    def barrier(self) -> None:
        """Return when every rank has called it."""
        self.gather(np.zeros(1, np.uint8))

    def close(self) -> None:
        """Close the connections."""
        for peer in self._peers.values():
            peer.connection.socket.close()
        for buffer in self._buffers:
            buffer.close()
