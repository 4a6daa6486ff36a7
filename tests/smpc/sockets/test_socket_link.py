"""The link over sockets: messages arrive, and whatever a hostile or dead peer does ends with an error that names it."""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from grid.errors import GridError, QuorumLost, QuotaExceeded, WireError
from grid.smpc import link as links
from grid.smpc import socket_link
from grid.smpc.link import Words
from grid.smpc.local import fresh_keystreams, run_parties
from grid.smpc.party import Party
from grid.smpc.replicated.protocol import Replicated
from grid.smpc.socket_link import KEY_BYTES, Channel, SocketLink
from grid.smpc.steps import Arrival, Task

HEADER = 16
TAG = 16


def channel_pair(family: int = socket.AF_UNIX) -> tuple[Channel, Channel]:
    """Both ends of one channel between two parties."""
    if family == socket.AF_UNIX:
        first, second = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            first = socket.create_connection(server.getsockname())
            second, _ = server.accept()
    one, other = secrets.token_bytes(KEY_BYTES), secrets.token_bytes(KEY_BYTES)
    return Channel(first, one, other), Channel(second, other, one)


def three_links(family: int = socket.AF_UNIX, patience: float = 30.0) -> list[SocketLink]:
    channels: list[dict[int, Channel]] = [{}, {}, {}]
    for i in range(3):
        channels[i][(i + 1) % 3], channels[(i + 1) % 3][i] = channel_pair(family)
    return [SocketLink(rank, channels[rank], patience=patience) for rank in range(3)]


async def outcome(arrival: Arrival[Words]) -> Words:
    """What arrives, as a task of asyncio sees it."""
    waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    arrival.tell(lambda: waiting.set_result(None))
    await waiting
    return arrival.result()


async def run(programs: list[Callable[[], Awaitable[object]]]) -> list[object]:
    """Run programs of steps, on this loop."""

    async def one(program: Callable[[], Awaitable[object]]) -> object:
        return await program()

    tasks = [Task(one(program)) for program in programs]
    return [await outcome(task.outcome) for task in tasks]  # type: ignore[arg-type]


class Wire:
    """Party 0 with real links; what party 1 sends to it goes through the test's hands, sealed with the right keys."""

    def __init__(self, patience: float = 30.0) -> None:
        ours, theirs = channel_pair()
        idle, self.third = channel_pair()
        self.told: list[GridError] = []
        self.link = SocketLink(0, {1: ours, 2: idle}, patience=patience, failed=self.told.append)
        self.peer = theirs.socket
        self.peer.setblocking(False)
        self._key = AESGCM(theirs.sending)
        self._sequence = 0

    def sealed(self, label: int, words: list[int] | Words) -> bytes:
        data = np.asarray(words, np.uint64).tobytes()
        header = struct.pack("<QQ", label, len(data) // 8)
        nonce = struct.pack("<IQ", 4 * 1 + 0, self._sequence)
        self._sequence += 1
        return header + self._key.encrypt(nonce, data, header)

    async def give(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.peer, data)

    async def ends_with(self, kind: type[GridError], match: str) -> None:
        with pytest.raises(kind, match=match) as raised:
            await outcome(self.link.receive(2, 99, 1))
        assert raised.value.details["party"] == 1
        assert self.told == [raised.value]
        for other in (self.peer, self.third.socket):  # both of the link's sockets are closed
            other.setblocking(True)
            try:
                while other.recv(1 << 16):
                    pass
            except ConnectionResetError:
                pass
        with pytest.raises(kind):
            await outcome(self.link.receive(1, 100, 1))
        self.link.send(1, 5, np.zeros(1, np.uint64))  # to nobody, without an error

    def close(self) -> None:
        self.link.fail(QuorumLost("the test is over"))
        self.peer.close()
        self.third.socket.close()


@pytest.fixture
async def wire() -> Iterator[Wire]:
    one = Wire()
    yield one
    one.close()


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
async def test_messages_of_all_sizes_arrive_in_any_order_of_asking(family: int) -> None:
    first, second, third = three_links(family)
    sizes = [0, 1, 100, 8188, 8190, 8192, 131_000, 131_072, 400_000]
    given = [np.random.default_rng(n).integers(0, 1 << 64, n, np.uint64) for n in sizes]
    for label, words in enumerate(given):
        first.send(1, label, words)
    words[:] = 0  # what was sent is the caller's again
    for label in reversed(range(len(sizes))):
        received = await outcome(second.receive(0, label, sizes[label]))
        expected = np.random.default_rng(sizes[label]).integers(0, 1 << 64, sizes[label], np.uint64)
        assert np.array_equal(received, expected)
        assert received.flags.writeable and received.flags.c_contiguous
    assert first.bytes_sent == sum(8 * n + HEADER + TAG for n in sizes)
    await asyncio.gather(first.close(), second.close(), third.close())


async def test_a_computation_gives_what_it_gives_in_memory() -> None:
    x = np.arange(-500, 500, dtype=np.int64).view(np.uint64)

    async def program(party: Party) -> Words:
        protocol = Replicated(party)
        shared = await protocol.share(0, x.shape, x if party.rank == 0 else None)
        positive = protocol.invert(await protocol.negative(shared))
        return await protocol.open(await protocol.choose(positive, shared))

    links_of_all = three_links()
    streams = fresh_keystreams()
    parties = [Party(rank, links_of_all[rank], streams[rank]) for rank in range(3)]
    results = await run([lambda party=party: program(party) for party in parties])  # type: ignore[misc]
    for result, expected in zip(results, run_parties(program).results, strict=True):
        assert np.array_equal(result, expected)
    await asyncio.gather(*(each.close() for each in links_of_all))


async def test_closing_waits_until_the_others_are_done_too() -> None:
    first, second, third = three_links()
    first.send(1, 7, np.arange(300_000, dtype=np.uint64))  # more than a socket's buffer holds
    closing = asyncio.ensure_future(asyncio.gather(first.close(), third.close()))
    received = await outcome(second.receive(0, 7, 300_000))
    assert received[-1] == 299_999 and not closing.done()
    await second.close()
    await closing
    with pytest.raises(QuorumLost, match="closed"):
        await outcome(second.receive(0, 8, 1))


async def test_bytes_may_come_one_by_one(wire: Wire) -> None:
    for byte in wire.sealed(3, [1, 2]) + wire.sealed(4, [3]):
        await wire.give(bytes([byte]))
        await asyncio.sleep(0)
    assert (await outcome(wire.link.receive(1, 3, 2))).tolist() == [1, 2]
    assert (await outcome(wire.link.receive(1, 4, 1))).tolist() == [3]


@pytest.mark.parametrize("place", [0, 8, HEADER, HEADER + 8, -1])
async def test_a_changed_byte_is_noticed_wherever_it_is(wire: Wire, place: int) -> None:
    frame = bytearray(wire.sealed(3, [1, 2]))
    frame[place] ^= 1
    await wire.give(bytes(frame) + bytes(64))
    await wire.ends_with(WireError, "message 0 of party 1 does not open")


async def test_a_changed_byte_of_a_large_message_is_noticed(wire: Wire) -> None:
    frame = bytearray(wire.sealed(3, np.arange(100_000, dtype=np.uint64)))
    frame[400_000] ^= 1
    giving = asyncio.ensure_future(wire.give(bytes(frame)))
    await wire.ends_with(WireError, "does not open")
    await giving


async def test_replayed_messages_do_not_open(wire: Wire) -> None:
    frame = wire.sealed(3, [1])
    await wire.give(frame)
    assert (await outcome(wire.link.receive(1, 3, 1))).tolist() == [1]
    await wire.give(frame)
    await wire.ends_with(WireError, "message 1 of party 1 does not open")


async def test_messages_out_of_order_or_left_out_do_not_open(wire: Wire) -> None:
    wire.sealed(3, [1])
    await wire.give(wire.sealed(4, [2]))
    await wire.ends_with(WireError, "message 0 of party 1 does not open")


async def test_what_one_party_sent_does_not_open_when_sent_back_to_it() -> None:
    ours, theirs = channel_pair()
    idle, third = channel_pair()
    same = Channel(ours.socket, ours.sending, ours.sending)  # even if both directions had one key
    link = SocketLink(0, {1: same, 2: idle})
    link.send(1, 3, np.ones(1, np.uint64))
    frame = theirs.socket.recv(1000)
    theirs.socket.sendall(frame)
    with pytest.raises(WireError, match="does not open"):
        await outcome(link.receive(1, 3, 1))
    theirs.socket.close()
    third.socket.close()


@pytest.mark.parametrize("count", [1, 3, 1 << 26, (1 << 64) - 1])
async def test_a_message_must_be_as_long_as_what_is_waited_for(wire: Wire, count: int) -> None:
    waiting = wire.link.receive(1, 3, 2)
    await wire.give(struct.pack("<QQ", 3, count))  # the header alone decides
    with pytest.raises(WireError, match=f"party 1 sent {count} words where 2 were due"):
        await outcome(waiting)
    await wire.ends_with(WireError, "were due")


async def test_an_early_message_beyond_the_limit_is_refused_by_its_header(wire: Wire) -> None:
    await wire.give(struct.pack("<QQ", 3, links.MAX_EARLY_BYTES // 8 + 1))
    await wire.ends_with(QuotaExceeded, "nobody has asked for")


async def test_many_early_messages_without_words_are_too_much_too(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MAX_EARLY_BYTES", 10_000)
    await wire.give(b"".join(wire.sealed(label, []) for label in range(100)))
    await wire.ends_with(QuotaExceeded, "nobody has asked for")


async def test_one_label_twice_is_a_fault(wire: Wire) -> None:
    await wire.give(wire.sealed(3, [1]) + wire.sealed(3, [1]))
    await wire.ends_with(WireError, "one message twice")


async def test_signs_of_life_carry_nothing(wire: Wire) -> None:
    await wire.give(wire.sealed((1 << 64) - 2, [1]))
    await wire.ends_with(WireError, "sign of life with 1 words")


async def test_nothing_may_come_after_the_end(wire: Wire) -> None:
    await wire.give(wire.sealed((1 << 64) - 1, []) + wire.sealed(3, [1]))
    await wire.ends_with(WireError, "after it was done")


@pytest.mark.parametrize("waits_before", [True, False])
async def test_a_party_that_is_done_too_early_is_lost_and_nobody_waits_for_it(wire: Wire, waits_before: bool) -> None:
    waiting = wire.link.receive(1, 3, 1) if waits_before else None
    await wire.give(wire.sealed(2, [5]) + wire.sealed((1 << 64) - 1, []))
    assert (await outcome(wire.link.receive(1, 2, 1))).tolist() == [5]
    with pytest.raises(QuorumLost, match="party 1 is lost: it was done before the computation was"):
        await outcome(waiting or wire.link.receive(1, 3, 1))
    await wire.ends_with(QuorumLost, "done before the computation")


@pytest.mark.parametrize("kept", [0, 5, HEADER, HEADER + 10])
async def test_a_socket_that_ends_early_is_a_lost_party(wire: Wire, kept: int) -> None:
    await wire.give(wire.sealed(3, [1, 2])[:kept])
    wire.peer.shutdown(socket.SHUT_WR)  # half open: the other direction still stands
    await wire.ends_with(QuorumLost, "party 1 is lost: its connection ended")


async def test_a_cut_within_a_large_message_is_a_lost_party(wire: Wire) -> None:
    await wire.give(wire.sealed(3, np.zeros(100_000, np.uint64))[:100_000])
    wire.peer.shutdown(socket.SHUT_WR)
    await wire.ends_with(QuorumLost, "party 1 is lost: its connection ended")


async def test_a_party_that_is_silent_is_lost_and_one_with_nothing_to_say_is_not() -> None:
    first, second, third = three_links(patience=0.2)
    silent, end = channel_pair()
    lonely = SocketLink(0, {1: silent}, patience=0.2)
    with pytest.raises(QuorumLost, match=r"party 1 is lost: nothing has come from it for 0.2 s"):
        await outcome(lonely.receive(1, 0, 1))
    assert end.socket.recv(100)  # it had sent signs of life itself
    end.socket.close()
    assert not any(each.is_over for each in (first, second, third))
    first.send(1, 3, np.ones(1, np.uint64))
    assert (await outcome(second.receive(0, 3, 1))).tolist() == [1]
    await asyncio.gather(first.close(), second.close(), third.close())


async def test_a_party_that_does_not_read_ends_the_link_before_it_takes_all_memory(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_link, "MAX_QUEUED_BYTES", 4_000_000)
    words = np.zeros(1 << 17, np.uint64)
    for label in range(8):
        wire.link.send(1, label, words)
    await wire.ends_with(QuotaExceeded, "party 1 does not read")


async def test_a_party_that_stops_reading_is_lost_though_it_talks() -> None:
    wire = Wire(patience=0.2)
    wire.link.send(1, 0, np.zeros(1 << 20, np.uint64))

    async def talk(peer: Channel | Wire) -> None:
        sequence = 0
        while not wire.link.is_over:
            if isinstance(peer, Wire):
                await peer.give(peer.sealed((1 << 64) - 2, []))
            else:
                header = struct.pack("<QQ", (1 << 64) - 2, 0)
                nonce = struct.pack("<IQ", 4 * 2 + 0, sequence)
                peer.socket.send(header + AESGCM(peer.sending).encrypt(nonce, b"", header))
            sequence += 1
            await asyncio.sleep(0.02)

    talking = [asyncio.ensure_future(talk(peer)) for peer in (wire, wire.third)]
    await wire.ends_with(QuorumLost, r"party 1 is lost: it has read nothing for 0.2 s")
    await asyncio.gather(*talking, return_exceptions=True)
    wire.close()


async def test_an_error_reaches_the_coroutine_that_waits(wire: Wire) -> None:
    async def program() -> Words:
        return await wire.link.receive(1, 3, 1)

    task = Task(program())
    wire.peer.close()
    with pytest.raises(QuorumLost, match="party 1 is lost"):
        await outcome(task.outcome)
