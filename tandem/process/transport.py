"""Messages between the front process and the engine's loop, and the sockets they travel on.

ZeroMQ PUSH/PULL pairs on Unix sockets in a directory that only its owner may enter; frames are msgpack, decoded into
the types below and nothing else. The engine's loop pulls ``ToEngine`` and pushes ``FromEngine``.
"""

from __future__ import annotations

from typing import Any

import msgspec
import zmq

from tandem.config import EngineConfig
from tandem.engine import EngineInfo, EngineOutput, EngineRequest, EngineStats


class Start(msgspec.Struct, frozen=True):
    """What a worker is started with; the addresses are the front's, already bound."""

    config: EngineConfig
    requests_address: str
    outputs_address: str


class AddRequests(msgspec.Struct, frozen=True, tag="add"):
    """Requests that passed admission."""

    requests: list[EngineRequest]


class AbortRequests(msgspec.Struct, frozen=True, tag="abort"):
    """Requests nobody waits for any more."""

    request_ids: list[str]


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Close the engine and end."""


class Heartbeat(msgspec.Struct, frozen=True, tag="beat"):
    """The engine's process is alive; for ``step_seconds`` it has been within the same step (0 between steps)."""

    step_seconds: float


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """A share in [0, 1] of the weights has been read."""

    fraction: float


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The engine is built."""

    info: EngineInfo


class StepDone(msgspec.Struct, frozen=True, tag="step"):
    """All that one step produced, in one message."""

    outputs: list[EngineOutput]
    stats: EngineStats


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The engine cannot be built, or its loop has broken; the last message."""

    message: str


ToEngine = AddRequests | AbortRequests | Shutdown
FromEngine = Heartbeat | Loading | Ready | StepDone | Failed

encode = msgspec.msgpack.Encoder().encode
decode_start = msgspec.msgpack.Decoder(Start).decode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode


def open_socket(context: zmq.Context[Any], kind: int, address: str, bind: bool) -> Any:
    """A socket that never blocks its sender and never delays its closing."""
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    if bind:
        socket.bind(address)
    else:
        socket.connect(address)
    return socket
