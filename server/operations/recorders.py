"""What is noted of a generation while it runs: metrics, and its text for the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from server.intake.job import Job
from server.operations.metrics import Meter
from server.state import ServerState
from tandem.events import AnyEvent, ChoiceEnded, ReasoningDelta, TextDelta, ToolCallArguments, ToolCallBegun
from tandem.generation.generation import Generation

logger = logging.getLogger("tandem")


class Recorder(Protocol):
    """Sees all events of one generation."""

    def observe(self, events: Sequence[AnyEvent]) -> None:
        """Take what has just come."""
        ...

    def end(self, error: Exception | None) -> None:
        """The generation has ended."""
        ...


class Recorders:
    """Those that the configuration asks for.

    Args:
        common: ``id``, ``object`` and ``model`` of the answer.
        trace: headers that say to which trace the request belongs.
        arrival: of the request, in seconds of ``time.monotonic``.
    """

    def __init__(
        self, state: ServerState, job: Job, common: Mapping[str, Any], trace: Mapping[str, str], arrival: float
    ) -> None:
        self._metrics = state.metrics if state.config.enable_metrics else None
        self._meter = Meter(state.metrics, job.requests) if self._metrics else None
        log = OutputLog(common["id"], state.config.max_log_len) if state.config.enable_log_outputs else None
        span = state.tracer.trace(trace, job, common, arrival) if state.tracer else None
        self._all: list[Recorder] = [recorder for recorder in (self._meter, log, span) if recorder is not None]

    def observe(self, events: Sequence[AnyEvent]) -> None:
        """See ``Recorder``."""
        for recorder in self._all:
            recorder.observe(events)

    def begin(self, generation: Generation) -> None:
        """The engine has taken the generation; whatever ends it will be noted."""
        if self._meter is not None:
            self._meter.begin()
        generation.add_done_callback(lambda error: self._end(generation, error))

    def _end(self, generation: Generation, error: Exception | None) -> None:
        for recorder in self._all:
            recorder.end(error)
        if self._metrics is not None:
            self._metrics.reasoning_tokens.inc(generation.choices.num_reasoning_tokens)


class OutputLog:
    """Logs each choice's text once it has ended: thoughts, calls and content as they came.

    Args:
        limit: characters of a text that are logged, and kept until then; None for all.
    """

    def __init__(self, answer_id: str, limit: int | None) -> None:
        self._answer_id = answer_id
        self._limit = limit
        self._texts: dict[int, str] = {}

    def observe(self, events: Sequence[AnyEvent]) -> None:
        """See ``Recorder``."""
        for event in events:
            match event:
                case TextDelta() | ReasoningDelta() | ToolCallArguments():
                    self._add(event.choice, event.text)
                case ToolCallBegun():
                    self._add(event.choice, f"{event.name}: ")
                case ChoiceEnded():
                    self._log(event.choice, event.finish_reason)

    def end(self, error: Exception | None) -> None:
        """See ``Recorder``."""
        for choice in list(self._texts):
            self._log(choice, "abort" if error is None else "error")

    def _add(self, choice: int, text: str) -> None:
        self._texts[choice] = (self._texts.get(choice, "") + text)[: self._limit]

    def _log(self, choice: int, reason: str) -> None:
        text = self._texts.pop(choice, "")
        logger.info("Generated for request %s, choice %d, %s: %r", self._answer_id, choice, reason, text)
