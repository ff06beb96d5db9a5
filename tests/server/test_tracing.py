"""Traces, as a collector gets them over either protocol."""

from __future__ import annotations

import gzip
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from server.operations.tracing import Tracer
from tandem.errors import ConfigError
from tests.server.conftest import MODEL
from tests.server.process import ENDLESS, ServerProcess, connect, eventually

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SERVER, ERROR = 2, 2  # as the protocol numbers kinds and statuses
HI: Any = [{"role": "user", "content": "hi"}]
Sink = Callable[[ExportTraceServiceRequest], None]


@contextmanager
def over_grpc(sink: Sink) -> Iterator[str]:
    class Collector(TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> ExportTraceServiceResponse:  # noqa: N802
            sink(request)
            return ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    add_TraceServiceServicer_to_server(Collector(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop(None)


@contextmanager
def over_http(sink: Sink) -> Iterator[str]:
    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802
            data = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                data = gzip.decompress(data)
            sink(ExportTraceServiceRequest.FromString(data))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces"
    server.shutdown()


class Spans:
    """All that have come, by the id of the answer."""

    def __init__(self) -> None:
        self.by_answer: dict[str, Any] = {}
        self.services: set[str] = set()

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
            for scope in resource.scope_spans:
                self.by_answer |= {attributes(span)["gen_ai.response.id"]: span for span in scope.spans}

    def of(self, answer_id: str) -> tuple[Any, dict[str, Any]]:
        eventually(lambda: answer_id in self.by_answer, 20)
        span = self.by_answer[answer_id]
        return span, attributes(span)


def attributes(span: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        return [plain(v) for v in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {attribute.key: plain(attribute.value) for attribute in span.attributes}


@pytest.fixture(scope="module", params=[("grpc", over_grpc), ("http/protobuf", over_http)], ids=["grpc", "http"])
def traced(request: pytest.FixtureRequest, model_dir: Path) -> Iterator[tuple[ServerProcess, Spans]]:
    protocol, collector = request.param
    environment = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": protocol, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    spans = Spans()
    with collector(spans.take) as endpoint:
        options = ("--served-model-name", MODEL, "--otlp-traces-endpoint", endpoint)
        with ServerProcess(model_dir, *options, environment=environment) as server:
            yield server, spans


def test_a_span_tells_of_its_generation(traced: tuple[ServerProcess, Spans]) -> None:
    server, spans = traced
    body = {"messages": HI, "max_tokens": 7, "n": 2, "temperature": 0.5, "seed": 3, "ignore_eos": True}
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    for stream in (False, True):
        answer = server.post(
            "/v1/chat/completions", body | {"stream": stream, "request_id": str(stream)}, headers=headers
        )
        assert answer.status_code == 200
        span, told = spans.of(f"chatcmpl-{stream}")
        assert (span.trace_id.hex(), span.parent_span_id.hex(), span.kind) == (TRACE, PARENT, SERVER)
        assert span.name == f"chat {MODEL}"
        assert {name: value for name, value in told.items() if ".latency." not in name} == {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "tandem",
            "gen_ai.request.model": MODEL,
            "gen_ai.response.model": MODEL,
            "gen_ai.response.id": f"chatcmpl-{stream}",
            "gen_ai.request.temperature": 0.5,
            "gen_ai.request.top_p": 1.0,
            "gen_ai.request.top_k": 0,
            "gen_ai.request.frequency_penalty": 0.0,
            "gen_ai.request.presence_penalty": 0.0,
            "gen_ai.request.max_tokens": 7,
            "gen_ai.request.seed": 3,
            "gen_ai.request.choice.count": 2,
            "gen_ai.usage.input_tokens": told["gen_ai.usage.input_tokens"],
            "gen_ai.usage.output_tokens": 14,
            "gen_ai.usage.cache_read.input_tokens": told["gen_ai.usage.cache_read.input_tokens"],
            "gen_ai.response.finish_reasons": ["length", "length"],
        }
        queued, first, whole = (
            told[f"gen_ai.latency.{name}"] for name in ("time_in_queue", "time_to_first_token", "e2e")
        )
        assert 0 <= queued <= first <= whole <= (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9 + 0.01
    assert spans.services == {"tandem"}


@pytest.mark.parametrize(
    ("path", "body", "operation"),
    [
        ("/v1/completions", {"prompt": "a", "max_tokens": 2}, "text_completion"),
        ("/v1/responses", {"input": "a", "max_output_tokens": 2}, "chat"),
        ("/v1/messages", {"messages": HI, "max_tokens": 2, "model": MODEL}, "chat"),
    ],
)
def test_every_route_is_traced(
    traced: tuple[ServerProcess, Spans], path: str, body: dict[str, Any], operation: str
) -> None:
    server, spans = traced
    answer = server.post(path, body).json()
    span, told = spans.of(answer["id"])
    assert told["gen_ai.operation.name"] == operation and not span.parent_span_id and len(span.trace_id) == 16
    assert told["gen_ai.usage.output_tokens"] in (1, 2)


def test_a_client_that_leaves_ends_the_span(traced: tuple[ServerProcess, Spans]) -> None:
    server, spans = traced
    connection = connect(server, "/v1/completions", ENDLESS | {"stream": True, "request_id": "left"})
    assert connection.recv(100)
    connection.close()
    span, told = spans.of("cmpl-left")
    assert told["gen_ai.response.finish_reasons"] == [] and span.status.code != ERROR


def test_an_error_is_told(traced: tuple[ServerProcess, Spans]) -> None:
    server, spans = traced
    hopeless = {"allowed_token_ids": [7], "bad_words": ["the"], "stop_token_ids": [7], "min_tokens": 3}
    assert server.post("/v1/completions", {"prompt": "a", "request_id": "bad"} | hopeless).status_code == 400
    span, told = spans.of("cmpl-bad")
    assert span.status.code == ERROR and told["error.type"] == "RequestError"


def test_a_collector_that_is_not_there_delays_nobody(model_dir: Path) -> None:
    with ServerProcess(model_dir, "--otlp-traces-endpoint", "http://127.0.0.1:9") as server:
        for _ in range(20):
            assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 1}).status_code == 200
        assert server.stop() == 0


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "smoke")
    with pytest.raises(ConfigError, match="'smoke' is not one of grpc, http/protobuf"):
        Tracer("http://127.0.0.1:9")
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(ConfigError, match=r"--otlp-traces-endpoint: needs the extra otel: pip install"):
        Tracer("http://127.0.0.1:9")
