"""What a socket receives reaches its function, all of it, in order, and in turns."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.process.inbox import MAX_AT_ONCE, Inbox


@contextmanager
def pair() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    context = zmq.Context[zmq.Socket[bytes]]()
    here, there = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    here.bind("inproc://pair")
    there.connect("inproc://pair")
    yield here, there
    context.destroy(linger=0)


@given(st.lists(st.sampled_from(["receive", "send", "turn"]), max_size=40))
@settings(deadline=None)
def test_everything_comes_in_order_whatever_is_sent_in_between(moves: list[str]) -> None:
    async def scenario(here: zmq.Socket[bytes], there: zmq.Socket[bytes]) -> None:
        received: list[bytes] = []
        inbox = Inbox(here, lambda frames: received.extend(frames))
        sent = [str(number).encode() for number in range(moves.count("receive"))]
        unsent = iter(sent)
        for move in moves:
            if move == "receive":
                there.send(next(unsent))
            elif move == "send":
                here.send(b"")  # takes the descriptor's word away
                inbox.look()
            else:
                await asyncio.sleep(0)
        async with asyncio.timeout(5):
            while received != sent:
                await asyncio.sleep(0.001)
        inbox.close()

    with pair() as sockets:
        asyncio.run(scenario(*sockets))


def test_the_event_loop_has_its_turns_while_messages_pour_in() -> None:
    async def scenario(here: zmq.Socket[bytes], there: zmq.Socket[bytes]) -> None:
        received: list[list[bytes]] = []
        inbox = Inbox(here, received.append)
        for _ in range(3 * MAX_AT_ONCE):
            there.send_multipart([b"a", b"b"])
        counts = set()
        while len(received) < 3 * MAX_AT_ONCE:
            await asyncio.sleep(0)
            counts.add(len(received))
        assert counts >= {MAX_AT_ONCE, 2 * MAX_AT_ONCE} and received[-1] == [b"a", b"b"]
        inbox.close()

    with pair() as sockets:
        asyncio.run(scenario(*sockets))


def test_nothing_is_received_once_it_is_closed() -> None:
    async def scenario(here: zmq.Socket[bytes], there: zmq.Socket[bytes]) -> None:
        received: list[list[bytes]] = []

        def receive(frames: list[bytes]) -> None:
            received.append(frames)
            inbox.close()

        inbox = Inbox(here, receive)
        for _ in range(3):
            there.send(b"")
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert len(received) == 1
        inbox.close()

    with pair() as sockets:
        asyncio.run(scenario(*sockets))
