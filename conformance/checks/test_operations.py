"""What stands around the API: HTTP itself, request ids, CORS, metrics, tokens."""

from __future__ import annotations

import json
import re
import socket
import ssl
import uuid
from urllib.parse import urlsplit

import pytest

from ..client import Api, Client, Exchange
from ..requirement import HTTP, group, must, needs, not_able, not_offered, should

pytestmark = group("operations", "chat")
DEBUGGING = "api-reference/debugging-requests"
CORS = "https://fetch.spec.whatwg.org/#http-cors-protocol"
METRICS = "https://prometheus.io/docs/instrumenting/exposition_formats/"
SAMPLE = re.compile(r'[a-zA-Z_:][a-zA-Z0-9_:]*(\{([a-zA-Z_]\w*="(\\.|[^"\\\n])*",?)*\})? \S+( -?\d+)?')
VLLM = "https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html"


@should("every answer has an x-request-id", DEBUGGING)
@pytest.mark.parametrize("kind", ["whole", "stream", "error"])
def test_request_id(api: Api, kind: str) -> None:
    """Successes and failures alike, each with its own."""

    def ask() -> Exchange:
        if kind == "stream":
            return api.chat_stream(**{api.limit: 1})
        return api.chat(temperature="hot") if kind == "error" else api.chat(**{api.limit: 1})

    ids = [ask().answer_headers.get("x-request-id") for _ in range(2)]
    assert all(ids) and ids[0] != ids[1], f"expected an x-request-id for each, got {ids}"


@should("a client's own X-Client-Request-Id or X-Request-Id is no reason to fail", DEBUGGING)
@pytest.mark.parametrize(
    "value", ["a" * 512, "\u00fc".encode().decode("latin-1"), "a b", "../../etc", str(uuid.UUID(int=1))]
)
def test_client_request_id(client: Client, value: str) -> None:
    """Whatever is in it; CR and LF cannot be sent."""
    try:
        found = client.get("/models", headers={"x-request-id": value, "x-client-request-id": value})
    except UnicodeEncodeError:
        not_able("this client cannot send it")
    assert found.status in (200, 400, 431), f"expected 200 or 400, got {found.status} {found.error}"


@should("CORS preflight is answered for pages of other origins", CORS)
def test_preflight(client: Client) -> None:
    """Where it is refused, no header says that it is allowed."""
    headers = {
        "origin": "https://example.com",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
        "authorization": None,
    }
    found = client.send("OPTIONS", "/chat/completions", headers=headers)
    found.demand_answer()
    allowed = found.answer_headers.get("access-control-allow-origin")
    if allowed is None:
        not_offered(f"no access-control-allow-origin (status {found.status})")
    assert found.status in (200, 204), f"expected 200 or 204, got {found.status}"
    assert allowed in ("*", "https://example.com"), f"expected the origin or *, got {allowed!r}"
    methods = found.answer_headers.get("access-control-allow-methods", "")
    assert "POST" in methods or methods == "*", f"expected POST, got {methods!r}"
    names = found.answer_headers.get("access-control-allow-headers", "").lower()
    assert "authorization" in names, f"expected authorization by name (* does not cover it), got {names!r}"


@should("answers to other origins, errors too, allow them as the preflight does", CORS)
@pytest.mark.parametrize("is_error", [False, True], ids=["answer", "error"])
def test_cors(api: Api, is_error: bool) -> None:
    """Else a page cannot read why its request failed."""
    body = api.chat_body(**({"temperature": "hot"} if is_error else {api.limit: 1}))
    found = api.client.post("/chat/completions", body, headers={"origin": "https://example.com"})
    allowed = found.answer_headers.get("access-control-allow-origin")
    if allowed is None and not is_error:
        not_offered("no access-control-allow-origin")
    assert allowed in ("*", "https://example.com"), f"expected the origin or *, got {allowed!r}"


@must("* is never combined with credentials", CORS)
def test_cors_credentials(client: Client) -> None:
    """Browsers refuse it; and with any origin given back it would let every page use a user's cookies."""
    found = client.get("/models", headers={"origin": "https://example.com"})
    credentials = found.answer_headers.get("access-control-allow-credentials")
    assert credentials != "true", "expected no credentials for an origin that nobody has named"


@should("a connection is used for several requests", HTTP + "#name-connection")
def test_keep_alive(api: Api) -> None:
    """Three requests on one socket, the second of them bad."""
    connection = Raw(api.client)
    try:
        good = json.dumps(api.chat_body(**{api.limit: 1})).encode()
        for body in (good, b"not json", good):
            connection.request("POST", "/chat/completions", body)
            status, _ = connection.answer()
            assert (status == 200) == (body is good), f"expected 200, a 4xx and 200, got {status} to {body[:20]!r}"
    finally:
        connection.close()


@must("a request that is sent byte by byte is understood", HTTP)
def test_slow_request(api: Api) -> None:
    """In small pieces, as from a slow network."""
    connection = Raw(api.client)
    try:
        connection.request("GET", "/models", b"", piece=16)
        status, body = connection.answer()
        assert status == 200 and body.lstrip().startswith(b"{"), (
            f"expected 200 and JSON, got {status}: {body[:100]!r}"
        )
    finally:
        connection.close()


@should("HEAD is answered wherever GET is, without a body", HTTP + "#name-head")
@pytest.mark.parametrize("path", ["/models"])
def test_head(client: Client, path: str) -> None:
    """With GET's status and headers."""
    found, whole = client.send("HEAD", path), client.get(path)
    assert found.status == whole.status, f"expected status {whole.status}, got {found.status}"
    assert found.answer == b"", f"expected no body, got {found.answer[:100]!r}"
    assert found.media_type == whole.media_type, f"expected {whole.media_type}, got {found.media_type}"


@must("hostile headers are refused or ignored, and the next request is answered", HTTP)
@pytest.mark.parametrize(
    "line",
    [
        b"x-long: " + b"a" * 100_000,
        b"host: evil.example\r\nhost: other.example",
        b"content-length: -1",
        b"content-length: 99999999999999999999999",
        b"transfer-encoding: nonsense",
        b"content-length: 2\r\ntransfer-encoding: chunked",
        b"bad header line",
        b"x-null: a\x00b",
        b"\r\n ".join([b"x-fold: a", b"b"]),
        b"x-forwarded-for: ::::\r\nx-forwarded-host: ]]]",
        *[b"\r\n".join(b"x-%d: 1" % i for i in range(2000))],
    ],
    ids=[
        "long", "two hosts", "negative", "huge length", "encoding", "smuggling", "no colon", "null", "fold",
        "forwarded", "many",
    ],
)  # fmt: skip
def test_hostile_header(client: Client, api: Api, line: bytes) -> None:
    """A status below 500 or a closed connection; 501 where HTTP itself has it (an unknown transfer coding)."""
    connection = Raw(client)
    try:
        connection.send(f"POST {connection.path('/chat/completions')} HTTP/1.1\r\n".encode())
        is_framing = line.startswith((b"content-length", b"transfer-encoding"))
        body = json.dumps(api.chat_body(**{api.limit: 1})).encode()  # only the header is bad
        length = b"" if is_framing else b"content-length: %d\r\n" % len(body)
        connection.send(connection.head() + length + line + b"\r\n\r\n" + body)
        status = connection.status(3.0)
        assert status < 500 or status == 501, f"expected a 4xx or a closed connection, got {status}"
    finally:
        connection.close()
    assert client.get("/models").status == 200, "expected the next request to be answered"


@should("a body that announces too much is refused before it is read", HTTP + "#status.413")
def test_huge_body(client: Client) -> None:
    """A terabyte: 413, 400 or a closed connection within 5 seconds."""
    connection = Raw(client)
    try:
        connection.send(f"POST {connection.path('/chat/completions')} HTTP/1.1\r\n".encode())
        connection.send(connection.head() + b"content-length: 1099511627776\r\n\r\n{")
        status = connection.status(5.0)
        assert status != -1, "expected an answer within 5 seconds, got none: the server waits for a terabyte"
        assert status in (0, 400, 413), f"expected 413 or 400, got {status}"
    finally:
        connection.close()


@must("metrics are in Prometheus' text format", METRICS)
@needs("metrics")
def test_metrics(client: Client) -> None:
    """Every line is a comment or a sample, each name has one TYPE, and histograms are whole."""
    found = client.get("root:/metrics")
    assert found.status == 200, f"expected 200, got {found.status}"
    assert found.media_type in ("text/plain", "application/openmetrics-text"), (
        f"expected text, got {found.media_type}"
    )
    types: list[str] = []
    for line in found.text.splitlines():
        if line.startswith("# TYPE "):
            types.append(line.split(" ")[2])
        elif line and not line.startswith("#"):
            assert SAMPLE.fullmatch(line), f"expected a sample, got {line!r}"
            float(line.rpartition("}")[2].split()[0] if "}" in line else line.split()[1])
    assert len(types) == len(set(types)), "expected one TYPE for each name"


@should("tokens are counted by the metrics as usage counts them", VLLM)
@needs("metrics")
def test_metrics_count(api: Api) -> None:
    """vllm:prompt_tokens_total and vllm:generation_tokens_total, which dashboards know."""

    def read(name: str) -> float | None:
        lines = api.client.get("root:/metrics").text.splitlines()
        values = [float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[{{ ]", line)]
        return sum(values) if values else None

    before = read("vllm:generation_tokens_total")
    if before is None:
        not_offered("there is no vllm:generation_tokens_total")
    spent = api.chat().ok()["usage"]["completion_tokens"]
    after = read("vllm:generation_tokens_total") or 0.0
    assert after - before >= spent, f"expected {spent} more, got {after - before}"


@must("tokenize and detokenize are each other's inverse", VLLM)
@needs("tokenize", "detokenize")
@pytest.mark.parametrize("text", ["Hello, my", "naïve 東京 🎉", "  two  spaces\n\ttab", "<|im_start|>", ""])
def test_tokenize(api: Api, text: str) -> None:
    """Of any text; count is the number of tokens."""
    body = {"model": api.model, "prompt": text, "add_special_tokens": False}
    found = api.client.post("root:/tokenize", body).ok()
    assert found["count"] == len(found["tokens"]), f"expected count {len(found['tokens'])}, got {found['count']}"
    back = api.client.post("root:/detokenize", {"model": api.model, "tokens": found["tokens"]}).ok()
    assert back.get("prompt") == text, f"expected {text!r}, got {back.get('prompt')!r}"


@must("usage of a chat counts what tokenize counts for its messages", VLLM)
@needs("tokenize")
def test_tokenize_messages(api: Api) -> None:
    """The prompt's tokens, template and all."""
    spent = api.chat("naïve 東京 🎉", **{api.limit: 1}).ok()["usage"]["prompt_tokens"]
    body = {"model": api.model, "messages": [{"role": "user", "content": "naïve 東京 🎉"}]}
    found = api.client.post("root:/tokenize", body).offered("messages")
    if found.status in (400, 422):
        not_offered("tokenize takes no messages")
    count = found.ok()["count"]
    assert spent == count, f"expected {count} prompt tokens, got {spent}"


@should("health is answered without a key", VLLM)
@needs("health")
def test_health(client: Client) -> None:
    """Balancers have none."""
    found = client.get("root:/health", headers={"authorization": None})
    assert found.status == 200, f"expected 200, got {found.status}"


class Raw:
    """A connection on which anything can be sent."""

    def __init__(self, client: Client) -> None:
        url = urlsplit(client.api)
        self._base = url.path
        self._host = url.netloc
        self._key = client.key
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            self._socket = socket.create_connection((url.hostname or "", port), timeout=10)
        except OSError as error:
            not_able(f"no direct connection: {error}")
        if url.scheme == "https":
            self._socket = ssl.create_default_context().wrap_socket(self._socket, server_hostname=url.hostname)

    def path(self, path: str) -> str:
        """Under the API's base."""
        return self._base + path

    def head(self) -> bytes:
        """The headers of every request, without the empty line."""
        key = f"authorization: Bearer {self._key}\r\n" if self._key else ""
        return f"host: {self._host}\r\ncontent-type: application/json\r\n{key}".encode()

    def send(self, data: bytes) -> None:
        """Bytes as they are; that nobody reads them is no error here."""
        try:
            self._socket.sendall(data)
        except OSError:
            return

    def request(self, method: str, path: str, body: bytes, piece: int = 65536) -> None:
        """A whole request, in pieces."""
        head = f"{method} {self.path(path)} HTTP/1.1\r\n".encode() + self.head()
        data = head + b"content-length: %d\r\n\r\n" % len(body) + body
        for i in range(0, len(data), piece):
            self.send(data[i : i + piece])

    def answer(self) -> tuple[int, bytes]:
        """Status and body of one answer with a length; of others, as much as comes at once."""
        data = b""
        while b"\r\n\r\n" not in data and (part := self._receive()):
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 "), f"expected an answer on the same connection, got {data[:100]!r}"
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        while length and len(body) < int(length[1]) and (part := self._receive()):
            body += part
        while not length and not body.endswith(b"0\r\n\r\n") and (part := self._receive()):
            body += part
        return int(head[9:12]), body

    def status(self, seconds: float) -> int:
        """Of the first answer; 0 if the connection is closed without one, -1 if there is silence."""
        self._socket.settimeout(seconds)
        try:
            data = self._socket.recv(4096)
        except TimeoutError:
            return -1
        except OSError:
            return 0
        return int(data[9:12]) if data.startswith(b"HTTP/1.") else 0

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(65536)
        except OSError:
            return b""
