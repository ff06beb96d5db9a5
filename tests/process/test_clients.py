"""Several clients of one engine: each gets its own, and one that disappears leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from tandem.errors import ConfigError, EngineDeadError, EngineDisconnectedError
from tandem.process.messages import Hello, encode
from tandem.process.transport import Endpoint, connect, listen
from tests.process.helpers import connected, eventually, finish, free_tcp_address, request, running, supervised, works

pytestmark = pytest.mark.usefixtures("stub")

OTHER_FRONT = """
import asyncio, msgspec, sys
from tandem.process.client import EngineClient
from tandem.process.transport import Endpoint
from tests.process.helpers import request

async def main():
    client = EngineClient(msgspec.json.decode(sys.argv[1], type=Endpoint))
    await client.start()
    await client.wait_ready()
    streams = [client.submit([request(max_tokens=4000)]) for _ in range(4)]
    for stream in streams:
        await stream.next()
    print("begun", flush=True)
    try:
        while True:
            await streams[0].next()
    except Exception as error:
        print(type(error).__name__, error, flush=True)
        while client.status.state != "ready":
            await asyncio.sleep(0.01)
        print(len(await (stream := client.submit([request(max_tokens=1)])).next()), flush=True)

asyncio.run(main())
"""


def other_front(endpoint: Endpoint) -> subprocess.Popen[str]:
    """Another process with four open requests."""
    command = [sys.executable, "-c", OTHER_FRONT, msgspec.json.encode(endpoint).decode()]
    front = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert front.stdout is not None and front.stdout.readline() == "begun\n"
    return front


def test_two_clients_may_use_the_same_ids() -> None:
    async def scenario() -> None:
        async with running() as (supervisor, one), connected(supervisor) as other:
            assert one.identity != other.identity
            ids = [f"same-{i}" for i in range(5)]
            theirs = [request(max_tokens=40, request_id=i, prompt=[1] * 7) for i in ids]
            ours = [request(max_tokens=40, request_id=i, prompt=[1] * 9) for i in ids]
            streams = one.submit(ours), other.submit(theirs)
            for stream, token in zip(streams, (9, 7), strict=True):
                outputs = await finish(stream)
                assert len(outputs) == 200 and {output.request_id for output in outputs} == set(ids)
                assert {t for output in outputs for t in output.new_token_ids} == {token}

    asyncio.run(scenario())


def test_an_abort_and_a_leave_touch_only_ones_own() -> None:
    async def scenario() -> None:
        async with running() as (supervisor, one):
            async with connected(supervisor) as other:
                mine = one.submit([request(max_tokens=1000, request_id="x")])
                yours = other.submit([request(max_tokens=1000, request_id="x")])
                third = other.submit([request(max_tokens=4000)])
                await asyncio.gather(mine.next(), yours.next(), third.next())
                yours.abort()
                await eventually(lambda: other.stats.num_running == 2)
            await eventually(lambda: one.stats.num_running == 1)
            assert (await finish(mine))[-1].finish_reason == "length"

    asyncio.run(scenario())


def test_a_front_that_is_killed_has_its_requests_dropped() -> None:
    async def scenario() -> None:
        async with running() as (supervisor, client):
            stream = client.submit([request(max_tokens=1000)])
            await stream.next()
            front = await asyncio.to_thread(other_front, supervisor.endpoint)
            await eventually(lambda: client.stats.num_running == 5)
            front.kill()
            seconds = await eventually(lambda: client.stats.num_running == 1)
            print(f"front killed: its requests are dropped after {seconds:.3f} s")
            assert seconds < 2
            front.wait()
            assert (await finish(stream))[-1].finish_reason == "length"

    asyncio.run(scenario())


def test_waiting_requests_of_a_killed_front_are_dropped_too() -> None:
    async def scenario() -> None:
        async with running() as (supervisor, client):
            front = await asyncio.to_thread(other_front, supervisor.endpoint)
            await client.call("sleep")  # no step will try to send it anything
            await eventually(lambda: client.stats.num_running == 4)
            front.kill()
            seconds = await eventually(lambda: client.stats.num_running == 0)
            print(f"front killed while the engine sleeps: dropped after {seconds:.3f} s")
            front.wait()

    asyncio.run(scenario())


def test_a_front_that_stops_for_long_is_given_up_and_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tandem.process.transport.PEER_CHECK_MS", 300)
    monkeypatch.setattr("tandem.process.transport.PEER_SILENCE_MS", 900)

    async def scenario() -> None:
        async with running(in_process=True) as (supervisor, client):
            front = await asyncio.to_thread(other_front, supervisor.endpoint)
            await eventually(lambda: client.stats.num_running == 4)
            os.kill(front.pid, signal.SIGSTOP)
            await eventually(lambda: client.stats.num_running == 0, 6)
            os.kill(front.pid, signal.SIGCONT)
            output, _ = await asyncio.to_thread(front.communicate, timeout=20)
            assert output.splitlines()[0].startswith("EngineDisconnectedError the connection to the engine")
            assert output.splitlines()[1] == "1", "the next request works"

    asyncio.run(scenario())


def test_a_client_without_a_supervisor_finds_the_next_engine() -> None:
    async def scenario() -> None:
        async with running() as (supervisor, client), connected(supervisor.endpoint) as other:
            stream = other.submit([request(max_tokens=4000)])
            await stream.next()
            assert supervisor.process_id is not None
            began = time.monotonic()
            os.kill(supervisor.process_id, signal.SIGKILL)
            with pytest.raises(EngineDisconnectedError, match="the connection to the engine"):
                await finish(stream)
            assert time.monotonic() - began < 2
            await eventually(lambda: client.status.state == other.status.state == "ready", 10)
            assert await works(other) and await works(client)

    asyncio.run(scenario())


def test_a_client_without_a_supervisor_hears_of_its_engines_death_at_once() -> None:
    async def scenario() -> None:
        async with running(max_restarts=0) as (supervisor, _), connected(supervisor.endpoint) as other:
            stream = other.submit([request(max_tokens=4000)])
            await stream.next()
            assert supervisor.process_id is not None
            began = time.monotonic()
            os.kill(supervisor.process_id, signal.SIGKILL)
            with pytest.raises(EngineDisconnectedError, match="the connection to the engine was lost"):
                await finish(stream)
            print(f"SIGKILL: a client elsewhere knows after {time.monotonic() - began:.3f} s")
            assert time.monotonic() - began < 1.4
            assert other.status.state == "unhealthy"

    asyncio.run(scenario())


def test_over_tcp_with_the_secret() -> None:
    async def scenario() -> None:
        async with running(address=free_tcp_address()) as (supervisor, client):
            assert supervisor.endpoint.directory is None and len(supervisor.endpoint.secret) == 64
            async with connected(supervisor.endpoint) as other:
                assert await works(client) and await works(other)
            assert supervisor.process_id is not None
            os.kill(supervisor.process_id, signal.SIGKILL)
            await eventually(lambda: client.status.state == "restarting")
            await eventually(lambda: client.status.state == "ready", 10)
            assert await works(client)

    asyncio.run(scenario())


def test_over_tcp_without_the_secret_nothing_is_said_or_heard() -> None:
    async def attempt(where: Endpoint, secret: str) -> tuple[int, int]:
        """How many frames come back, on both addresses."""
        with zmq.asyncio.Context() as context:
            dealer = connect(context, zmq.DEALER, where.requests, secret, "intruder")
            heartbeats = connect(context, zmq.SUB, where.heartbeats, secret)
            await dealer.send(encode(Hello(1, 0)))
            heard = await dealer.poll(1500), await heartbeats.poll(500)
            dealer.close()
            heartbeats.close()
        return heard

    async def scenario() -> None:
        async with running(address=free_tcp_address()) as (supervisor, client):
            where = supervisor.endpoint
            for secret in ("", "0" * 64, where.secret[:-1] + "x"):
                assert await attempt(where, secret) == (0, 0)
            assert await attempt(where, where.secret) == (zmq.POLLIN, zmq.POLLIN), "the attempt itself is sound"
            assert await works(client)

    asyncio.run(scenario())


@pytest.mark.parametrize("secret", ["", "short"])
def test_tcp_without_a_secret_is_impossible(secret: str) -> None:
    with pytest.raises(ConfigError, match="secret"):
        Endpoint(requests="tcp://127.0.0.1:5555", heartbeats="tcp://127.0.0.1:5556", secret=secret)
    with pytest.raises(ConfigError, match="secret"):
        msgspec.json.decode(b'{"requests": "ipc://a", "heartbeats": "tcp://b:1"}', type=Endpoint)
    with zmq.Context() as context, pytest.raises(ConfigError, match="secret"):
        listen(context, zmq.ROUTER, "tcp://127.0.0.1:5555", secret)


def test_a_busy_port_is_told_in_one_line(capfd: Any) -> None:
    async def scenario() -> None:
        address = free_tcp_address()
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", int(address.rpartition(":")[2])))
            holder.listen()
            async with supervised(address=address) as supervisor:
                why = await asyncio.wait_for(supervisor.wait_dead(), 10)
        assert why == f"--engine-address: cannot listen on {address}: Address already in use"

    asyncio.run(scenario())
    assert "Traceback" not in capfd.readouterr().err


def test_a_client_that_is_closed_says_so() -> None:
    async def scenario() -> None:
        async with running() as (_, client):
            stream = client.submit([request(max_tokens=4000)])
            await client.close()
            await client.close()
            with pytest.raises(EngineDeadError, match="shutting down"):
                await stream.next()
            with pytest.raises(EngineDeadError):
                client.submit([request()])
            stream.abort()

    asyncio.run(scenario())
