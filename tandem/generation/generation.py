"""Generation over a client: the choices of one request from admission to their last event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Protocol

from tandem.config import ResolvedModel
from tandem.engine import EngineOutput, EngineRequest
from tandem.errors import NO_TOKEN_LEFT, RequestError, RequestFailedError
from tandem.events import AnyEvent, ChoiceEnded
from tandem.generation.admission import Admission
from tandem.generation.beam_search import BeamParams, BeamStream
from tandem.generation.decoding import PLAIN, Choices, Reading
from tandem.process.client import EngineClient
from tandem.text.tokenizer import Tokenizer

Observer = Callable[[Sequence[AnyEvent]], None]


class Stream(Protocol):
    """Where outputs come from; see ``tandem.process.client.OutputStream``."""

    @property
    def finished(self) -> bool:
        """Whether all outputs have been taken."""
        ...

    def listen(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called whenever there is something to take."""
        ...

    def take(self) -> list[EngineOutput]:
        """Those since the last call."""
        ...

    def abort(self, request_ids: Iterable[str] | None = None) -> None:
        """Stop the work on some or all."""
        ...


class Generation:
    """All choices of one request while they are generated.

    It goes on whoever reads, and as fast as the engine does: its life is its owner's, not a connection's. What a step
    brought becomes events as soon as it comes; those that nobody has read yet wait together. Whoever stops early must
    call ``abort``.

    Attributes:
        choices: their counts so far.
    """

    def __init__(self, stream: Stream, choices: Choices, observe: Observer) -> None:
        self.choices = choices
        self._stream = stream
        self._observe = observe
        self._events: list[AnyEvent] = []
        self._error: Exception | None = None
        self._news = asyncio.Event()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        stream.listen(self._advance)

    async def next(self) -> list[AnyEvent]:
        """What came since the last call; nothing if the reader was woken. Call only while not ``finished``.

        Raises:
            EngineError: the engine was lost, or a choice failed in it.
            RequestError: what a choice asked for has turned out to be impossible.
        """
        await self._news.wait()
        events, self._events = self._events, []
        if not events and self._error is not None:
            raise self._error
        if not self._ended.done():
            self._news.clear()
        return events

    @property
    def finished(self) -> bool:
        """Whether every choice has ended and every event has been read; False while ``next`` has an error."""
        return self._ended.done() and not self._events and self._error is None

    async def __aiter__(self) -> AsyncIterator[list[AnyEvent]]:
        """All events; raises as ``next``."""
        while not self.finished:
            if events := await self.next():
                yield events

    def wake(self) -> None:
        """Let ``next`` return, events or not."""
        self._news.set()

    def abort(self) -> None:
        """Stop the choices that have not ended, and forget what is unread; any number of times."""
        self._end()
        self._events.clear()

    async def ended(self) -> None:
        """Wait for the end, whatever it is; what has not been read may be read after it."""
        await asyncio.wait([self._ended])

    def add_done_callback(self, callback: Callable[[Exception | None], None]) -> None:
        """Have ``callback`` called once it has ended, with the error that ended it, if any did."""
        self._ended.add_done_callback(lambda _: callback(self._error))

    def _advance(self) -> None:
        """Make events of what has come."""
        if self._ended.done():
            return
        try:
            while outputs := self._stream.take():
                events, stopped = self.choices.take(outputs)
                if stopped:
                    self._stream.abort(stopped)
                self._observe(events)
                self._put(events)
            if not self._stream.finished:
                return
        except Exception as error:  # the reader's to handle
            self._error = error
        self._end()

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
        self._stream.abort()
        self._news.set()

    def _put(self, events: Sequence[AnyEvent]) -> None:
        """Have events read. One choice that fails takes its request along, after what came before."""
        for event in events:
            if isinstance(event, ChoiceEnded) and event.finish_reason == "error":
                message = event.error or "the engine could not finish this request"
                if message == NO_TOKEN_LEFT:
                    raise RequestError(message, None if self.choices.has_grammar else "allowed_token_ids")
                raise RequestFailedError(message)
            self._events.append(event)
        if events:
            self._news.set()


class TextGenerator:
    """What routes generate with: admission, engine and decoding of one model. Usable once the engine is ready."""

    def __init__(self, client: EngineClient, tokenizer: Tokenizer, model: ResolvedModel) -> None:
        self._client = client
        self._tokenizer = tokenizer
        self.admission = Admission(model, client.info, tokenizer, client.salt)

    def start(
        self,
        requests: Sequence[EngineRequest],
        observe: Observer = lambda events: None,
        reading: Reading = PLAIN,
        search: BeamParams | None = None,
    ) -> Generation:
        """Hand admitted requests, all choices of all prompts of one client's request, to the engine.

        Args:
            observe: is shown all events as they come, read or not.
            reading: how answers are read.
            search: look for the most likely answers, as many to each prompt as the search is wide.

        Raises:
            EngineError: the engine cannot take them now; nothing has reached it.
        """
        return Generation(self._stream(requests, search), Choices(self._tokenizer, requests, reading), observe)

    def _stream(self, requests: Sequence[EngineRequest], search: BeamParams | None) -> Stream:
        return self._client.submit(list(requests)) if search is None else BeamStream(self._client, requests, search)
