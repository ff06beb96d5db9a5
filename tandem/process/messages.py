"""What travels between clients and the engine.

A message is several ZeroMQ frames: a small header, then bodies. The header says whose requests each body is about,
so that a body that cannot be decoded fails those requests and nothing else. Everything is msgpack, decoded into the
types below and nothing else.

A *session* is a stretch of frames between one client and one engine, numbered from 0 in each direction. Whenever a
frame is missing, comes twice or is out of order, the session is over: its open requests fail, the engine drops them,
and the client says ``Hello`` with the next session's number. A restarted engine, a lost connection and a client that
comes back after being given up are the same case.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from tandem.config import EngineConfig
from tandem.engine import EngineOutput, EngineStats
from tandem.errors import (
    CheckpointError,
    ConfigError,
    ContextLengthError,
    EngineError,
    RequestError,
    TandemError,
)
from tandem.process.profiler import ProfilerConfig
from tandem.process.transport import Endpoint


class FrameError(TandemError):
    """A frame holds nothing that can be understood."""


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """What every header begins with."""

    session: int
    sequence: int


# ---------------------------------------------------------------------- to the engine


class Hello(Frame, frozen=True, tag="hello"):
    """A session begins; the client's earlier one is over. Answered by ``Welcome``."""


class Add(Frame, frozen=True, tag="add"):
    """Requests that passed admission. Bodies as ``tandem.process.submission`` writes them.

    Attributes:
        num_shared: how many bodies with parameters come before those with prompts.
        request_ids: of each prompt's choices, in the order of the bodies.
    """

    num_shared: int
    request_ids: list[list[str]]


class Abort(Frame, frozen=True, tag="abort"):
    """Requests nobody waits for any more. No body."""

    request_ids: list[str]


class Call(Frame, frozen=True, tag="call"):
    """An administrative call, answered by a ``Reply`` with the same id. Body: a ``Method``."""

    call_id: str


class Probe(Frame, frozen=True, tag="probe"):
    """Nothing new: shows by its number whether anything was lost before it. No body."""


class Bye(Frame, frozen=True, tag="bye"):
    """The client is about to leave; what it has left unfinished may be dropped."""


class ResetPrefixCache(msgspec.Struct, frozen=True, tag="reset_prefix_cache"):
    """``Engine.reset_prefix_cache``."""


class Sleep(msgspec.Struct, frozen=True, tag="sleep"):
    """``Engine.sleep``."""

    level: int = 1


class WakeUp(msgspec.Struct, frozen=True, tag="wake_up"):
    """``Engine.wake_up``."""


class ReplaceWeights(msgspec.Struct, frozen=True, tag="replace_weights"):
    """``Engine.replace_weights``."""

    path: str


class StartProfile(msgspec.Struct, frozen=True, tag="start_profile"):
    """``Profiler.start``."""


class StopProfile(msgspec.Struct, frozen=True, tag="stop_profile"):
    """``Profiler.stop``."""


ToEngine = Hello | Add | Abort | Call | Probe | Bye
Method = ResetPrefixCache | Sleep | WakeUp | ReplaceWeights | StartProfile | StopProfile
METHODS: dict[str, Callable[..., Method]] = {
    "reset_prefix_cache": ResetPrefixCache,
    "sleep": Sleep,
    "wake_up": WakeUp,
    "replace_weights": ReplaceWeights,
    "start_profile": StartProfile,
    "stop_profile": StopProfile,
}

# ---------------------------------------------------------------------- from the engine


class Welcome(Frame, frozen=True, tag="welcome"):
    """The engine is built, and the session has begun at its end. Body: ``EngineInfo``.

    Attributes:
        incarnation: how many engines the supervisor has started, this one included.
    """

    incarnation: int


class Step(Frame, frozen=True, tag="step"):
    """All that a step brought this client; now and then nothing, as the engine's ``Probe``. Body: ``StepBody``."""

    request_ids: list[str]


class Reply(Frame, frozen=True, tag="reply"):
    """The end of an administrative call. Body: ``Failure``, or none if it succeeded."""

    call_id: str


class Broken(Frame, frozen=True, tag="broken"):
    """The session is over at the engine's end. ``reason`` completes "the connection to the engine …"."""

    reason: str


class StepBody(msgspec.Struct, frozen=True, array_like=True):
    """Outputs in the order of the header's ids, and the engine's statistics after the step."""

    outputs: list[EngineOutput]
    stats: EngineStats


class Heartbeat(msgspec.Struct, frozen=True, array_like=True):
    """That the engine is there, to all clients.

    Attributes:
        incarnation: as in ``Welcome``.
        loaded: share of the weights that has been read, in [0, 1].
        is_ready: the engine is built.
        step_seconds: how long it has been within the same step; 0 between steps.
        stats: after the latest step.
    """

    incarnation: int
    loaded: float
    is_ready: bool
    step_seconds: float
    stats: EngineStats


class Failure(msgspec.Struct, frozen=True):
    """An error on its way to another process."""

    kind: str
    message: str
    option: str | None = None
    param: str | None = None
    code: str | None = None

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Errors that are not Tandem's own become an ``EngineError`` that names them."""
        if not isinstance(error, TandemError):
            return cls("EngineError", one_line(error))
        return cls(
            type(error).__name__,
            str(error),
            getattr(error, "option", None),
            getattr(error, "param", None),
            getattr(error, "code", None),
        )

    @property
    def error(self) -> TandemError:
        """An error of the class that was raised at the other end."""
        match self.kind:
            case "ConfigError":
                option = self.option or ""
                return ConfigError(option, self.message.removeprefix(f"{option}: "))
            case "ContextLengthError":
                return ContextLengthError(self.message, self.param)
            case "RequestError":
                return RequestError(self.message, self.param, self.code or "invalid_value")
            case "CheckpointError":
                return CheckpointError(self.message)
        return EngineError(self.message)


FromEngine = Welcome | Step | Reply | Broken

# ---------------------------------------------------------------------- between a supervisor and its engine's process


class Start(msgspec.Struct, frozen=True):
    """What an engine's loop is started with."""

    config: EngineConfig
    endpoint: Endpoint
    incarnation: int
    profiler: ProfilerConfig | None = None


class Built(msgspec.Struct, frozen=True, tag="built"):
    """The engine is ready."""


class Ending(msgspec.Struct, frozen=True, tag="ending"):
    """Why the loop has ended.

    Attributes:
        message: one line for the user; empty if it was asked to stop.
    """

    message: str


Report = Built | Ending

# ---------------------------------------------------------------------- msgpack

encode = msgspec.msgpack.Encoder().encode


def decoder(kind: Any) -> Callable[[bytes], Any]:
    """A function from a frame to a ``kind``, which may be a union, that raises ``FrameError`` for anything else."""
    decode = msgspec.msgpack.Decoder(kind).decode

    def decode_frame(frame: bytes) -> Any:
        try:
            return decode(frame)
        except Exception as error:  # not msgspec's alone: strings that are no UTF-8, structs that check their fields
            raise FrameError(one_line(error)) from error

    return decode_frame


def one_line(error: BaseException) -> str:
    """An error as one line: its text if it is Tandem's own, else with the name of its class."""
    text = " ".join(str(error).split())
    return text if isinstance(error, TandemError) else f"{type(error).__name__}: {text}"[:1000]


def out_of_step(expected: int, got: int) -> str:
    """What a jump in the numbering of frames means; completes "the connection to the engine …"."""
    if got < expected:
        return f"brought frame {got} again"
    return f"lost frame {expected}" if got == expected + 1 else f"lost frames {expected} to {got - 1}"
