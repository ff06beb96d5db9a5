"""Administrative calls: by name, between steps, with the engine's errors as they were."""

from __future__ import annotations

import asyncio
import time

import pytest

from tandem.errors import (
    CheckpointError,
    ConfigError,
    ContextLengthError,
    EngineDeadError,
    EngineError,
    EngineLoadingError,
    EngineStalledError,
    RequestError,
    TandemError,
)
from tandem.process.messages import METHODS, Call, Failure, FrameError, Method, Sleep, decoder, encode
from tests.process.helpers import connected, eventually, finish, request, running, supervised, works
from tests.process.test_frames import raw

pytestmark = pytest.mark.usefixtures("stub")


def test_calls_reach_the_engine_and_are_answered() -> None:
    async def scenario() -> None:
        async with running() as (_, client):
            stream = client.submit([request(max_tokens=200)])
            await stream.next()
            await client.call("reset_prefix_cache")
            await eventually(lambda: client.stats.num_prefix_queries == 1)
            await client.call("sleep", 1)
            await eventually(lambda: client.stats.is_asleep)
            assert client.num_unfinished == 1
            await client.call("wake_up")
            assert (await finish(stream))[-1].finish_reason == "length"
            await client.call("replace_weights", "elsewhere")

    asyncio.run(scenario())


def test_a_server_without_a_directory_for_profiles_takes_none() -> None:
    async def scenario() -> None:
        async with running() as (_, client):
            for method in ("start_profile", "stop_profile"):
                with pytest.raises(RequestError):
                    await client.call(method)
            assert await works(client)

    asyncio.run(scenario())


def test_an_engines_error_comes_back_as_it_was_raised() -> None:
    async def scenario() -> None:
        async with running() as (supervisor, client):
            with pytest.raises(ConfigError, match="^level: must be 1 or 2$") as failure:
                await client.call("sleep", 3)
            assert failure.value.option == "level"
            await client.call("sleep", 2)
            with pytest.raises(CheckpointError, match="^the weights are gone$"):
                await client.call("wake_up")
            assert supervisor.status.state == client.status.state == "ready"

    asyncio.run(scenario())


def test_an_error_that_no_call_may_raise_has_broken_the_engine() -> None:
    async def scenario() -> None:
        async with running() as (_, client):
            with pytest.raises(EngineError, match="planted in a call"):
                await client.call("replace_weights", "breaks")
            await eventually(lambda: client.status.state == "restarting")
            await eventually(lambda: client.status.state == "ready", 10)
            assert await works(client)

    asyncio.run(scenario())


def test_nobody_waits_longer_than_the_timeout() -> None:
    async def scenario() -> None:
        async with running() as (_, client):
            began = time.monotonic()
            with pytest.raises(EngineStalledError, match=r"has not answered replace_weights within 0.2 s"):
                await client.call("replace_weights", "slow", timeout=0.2)
            assert time.monotonic() - began < 0.9
            assert await works(client), "the late answer disturbs nobody"

    asyncio.run(scenario())


def test_only_the_named_methods_can_be_called() -> None:
    assert list(METHODS) == [
        "reset_prefix_cache", "sleep", "wake_up", "replace_weights", "start_profile", "stop_profile"
    ]  # fmt: skip

    async def scenario() -> None:
        async with supervised() as supervisor:
            async with connected(supervisor, wait=False) as client:
                with pytest.raises(EngineLoadingError):
                    await client.call("sleep")
                await client.wait_ready()
                for method in ("close", "step", "__init__", "abort"):
                    with pytest.raises(ValueError, match="is not one of"):
                        await client.call(method)
                with pytest.raises(TypeError):
                    await client.call("sleep", 1, 2)
            with pytest.raises(EngineDeadError):
                await client.call("sleep")
            async with raw(supervisor.endpoint) as sender:
                for number, body in enumerate(({"type": "close"}, {"type": "sleep", "level": "all"}, []), 1):
                    await sender.send(Call(1, number, f"c{number}"), body)
                    reply, failure = await asyncio.wait_for(sender.socket.recv_multipart(), 5)
                    assert reply and decoder(Failure)(failure).kind == "FrameError"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("--dtype", "is odd"),
        CheckpointError("is gone"),
        RequestError("is wrong", "top_p", "odd"),
        ContextLengthError("is long", "prompt"),
        EngineError("is unwell"),
    ],
)
def test_every_error_survives_the_journey(error: TandemError) -> None:
    arrived = decoder(Failure)(encode(Failure.of(error))).error
    assert type(arrived) is type(error) and str(arrived) == str(error)
    assert vars(arrived) == vars(error)


def test_a_foreign_error_becomes_an_engine_error_in_one_line() -> None:
    arrived = Failure.of(OSError("two\nlines")).error
    assert type(arrived) is EngineError and str(arrived) == "OSError: two lines"
    assert decoder(Method)(encode(Sleep(2))) == Sleep(2)
    with pytest.raises(FrameError):
        decoder(Method)(b"")
