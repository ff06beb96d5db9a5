"""One HTTP request's choices while they are generated: all prompts merged, counted and measured."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.metrics import ChoiceTimer, Metrics
from server.prompts import Prompt
from server.schemas.common import GenerationRequest
from server.state import LoadedModel
from tandem.engine import FinishReason, TokenLogprobs
from tandem.errors import EngineError, RequestError, RequestFailedError
from tandem.generation.generation import Generation
from tandem.generation.outputs import ChoiceDelta
from tandem.sampling_params import SamplingParams

MAX_CHOICES = 4096  # of all prompts of one HTTP request

PromptLogprobs = list[TokenLogprobs | None]
Step = list[tuple[int, ChoiceDelta]]


class Answer:
    """Iterate once: each item holds what came since the last one, as (number of the choice, its delta).

    Choices are numbered through all prompts: prompt p's i-th is p · n + i. Whoever stops early must call ``abort``.

    Attributes:
        prompt_logprobs: by prompt, filled before any delta of that prompt is handed out, if they were asked for.

    Raises:
        RequestError: on construction: a prompt is refused; the others have been taken back.
        EngineError: the engine cannot take it now.
    """

    def __init__(
        self,
        metrics: Metrics,
        model: LoadedModel,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        request: GenerationRequest,
    ) -> None:
        if len(prompts) * sampling.n > MAX_CHOICES:
            raise RequestError(f"prompts times n must be at most {MAX_CHOICES}", "n")
        self.prompts = prompts
        self.sampling = sampling
        self.prompt_logprobs: dict[int, PromptLogprobs] = {}
        self._generations: list[Generation] = []
        self._timers: list[ChoiceTimer] = []
        self._held: dict[int, list[ChoiceDelta]] = {}
        self._num_output_tokens = 0
        self._cached: dict[int, int] = {}
        priority, cache_salt = request.priority or 0, request.cache_salt or ""
        try:
            for prompt in prompts:
                generation = model.generator.generate(
                    prompt.token_ids, sampling, priority=priority, cache_salt=cache_salt
                )
                self._generations.append(generation)
        except BaseException:
            self.abort()
            raise
        self._measure(metrics)

    async def __aiter__(self) -> AsyncIterator[Step]:
        """The steps, until every choice has its ``finish_reason``.

        Raises:
            EngineError: the engine was lost, or a choice failed in it.
        """
        try:
            async with contextlib.aclosing(_merge(self._generations)) as merged:
                async for parts in merged:
                    step = [pair for prompt, deltas in parts for pair in self._take(prompt, deltas)]
                    if step:
                        yield step
        except EngineError:
            for timer in self._timers:
                timer.end("error")
            raise
        finally:
            self.abort()

    def abort(self) -> None:
        """Stop what has not ended; any number of times."""
        for generation in self._generations:
            generation.abort()
        for timer in self._timers:
            timer.end("abort")

    @property
    def usage(self) -> dict[str, Any]:
        """OpenAI's ``usage`` so far."""
        num_prompt_tokens = sum(len(prompt.token_ids) for prompt in self.prompts)
        return {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": self._num_output_tokens,
            "total_tokens": num_prompt_tokens + self._num_output_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached.values())},
        }

    def prompt_of(self, choice: int) -> int:
        """Number of the prompt that a choice answers."""
        return choice // self.sampling.n

    def _measure(self, metrics: Metrics) -> None:
        sampling = self.sampling
        for prompt, generation in zip(self.prompts, self._generations, strict=True):
            length = len(prompt.token_ids)
            metrics.prompt_tokens.inc(length)
            metrics.params_n.observe(sampling.n)
            if sampling.max_tokens is not None:
                metrics.params_max_tokens.observe(sampling.max_tokens)
            self._timers += [ChoiceTimer(metrics, generation.arrival_time, length) for _ in range(sampling.n)]

    def _take(self, prompt: int, deltas: list[ChoiceDelta]) -> Step:
        first = prompt * self.sampling.n
        for delta in deltas:
            self._timers[first + delta.index].observe(delta)
            self._num_output_tokens += len(delta.token_ids)
            if delta.index == 0:
                self._cached[prompt] = max(delta.num_cached_tokens, self._cached.get(prompt, 0))
            if delta.finish_reason == "error":
                raise RequestFailedError(delta.error or "the engine could not finish this request")
        if self.sampling.prompt_logprobs is not None and prompt not in self.prompt_logprobs:
            deltas = self._wait_for_prompt_logprobs(prompt, deltas)
        return [(first + delta.index, delta) for delta in deltas]

    def _wait_for_prompt_logprobs(self, prompt: int, deltas: list[ChoiceDelta]) -> list[ChoiceDelta]:
        """They come with choice 0 only: the other choices' deltas wait for it."""
        held = self._held.setdefault(prompt, [])
        held += deltas
        for delta in deltas:
            if delta.prompt_logprobs is not None:
                self.prompt_logprobs[prompt] = delta.prompt_logprobs
                return self._held.pop(prompt)
        return []


@dataclass(slots=True)
class Choice:
    """One finished choice. ``logprobs`` has an entry a token, if they were asked for."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


async def collect(answer: Answer) -> list[Choice]:
    """Wait for all choices.

    Raises:
        EngineError: the engine was lost, or a choice failed in it.
    """
    choices = [Choice(index) for index in range(len(answer.prompts) * answer.sampling.n)]
    texts: list[list[str]] = [[] for _ in choices]
    try:
        async for step in answer:
            for index, delta in step:
                choice = choices[index]
                texts[index].append(delta.text)
                choice.token_ids += delta.token_ids
                choice.logprobs += delta.logprobs or ()
                choice.finish_reason, choice.stop_reason = delta.finish_reason, delta.stop_reason
    finally:
        answer.abort()
    for choice, parts in zip(choices, texts, strict=True):
        choice.text = "".join(parts)
    return choices


async def _merge(generations: list[Generation]) -> AsyncGenerator[list[tuple[int, list[ChoiceDelta]]], None]:
    """What the generations yield, with their numbers; all that one engine step brought comes together."""
    if len(generations) == 1:
        async for deltas in generations[0]:
            yield [(0, deltas)]
        return
    # the bound leaves unread outputs with the generations, which join them
    queue: asyncio.Queue[tuple[int, list[ChoiceDelta] | Exception | None]] = asyncio.Queue(len(generations))

    async def feed(number: int) -> None:
        try:
            async for deltas in generations[number]:
                await queue.put((number, deltas))
        except Exception as error:
            await queue.put((number, error))
        else:
            await queue.put((number, None))

    feeders = [asyncio.create_task(feed(number)) for number in range(len(generations))]
    num_open = len(feeders)
    try:
        while num_open:
            items = [await queue.get()]
            with contextlib.suppress(asyncio.QueueEmpty):
                while True:
                    items.append(queue.get_nowait())
            parts = []
            for number, item in items:
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    num_open -= 1
                else:
                    parts.append((number, item))
            if parts:
                yield parts
    finally:
        for feeder in feeders:
            feeder.cancel()
        await asyncio.gather(*feeders, return_exceptions=True)
