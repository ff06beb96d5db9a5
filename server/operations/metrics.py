"""Prometheus metrics, under the names of vLLM's, so that existing dashboards and autoscalers work.

A *request* in these metrics is one choice: what an engine sees. What is about prompts is counted once a prompt, as in
``usage``, when the engine has begun with it. Names of our own begin with ``tandem:``. Each application has a registry
of its own; docs/metrics.md lists what a scrape holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, Summary

from server.operations.engine_metrics import ENGINE, LABELS, EngineCollector, EngineView
from server.operations.token_metrics import TokenMetrics
from tandem.engine import EngineRequest, EngineStats, FinishReason
from tandem.events import AnyEvent, CallNotParsed, ChoiceEnded, TextDelta, TokensSampled, ToolCallBegun

SOURCES = ("local_compute", "local_cache_hit")
REJECTIONS = (  # status and code of answers that say: not now
    (429, "server_overloaded"),
    (503, "shutting_down"),
    (503, "engine_loading"),
    (503, "engine_stalled"),
    (503, "engine_dead"),
    (503, "engine_disconnected"),
)
FIRST_TOKEN_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
REQUEST_SECONDS = (
    0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680,
)  # fmt: skip
TOKEN_COUNTS = tuple(m * 10**e for e in range(6) for m in (1, 2, 5))
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CHOICE_COUNTS = (1, 2, 5, 10, 20)
HTTP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
PREEMPTION_COUNTS = (0, 1, 2, 5, 10, 20, 50)


class Metrics:
    """Every metric of one application.

    Args:
        model_name: the label's value.
        engine: tells what is known of the engine when it is scraped.
    """

    def __init__(self, model_name: str, engine: Callable[[], EngineView]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(EngineCollector(model_name, engine))
        self._labels = {"model_name": model_name, "engine": ENGINE}

        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens of prompts begun")
        self.cached_tokens = self._counter("vllm:prompt_tokens_cached", "Of these, those found in the prefix cache")
        self.by_source = self._series(
            "vllm:prompt_tokens_by_source", "Prompt tokens, by where their keys and values are from",
            ("source",), [(source,) for source in SOURCES],
        )  # fmt: skip
        self.tokens = TokenMetrics(model_name, TOKEN_SECONDS)
        self.registry.register(self.tokens)
        self.reasoning_tokens = self._counter("tandem:reasoning_tokens", "Of these, those of thoughts")
        self.tool_calls = self._counter("tandem:tool_calls", "Tool calls begun")
        self.not_parsed = self._counter("tandem:tool_calls_not_parsed", "Texts that began like a tool call in vain")
        self._success = self._series(
            "vllm:request_success", "Requests ended, by reason",
            ("finished_reason",), [(reason,) for reason in get_args(FinishReason)],
        )  # fmt: skip
        self._rejected = self._series(
            "tandem:requests_rejected", "HTTP requests answered with 429 or 503, by the error's code",
            ("status", "reason"), [(str(status), code) for status, code in REJECTIONS],
        )  # fmt: skip
        self.batch_requests = self._series(
            "tandem:batch_requests", "Requests of batches that have been answered",
            ("outcome",), [("completed",), ("failed",)],
        )  # fmt: skip
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "Arrival to first token", FIRST_TOKEN_SECONDS
        )
        self.per_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean time per token after the first, by request", TOKEN_SECONDS
        )
        self.whole = self._histogram("e2e_request_latency_seconds", "Arrival to end", REQUEST_SECONDS)
        self.queue = self._histogram("request_queue_time_seconds", "Arrival to first step", REQUEST_SECONDS)
        self.inference = self._histogram("request_inference_time_seconds", "First step to end", REQUEST_SECONDS)
        self.prefill = self._histogram("request_prefill_time_seconds", "First step to first token", REQUEST_SECONDS)
        self.decode = self._histogram("request_decode_time_seconds", "First token to end", REQUEST_SECONDS)
        self.request_prompt = self._histogram("request_prompt_tokens", "Prompt tokens by request", TOKEN_COUNTS)
        self.request_generation = self._histogram("request_generation_tokens", "Tokens by request", TOKEN_COUNTS)
        self.most_generated = self._histogram(
            "request_max_num_generation_tokens", "Tokens of the longest choice of a prompt", TOKEN_COUNTS
        )
        self.computed = self._histogram(
            "request_prefill_kv_computed_tokens", "Prompt tokens computed, cached ones left out", TOKEN_COUNTS
        )
        self.preemptions = self._histogram(
            "tandem:request_preemptions", "Times that a request was set back", PREEMPTION_COUNTS
        )
        self.step_tokens = self._histogram("iteration_tokens_total", "Tokens computed by a step", STEP_TOKENS)
        self.params_n = self._histogram("request_params_n", "n of requests", CHOICE_COUNTS)
        self.params_max_tokens = self._histogram("request_params_max_tokens", "max_tokens of requests", TOKEN_COUNTS)

        http_labels = ("method", "handler", "status")
        self.http_requests = Counter("http_requests", "HTTP requests", http_labels, registry=self.registry)
        self.http_seconds = Histogram(
            "http_request_duration_seconds", "Request to last byte", ("method", "handler"),
            buckets=HTTP_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.http_received = Summary(
            "http_request_size_bytes", "Bytes of bodies received", ("handler",), registry=self.registry
        )
        self.http_sent = Summary(
            "http_response_size_bytes", "Bytes of bodies sent", ("handler",), registry=self.registry
        )

    def ended(self, reason: FinishReason) -> None:
        """Count the end of a request."""
        self._success[(reason,)].inc()

    def rejected(self, status: int, code: str) -> None:
        """Count an answer that says: not now; others are passed over."""
        if (counter := self._rejected.get((str(status), code))) is not None:
            counter.inc()

    def on_step(self, stats: EngineStats) -> None:
        """Take the statistics of one engine step."""
        if stats.num_step_tokens:
            self.step_tokens.observe(stats.num_step_tokens)

    def _counter(self, name: str, help: str) -> Counter:
        return Counter(name, help, LABELS, registry=self.registry).labels(**self._labels)

    def _series(
        self, name: str, help: str, labels: tuple[str, ...], values: Iterable[tuple[str, ...]]
    ) -> dict[tuple[str, ...], Counter]:
        """A counter for each of the label's values, there from the start: a rate needs the zero before the first."""
        counter = Counter(name, help, (*LABELS, *labels), registry=self.registry)
        return {value: counter.labels(*self._labels.values(), *value) for value in values}

    def _histogram(self, name: str, help: str, buckets: Iterable[float]) -> Histogram:
        full_name = name if ":" in name else f"vllm:{name}"
        metric = Histogram(full_name, help, LABELS, buckets=tuple(buckets), registry=self.registry)
        return metric.labels(**self._labels)


class Meter:
    """Measures a generation from its events."""

    def __init__(self, metrics: Metrics, requests: Sequence[EngineRequest]) -> None:
        self._metrics = metrics
        self._requests = requests
        self._prompts: list[PromptCounter] = []
        self._prompt_of: list[PromptCounter] = []  # by choice
        for request in requests:
            if request.choice_index == 0:
                self._prompts.append(PromptCounter(metrics, len(request.prompt_token_ids)))
            self._prompt_of.append(self._prompts[-1])
            self._prompts[-1].num_open += 1
        self._timers = {number: ChoiceTimer(metrics, request.arrival_time) for number, request in enumerate(requests)}

    def begin(self) -> None:
        """The engine has taken it."""
        for request in self._requests:
            if request.choice_index == 0:
                self._metrics.params_n.observe(request.sampling.n)
                if request.sampling.max_tokens is not None:
                    self._metrics.params_max_tokens.observe(request.sampling.max_tokens)

    def observe(self, events: Sequence[AnyEvent]) -> None:
        """Take what has just come."""
        for event in events:
            match event:
                case TextDelta():  # most events are one
                    pass
                case TokensSampled(choice, token_ids):
                    self._prompt_of[choice].begun(event.num_cached_tokens)
                    self._timers[choice].sampled(len(token_ids), event.scheduled_time)
                case ToolCallBegun():
                    self._metrics.tool_calls.inc()
                case CallNotParsed():
                    self._metrics.not_parsed.inc()
                case ChoiceEnded(choice=choice):
                    if event.finish_reason != "error":
                        self._prompt_of[choice].begun(event.num_cached_tokens)
                    self._metrics.preemptions.observe(event.num_preemptions)
                    self._end(choice, event.finish_reason, event.scheduled_time)

    def end(self, error: Exception | None) -> None:
        """The generation has ended: the choices that have not had an end of their own end with it."""
        for choice in list(self._timers):
            self._end(choice, "abort" if error is None else "error")

    def _end(self, choice: int, reason: FinishReason, scheduled: float = 0.0) -> None:
        timer = self._timers.pop(choice)
        timer.end(reason, scheduled)
        self._prompt_of[choice].ended(timer.num_tokens)


class PromptCounter:
    """Counts one prompt, once for all its choices."""

    def __init__(self, metrics: Metrics, num_tokens: int) -> None:
        self.num_open = 0  # choices that have not ended
        self._metrics = metrics
        self._num_tokens = num_tokens
        self._is_begun = False
        self._most_generated = 0

    def begun(self, num_cached_tokens: int) -> None:
        """A choice has brought something, after so much was found in the cache; later ones find the rest there."""
        if self._is_begun:
            return
        self._is_begun = True
        metrics, num_computed = self._metrics, self._num_tokens - num_cached_tokens
        metrics.prompt_tokens.inc(self._num_tokens)
        metrics.cached_tokens.inc(num_cached_tokens)
        metrics.by_source[("local_compute",)].inc(num_computed)
        metrics.by_source[("local_cache_hit",)].inc(num_cached_tokens)
        metrics.request_prompt.observe(self._num_tokens)
        metrics.computed.observe(num_computed)

    def ended(self, num_generated: int) -> None:
        """A choice has ended with so many tokens."""
        self.num_open -= 1
        self._most_generated = max(self._most_generated, num_generated)
        if not self.num_open:
            self._metrics.most_generated.observe(self._most_generated)


class ChoiceTimer:
    """Measures one choice."""

    def __init__(self, metrics: Metrics, arrival: float) -> None:
        self.num_tokens = 0
        self._metrics = metrics
        self._arrival = arrival
        self._scheduled = self._first = self._latest = 0.0

    def sampled(self, count: int, scheduled: float) -> None:
        """So many tokens have come."""
        metrics, now = self._metrics, time.monotonic()
        self._scheduled = scheduled or self._scheduled
        if self.num_tokens == 0:
            self._first = now
            metrics.tokens.first(count)
            metrics.first_token.observe(now - self._arrival)
        else:
            metrics.tokens.next(count, now - self._latest)
        self._latest = now
        self.num_tokens += count

    def end(self, reason: FinishReason, scheduled: float = 0.0) -> None:
        """The choice has ended, or nobody wants it any more."""
        metrics, now = self._metrics, time.monotonic()
        self._scheduled = scheduled or self._scheduled
        metrics.ended(reason)
        metrics.request_generation.observe(self.num_tokens)
        metrics.whole.observe(now - self._arrival)
        if self._scheduled:
            metrics.queue.observe(max(0.0, self._scheduled - self._arrival))
            metrics.inference.observe(now - self._scheduled)
        if self._scheduled and self._first:
            metrics.prefill.observe(max(0.0, self._first - self._scheduled))
            metrics.decode.observe(now - self._first)
        if self.num_tokens > 1:
            metrics.per_token.observe((self._latest - self._first) / (self.num_tokens - 1))
