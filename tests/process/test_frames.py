"""Frames that are lost, repeated or garbled: noticed, told, and over with the requests they were about."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import zmq
import zmq.asyncio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tandem import SamplingParams
from tandem.engine import EngineOutput, EngineStats
from tandem.errors import EngineDisconnectedError, EngineError, EngineStalledError
from tandem.process.client import EngineClient
from tandem.process.messages import (
    Abort,
    Add,
    Broken,
    Bye,
    Call,
    FromEngine,
    Heartbeat,
    Hello,
    Probe,
    ReplaceWeights,
    Reply,
    Step,
    StepBody,
    ToEngine,
    Welcome,
    decoder,
    encode,
)
from tandem.process.submission import Choice, Prompt, Shared, pack
from tandem.process.supervisor import Supervisor
from tandem.process.transport import Endpoint, connect, listen
from tests.process.helpers import connected, eventually, finish, request, running, works
from tests.process.stub import CONTEXT, INFO, VOCABULARY

pytestmark = pytest.mark.usefixtures("stub")

from_engine: Callable[[bytes], FromEngine] = decoder(FromEngine)
to_engine: Callable[[bytes], ToEngine] = decoder(ToEngine)
step_body: Callable[[bytes], StepBody] = decoder(StepBody)


class RawClient:
    """Sends any frames to an engine."""

    def __init__(self, context: zmq.asyncio.Context, endpoint: Endpoint, identity: str = "raw") -> None:
        self.socket = connect(context, zmq.DEALER, endpoint.requests, endpoint.secret, identity)

    async def send(self, *frames: Any) -> None:
        await self.socket.send_multipart([f if isinstance(f, bytes) else encode(f) for f in frames])

    async def receive(self, kind: type, seconds: float = 5) -> Any:
        """The next message of a kind, others left out; with its outputs if it is a step that has some."""
        while True:
            header, *bodies = await asyncio.wait_for(self.socket.recv_multipart(), seconds)
            message = from_engine(header)
            if isinstance(message, kind) and not (isinstance(message, Step) and not message.request_ids):
                return (message, step_body(bodies[0]).outputs) if isinstance(message, Step) else message


@contextlib.asynccontextmanager
async def raw(endpoint: Endpoint, identity: str = "raw") -> AsyncIterator[RawClient]:
    with zmq.asyncio.Context() as context:
        client = RawClient(context, endpoint, identity)
        await client.send(Hello(1, 0))
        await client.receive(Welcome)
        yield client
        client.socket.close()


def submission(*requests: Any) -> tuple[int, list[list[str]], list[bytes]]:
    packed = pack(requests)
    return len(packed.shared), packed.request_ids, [*packed.shared, *packed.prompts]


# ---------------------------------------------------------------------- at the engine's end


def test_a_garbled_body_fails_its_requests_and_no_others() -> None:
    async def scenario() -> None:
        async with running(in_process=True) as (supervisor, client), raw(supervisor.endpoint) as sender:
            good, bad, worse = (request(max_tokens=2, prompt=[i + 1] * 3) for i in range(3))
            num_shared, ids, bodies = submission(good, bad, worse)
            assert num_shared == 3 and len(bodies) == 6
            bodies[4] = b"\xc1" + bodies[4]
            bodies[2] = b""
            await sender.send(Add(1, 1, num_shared, ids), *bodies)
            outputs = []
            while len(outputs) < 4:
                outputs += (await sender.receive(Step))[1]
            ended = {output.request_id: output for output in outputs if output.finish_reason}
            assert ended[good.request_id].finish_reason == "length"
            for culprit in (bad, worse):
                assert ended[culprit.request_id].finish_reason == "error"
                assert "could not take the request" in (ended[culprit.request_id].error or "")
            assert await works(client)

    asyncio.run(scenario())


SAMPLING = SamplingParams()
IDS = b"\x01\0\0\0\x02\0\0\0"


@pytest.mark.parametrize(
    ("shared", "prompt"),
    [
        (Shared(SAMPLING, (), ()), Prompt(b"", [Choice(0, 0, 1, 1, 0)], 0, "", "")),
        (Shared(SAMPLING, (), ()), Prompt(IDS[:-1], [Choice(0, 0, 1, 1, 0)], 0, "", "")),
        (Shared(SAMPLING, (), ()), Prompt(b"\xff" * 8, [Choice(0, 0, 1, 1, 0)], 0, "", "")),
        (Shared(SAMPLING, (), ()), Prompt(IDS, [Choice(1, 0, 1, 1, 0)], 0, "", "")),
        (Shared(SAMPLING, (), ()), Prompt(IDS, [Choice(-1, 0, 1, 1, 0)], 0, "", "")),
        (Shared(SAMPLING, (), ()), Prompt(IDS, [Choice(0, 0, 2**64 - 1, -1, 0)], 0, "", "")),
        (Shared(SAMPLING, (), ()), Prompt(IDS, [Choice(0, 0, -1, 1, 0)], 0, "", "")),
        (Shared(SAMPLING, (), ()), Prompt(IDS, [Choice(0, -1, 1, 1, 0)], 0, "", "")),
        (Shared(SAMPLING, (), ()), Prompt(IDS, [Choice(0, 0, 1, CONTEXT - 1, 0)], 0, "", "")),
        (Shared(SAMPLING, (), ()), Prompt(IDS, [], 0, "", "")),
        (Shared(SAMPLING, (VOCABULARY,), ()), Prompt(IDS, [Choice(0, 0, 1, 1, 0)], 0, "", "")),
        (Shared(SAMPLING, (), ((1, -1),)), Prompt(IDS, [Choice(0, 0, 1, 1, 0)], 0, "", "")),
        (Shared(SAMPLING, (), ((),)), Prompt(IDS, [Choice(0, 0, 1, 1, 0)], 0, "", "")),
        (
            Shared(SamplingParams(allowed_token_ids=[VOCABULARY]), (), ()),
            Prompt(IDS, [Choice(0, 0, 1, 1, 0)], 0, "", ""),
        ),
        (
            Shared(SamplingParams(logit_bias={2**40: 1.0}), (), ()),
            Prompt(IDS, [Choice(0, 0, 1, 1, 0)], 0, "", ""),
        ),
        ([{"top_p": 3}, [], []], Prompt(IDS, [Choice(0, 0, 1, 1, 0)], 0, "", "")),
    ],
)
def test_what_no_admission_lets_through_never_reaches_the_engine(shared: Any, prompt: Any) -> None:
    async def scenario() -> None:
        async with running(in_process=True) as (supervisor, client), raw(supervisor.endpoint) as sender:
            await sender.send(Add(1, 1, 1, [["a"]]), shared, prompt)
            _, [output] = await sender.receive(Step)
            assert (output.request_id, output.finish_reason) == ("a", "error")
            assert output.error and "\n" not in output.error
            assert await works(client)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (Abort(1, 5, ["x"]), "lost frames 2 to 4"),
        (Abort(1, 3, ["x"]), "lost frame 2"),
        (Abort(1, 1, ["x"]), "brought frame 1 again"),
        (Hello(2, 0), ""),
        (b"\xc1 nonsense", "sent a frame that cannot be read"),
        (b"", "sent a frame that cannot be read"),
    ],
)
def test_a_jump_in_the_numbering_ends_the_session_and_its_requests(header: Any, reason: str) -> None:
    async def scenario() -> None:
        async with running(in_process=True) as (supervisor, client), raw(supervisor.endpoint) as sender:
            num_shared, ids, bodies = submission(request(max_tokens=4000))
            await sender.send(Add(1, 1, num_shared, ids), *bodies)
            await sender.receive(Step)
            neighbour = client.submit([request(max_tokens=100)])
            await sender.send(header)
            if reason:
                broken = await sender.receive(Broken)
                assert (broken.session, broken.reason) == (1, reason)
                await sender.send(Add(1, 2, num_shared, ids), *bodies)  # on its way while the word came
                assert (await sender.receive(Broken)).session == 1
                await sender.send(Hello(2, 0))
            assert (await sender.receive(Welcome)).session == 2
            assert (await finish(neighbour))[-1].finish_reason == "length"
            await eventually(lambda: client.stats.num_running == 0)
            num_shared, ids, bodies = submission(request(max_tokens=1))
            await sender.send(Add(2, 1, num_shared, ids), *bodies)
            assert (await sender.receive(Step))[1][0].finish_reason == "length"
            assert await works(client)

    asyncio.run(scenario())


headers = st.one_of(
    st.builds(Hello, st.integers(-2, 3), st.integers(-2, 3)),
    st.builds(
        Add,
        st.just(1),
        st.integers(0, 3),
        st.integers(-1, 3),
        st.lists(st.lists(st.sampled_from("abc"), max_size=3), max_size=3),
    ),
    st.builds(Abort, st.just(1), st.integers(0, 3), st.lists(st.sampled_from("abc"), max_size=2)),
    st.builds(Call, st.just(1), st.integers(0, 3), st.text(max_size=3)),
    st.builds(Probe, st.just(1), st.integers(0, 3)),
    st.builds(Bye, st.just(1), st.integers(0, 3)),
).map(encode)
bodies = st.one_of(
    st.builds(
        Prompt,
        st.binary(max_size=9),
        st.lists(st.builds(Choice, *[st.integers(-1, 2)] * 4, st.floats()), max_size=3),
        st.integers(-2, 2),
        st.sampled_from(["", "salt"]),
        st.text(max_size=2),
    ).map(encode),
    st.builds(Shared, st.builds(SamplingParams, n=st.integers(1, 3)), st.just(()), st.just(())).map(encode),
    st.just(encode(ReplaceWeights("x"))),
)


@st.composite
def mutated(draw: st.DrawFn, good: st.SearchStrategy[bytes]) -> bytes:
    """Mostly what could have been sent, sometimes with another byte, cut short, or anything."""
    frame = draw(good | st.binary(max_size=30))
    if frame and draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(frame) - 1))
        frame = frame[:at] + draw(st.binary(max_size=2)) + frame[at + 1 :]
    return frame


messages = st.lists(
    st.tuples(mutated(headers), st.lists(mutated(bodies), max_size=4)).map(lambda m: [m[0], *m[1]]), max_size=12
)


def test_no_frames_whatsoever_harm_the_engine_or_its_other_clients() -> None:
    async def scenario(supervisor: Supervisor, client: EngineClient, sent: list[list[bytes]]) -> None:
        stream = client.submit([request(max_tokens=20)])
        async with raw(supervisor.endpoint, f"fuzz{len(sent)}") as sender:
            for frames in sent:
                await sender.send(*frames)
            await sender.send(Hello(9, 0))
            assert (await sender.receive(Welcome)).session in range(-(2**63), 2**64)
        assert (await finish(stream))[-1].finish_reason == "length"
        assert client.status.state == "ready" and supervisor.status.state == "ready"

    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        supervisor, client = runner.run(stack.enter_async_context(running(in_process=True, max_restarts=0)))

        @settings(max_examples=200)
        @given(messages)
        def any_frames(sent: list[list[bytes]]) -> None:
            runner.run(scenario(supervisor, client, sent))

        any_frames()
        assert runner.run(works(client))
        runner.run(stack.aclose())


# ---------------------------------------------------------------------- at the client's end


class FakeEngine:
    """An engine's end that says what it is told to."""

    def __init__(self, context: zmq.asyncio.Context, endpoint: Endpoint) -> None:
        self.socket = listen(context, zmq.ROUTER, endpoint.requests, "")
        self.heartbeats = listen(context, zmq.PUB, endpoint.heartbeats, "")
        self.client = b""

    async def receive(self, kind: type) -> Any:
        """The next message of a kind, others left out."""
        while True:
            self.client, header, *_ = await asyncio.wait_for(self.socket.recv_multipart(), 5)
            message = to_engine(header)
            if isinstance(message, kind):
                return message

    async def send(self, *frames: Any) -> None:
        await self.socket.send_multipart([self.client, *(f if isinstance(f, bytes) else encode(f) for f in frames)])

    async def heartbeat(self) -> None:
        while True:
            await self.heartbeats.send(encode(Heartbeat(1, 1.0, True, 0.0, EngineStats())))
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def faked() -> AsyncIterator[tuple[FakeEngine, EngineClient]]:
    """A client that has been welcomed by a fake engine."""
    with tempfile.TemporaryDirectory() as directory, zmq.asyncio.Context() as context:
        endpoint = Endpoint.in_directory(Path(directory))
        engine = FakeEngine(context, endpoint)
        beating = asyncio.create_task(engine.heartbeat())
        try:
            async with connected(endpoint, wait=False) as client:
                hello = await engine.receive(Hello)
                await engine.send(Welcome(hello.session, 0, 1), INFO)
                await client.wait_ready()
                yield engine, client
        finally:  # the context waits for its sockets
            beating.cancel()
            engine.socket.close()
            engine.heartbeats.close()


def step(session: int, sequence: int, *request_ids: str, finish_reason: Any = None) -> tuple[Step, StepBody]:
    outputs = [EngineOutput(request_id, [7], finish_reason=finish_reason) for request_id in request_ids]
    return Step(session, sequence, list(request_ids)), StepBody(outputs, EngineStats())


def test_an_output_that_cannot_be_read_fails_its_requests_and_no_others() -> None:
    async def scenario() -> None:
        async with faked() as (engine, client):
            streams = {i: client.submit([request(request_id=i)]) for i in "abc"}
            await engine.receive(Add)
            await engine.send(step(1, 1, "a", "b")[0], b"\xc1 nonsense")
            for i in "ab":
                [output] = await finish(streams[i])
                assert output.finish_reason == "error" and "cannot be read" in (output.error or "")
            assert (await engine.receive(Abort)).request_ids == ["a", "b"], "the engine need not go on with them"
            await engine.send(*step(1, 2, "c", finish_reason="stop"))
            [output] = await finish(streams["c"])
            assert output.finish_reason == "stop" and client.num_unfinished == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (step(1, 3, "a"), "lost frames 1 to 2"),
        (step(1, 0, "a"), "brought frame 0 again"),
        ((b"\xc1 nonsense",), "sent a frame that cannot be read"),
        ((b"",), "sent a frame that cannot be read"),
        ((Broken(1, 0, "lost frame 5"),), "lost frame 5"),
    ],
)
def test_a_jump_in_the_engines_numbering_fails_what_is_open_and_the_next_request_works(
    frames: tuple[Any, ...], reason: str
) -> None:
    async def scenario() -> None:
        async with faked() as (engine, client):
            stream = client.submit([request(request_id="a")])
            call = asyncio.create_task(client.call("wake_up"))
            await engine.receive(Call)
            await engine.send(*frames)
            with pytest.raises(EngineDisconnectedError, match=f"the connection to the engine {reason}; its open"):
                await finish(stream)
            with pytest.raises(EngineDisconnectedError):
                await call
            assert client.status.state == "ready" and client.num_unfinished == 0
            stream = client.submit([request(request_id="b")])
            hello = await engine.receive(Hello)
            added = await engine.receive(Add)
            assert (hello.session, added.session, added.sequence) == (2, 2, 1)
            await engine.send(*step(1, 1, "b", finish_reason="stop"))  # of the session before
            await engine.send(Welcome(2, 0, 1), INFO)
            await engine.send(*step(2, 1, "b"))
            await engine.send(*step(2, 2, "b", finish_reason="stop"))
            assert len(await finish(stream)) == 2

    asyncio.run(scenario())


@given(st.lists(st.tuples(mutated(st.just(encode(Reply(1, 1, "0")))), st.lists(st.binary(max_size=20), max_size=2))))
@settings(max_examples=50)
def test_no_frames_whatsoever_harm_a_client(sent: list[tuple[bytes, list[bytes]]]) -> None:
    async def answer(engine: FakeEngine) -> None:
        while True:
            added = await engine.receive(Add)
            await engine.send(Welcome(added.session, 0, 1), INFO)
            await engine.send(*step(added.session, 1, *added.request_ids[0], finish_reason="stop"))

    async def scenario() -> None:
        async with faked() as (engine, client):
            stream = client.submit([request(request_id="a")])
            await engine.receive(Add)
            for header, bodies in sent:
                await engine.send(header, *bodies)
            await engine.send(Broken(2**40, 0, "is over"))  # of no session of ours
            await engine.send(Broken(1, 0, "is over"))
            with pytest.raises(EngineError):
                await finish(stream)
            answering = asyncio.create_task(answer(engine))
            for _ in range(len(sent) + 1):  # each of the frames may end a session, but only one
                with contextlib.suppress(EngineDisconnectedError):
                    assert len(await finish(client.submit([request(max_tokens=1)]))) == 1
                    break
            else:
                pytest.fail("no request works any more")
            answering.cancel()

    asyncio.run(scenario())


def test_a_submission_that_cannot_be_encoded_fails_alone() -> None:
    async def scenario() -> None:
        async with running(in_process=True) as (_, client):
            stream = client.submit([request(prompt=[2**32]), request(eos_token_ids=(2**70,)), request(max_tokens=1)])
            outputs = await finish(stream)
            assert sorted(str(output.finish_reason) for output in outputs) == ["error", "error", "length"]
            assert await works(client)

    asyncio.run(scenario())


# ---------------------------------------------------------------------- between them

Fault = Literal["drop", "repeat", "garble header", "garble body"]


class Relay:
    """Stands between a client and an engine and spoils some of what passes."""

    def __init__(self, context: zmq.asyncio.Context, engine: Endpoint, here: Endpoint, faults: dict[int, Fault]):
        self._front = listen(context, zmq.ROUTER, here.requests, "")
        self._back = connect(context, zmq.DEALER, engine.requests, "", "relayed")
        self._client = b""
        self._faults = faults
        self._count = 0
        self.num_spoilt = 0

    async def run(self) -> None:
        await asyncio.gather(self._forward(), self._backward())

    def close(self) -> None:
        self._front.close()
        self._back.close()

    async def _forward(self) -> None:
        while True:
            self._client, *frames = await self._front.recv_multipart()
            for message in self._spoil(frames):
                await self._back.send_multipart(message)

    async def _backward(self) -> None:
        while True:
            for message in self._spoil(await self._back.recv_multipart()):
                await self._front.send_multipart([self._client, *message])

    def _spoil(self, frames: list[bytes]) -> list[list[bytes]]:
        fault = self._faults.get(self._count)
        self._count += 1
        self.num_spoilt += fault is not None
        match fault:
            case "drop":
                return []
            case "repeat":
                return [frames, frames]
            case "garble header":
                return [[b"\xc1", *frames[1:]]]
            case "garble body":
                return [[*frames[:-1], b"\xc1"]]
        return [frames]


@given(
    st.dictionaries(
        st.integers(0, 14), st.sampled_from(["drop", "repeat", "garble header", "garble body"]), max_size=3
    )
)
@example({1: "drop", 3: "repeat", 6: "drop"})  # a greeting after the first
@settings(max_examples=25)
def test_whatever_is_lost_on_the_way_no_request_hangs_and_the_next_one_works(faults: dict[int, Fault]) -> None:
    async def attempt(client: EngineClient) -> bool:
        """Whether all three answers were right; they may fail, but not otherwise be wrong."""
        try:
            streams = [client.submit([request(max_tokens=4, prompt=[1] * n)]) for n in (1, 2, 3)]
            answers = [await finish(stream) for stream in streams]
        except (EngineDisconnectedError, EngineStalledError):
            return False
        if any(outputs[-1].finish_reason == "error" for outputs in answers):
            return False
        assert [[t for o in outputs for t in o.new_token_ids] for outputs in answers] == [[n] * 4 for n in (1, 2, 3)]
        return True

    async def scenario() -> None:
        async with running(in_process=True, max_restarts=0) as (supervisor, _):
            with tempfile.TemporaryDirectory() as directory, zmq.asyncio.Context() as context:
                here = Endpoint(requests=f"ipc://{directory}/requests", heartbeats=supervisor.endpoint.heartbeats)
                relay = Relay(context, supervisor.endpoint, here, faults)
                passing = asyncio.create_task(relay.run())
                try:
                    async with connected(here) as client:
                        succeeded = [await attempt(client) for _ in range(6)]
                        assert succeeded[-1], "in step again"
                        assert client.num_unfinished == 0
                        assert all(succeeded) or relay.num_spoilt
                        await eventually(lambda: client.stats.num_running == 0)
                finally:  # the context waits for its sockets
                    passing.cancel()
                    relay.close()

    asyncio.run(scenario())
