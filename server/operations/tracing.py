"""Traces of generations, exported over OTLP: a span for each request, in the trace of whoever sent it.

Attributes follow OpenTelemetry's semantic conventions for generative AI; the times within the server, which these do
not have, are named as in vLLM. Neither prompts nor answers are exported. The packages are those of the extra ``otel``
and are imported only where traces are asked for; ``OTEL_…`` variables mean what they do everywhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tandem.errors import ConfigError
from tandem.events import AnyEvent, ChoiceEnded, TokensSampled

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from server.intake.job import Job

OPTION = "--otlp-traces-endpoint"
PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
PROTOCOLS = ("grpc", "http/protobuf")
FLUSH_SECONDS = 2.0
OPERATIONS = {  # by the answer's ``object``; the convention knows the first two, and allows others
    **dict.fromkeys(("chat.completion", "chat.completion.chunk", "chat", "response", "message"), "chat"),
    **dict.fromkeys(("text_completion", "generate"), "text_completion"),
    **dict.fromkeys(("decision", "structured_decision"), "decide"),
    "list": "score",
}
_SAMPLING = {  # by the convention's name
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "max_tokens": "max_tokens",
    "seed": "seed",
    "choice.count": "n",
}


class Tracer:
    """Makes spans, and has them exported by a thread; at most 2,048 wait for it, and further ones are dropped.

    Args:
        endpoint: of a collector: ``http://HOST:4317`` for gRPC, the whole URL for HTTP.

    Raises:
        ConfigError: the packages are missing, or the protocol is unknown.
    """

    def __init__(self, endpoint: str) -> None:
        protocol = os.environ.get(PROTOCOL, PROTOCOLS[0])
        if protocol not in PROTOCOLS:
            raise ConfigError(PROTOCOL, f"{protocol!r} is not one of {', '.join(PROTOCOLS)}")
        try:
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            if protocol == "grpc":
                from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            else:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # type: ignore[assignment]
                    OTLPSpanExporter,
                )
        except ImportError as error:
            raise ConfigError(OPTION, "needs the extra otel: pip install 'tandem-llm[otel]'") from error
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        self._provider = TracerProvider(resource=Resource.create({} if named else {SERVICE_NAME: "tandem"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("tandem")

    def trace(self, parent: Mapping[str, str], job: Job, common: Mapping[str, Any], arrival: float) -> Trace:
        """Begin the span of a generation.

        Args:
            parent: the headers of the request, of which ``traceparent`` and ``tracestate`` count.
            common: ``id``, ``object`` and ``model`` of its answer.
            arrival: of the request, in seconds of ``time.monotonic``.
        """
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context: Context = TraceContextTextMapPropagator().extract(parent)
        operation = OPERATIONS[common["object"]]
        sampling = job.sampling
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "tandem",
            "gen_ai.request.model": common["model"],
            "gen_ai.response.model": common["model"],
            "gen_ai.response.id": common["id"],
            "gen_ai.usage.input_tokens": sum(len(prompt.token_ids) for prompt in job.prompts),
        }
        for name, field in _SAMPLING.items():
            if (value := getattr(sampling, field)) is not None:
                attributes[f"gen_ai.request.{name}"] = value
        if sampling.stop:
            attributes["gen_ai.request.stop_sequences"] = list(sampling.stop)
        began = time.time_ns() - int(1e9 * (time.monotonic() - arrival))
        name = f"{operation} {common['model']}"
        return Trace(self._tracer.start_span(name, context, SpanKind.SERVER, attributes, start_time=began), arrival)

    def close(self) -> None:
        """Export what waits, though not for long."""
        self._provider.force_flush(int(1000 * FLUSH_SECONDS))
        self._provider.shutdown()


class Trace:
    """The span of one generation: a recorder of its events."""

    def __init__(self, span: Span, arrival: float) -> None:
        self._span = span
        self._arrival = arrival
        self._scheduled = self._first = 0.0
        self._num_tokens = self._num_cached_tokens = 0
        self._reasons: dict[int, str] = {}

    def observe(self, events: Sequence[AnyEvent]) -> None:
        """See ``Recorder``."""
        for event in events:
            match event:
                case TokensSampled(_, token_ids):
                    self._first = self._first or time.monotonic()
                    self._scheduled = self._scheduled or event.scheduled_time
                    self._num_cached_tokens = max(self._num_cached_tokens, event.num_cached_tokens)
                    self._num_tokens += len(token_ids)
                case ChoiceEnded(choice, reason):
                    self._reasons[choice] = reason

    def end(self, error: Exception | None) -> None:
        """See ``Recorder``."""
        from opentelemetry.trace import Status, StatusCode

        now = time.monotonic()
        attributes: dict[str, Any] = {
            "gen_ai.usage.output_tokens": self._num_tokens,
            "gen_ai.usage.cache_read.input_tokens": self._num_cached_tokens,
            "gen_ai.response.finish_reasons": [reason for _, reason in sorted(self._reasons.items())],
            "gen_ai.latency.e2e": now - self._arrival,
        }
        if self._scheduled:
            attributes["gen_ai.latency.time_in_queue"] = max(0.0, self._scheduled - self._arrival)
        if self._first:
            attributes["gen_ai.latency.time_to_first_token"] = self._first - self._arrival
        if error is not None:
            attributes["error.type"] = type(error).__name__
            self._span.set_status(Status(StatusCode.ERROR, str(error)[:200]))
        self._span.set_attributes(attributes)
        self._span.end()
