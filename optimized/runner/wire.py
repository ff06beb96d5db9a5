"""What travels between an engine and a runner in another process: msgpack frames over a socket."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import TypeVar

import msgspec
import torch

from optimized.runner.runner import RunnerInfo
from optimized.scheduling.plan import Plan, RowResult
from tandem.config import EngineConfig
from tandem.errors import CheckpointError, ConfigError

_HEADER = struct.Struct("<Q")  # bytes of the frame behind it


class Build(msgspec.Struct, frozen=True, tag=True):
    config: EngineConfig


class Submit(msgspec.Struct, frozen=True, tag=True):
    plan: Plan


class Collect(msgspec.Struct, frozen=True, tag=True):
    """Answered by ``Results``."""


class Call(msgspec.Struct, frozen=True, tag=True):
    """One of ``reset``, ``sleep``, ``wake_up``, ``replace_weights`` and ``trace``; answered by ``Done``."""

    method: str
    arguments: list[int | str | list[int]] = []


class Progress(msgspec.Struct, frozen=True, tag=True):
    share: float


class Built(msgspec.Struct, frozen=True, tag=True):
    info: RunnerInfo


class Results(msgspec.Struct, frozen=True, tag=True):
    rows: list[RowResult]


class Array(msgspec.Struct, frozen=True):
    """A float32 tensor."""

    shape: list[int]
    values: bytes

    @classmethod
    def of(cls, x: torch.Tensor) -> Array:
        return cls(list(x.shape), x.contiguous().numpy().tobytes())

    def tensor(self) -> torch.Tensor:
        return torch.frombuffer(bytearray(self.values), dtype=torch.float32).view(self.shape)


class Done(msgspec.Struct, frozen=True, tag=True):
    arrays: list[Array] = []


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The call raised.

    Attributes:
        kind: name of the error's class.
        message: its text.
        option: of a ``ConfigError``.
    """

    kind: str
    message: str
    option: str = ""

    @classmethod
    def of(cls, error: Exception) -> Failed:
        if isinstance(error, ConfigError):
            return cls("ConfigError", str(error).removeprefix(f"{error.option}: "), error.option)
        return cls(type(error).__name__, str(error))

    def error(self) -> Exception:
        if self.kind == "ConfigError":
            return ConfigError(self.option, self.message)
        if self.kind == "CheckpointError":
            return CheckpointError(self.message)
        return RuntimeError(f"{self.kind}: {self.message}")


Request = Build | Submit | Collect | Call
Reply = Progress | Built | Results | Done | Failed
T = TypeVar("T")
_encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_reply = msgspec.msgpack.Decoder(Reply).decode


def send(channel: socket.socket, message: Request | Reply) -> None:
    body = _encode(message)
    channel.sendall(_HEADER.pack(len(body)) + body)


def receive(channel: socket.socket, decode: Callable[[bytes], T]) -> T:
    """Raises ``EOFError`` when the other end is gone."""
    (size,) = _HEADER.unpack(_read(channel, _HEADER.size))
    return decode(_read(channel, size))


def _read(channel: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = channel.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError("the runner's process has ended")
        parts += part
    return bytes(parts)
