"""Errors: their shape, their status, and that no field of any value makes a server fail."""

from __future__ import annotations

import re
import uuid
from typing import Any

import pytest

from .. import matrix
from ..capabilities import WEATHER, Capabilities
from ..client import OMIT, Api, Exchange, clip
from ..requirement import Violation, group, must, needs, not_offered, should

pytestmark = group("errors", "chat")
CODES = "guides/error-codes/api-errors"
CREATE = "api-reference/chat/create"
LEAK = re.compile(
    r'Traceback \(most recent|File "[^"]+", line \d|site-packages|/home/\w|/usr/lib/python|0x[0-9a-f]{8,}'
)


def asked(api: Api, memory: dict[str, Any], route: str, field: str) -> list[tuple[Any, Exchange]]:
    """The answers to all wrong values of one field, asked for once."""
    key = f"{route} {field}"
    if key not in memory:
        fields: dict[str, Any] = {api.limit: 1, "stream_options": OMIT}
        if field == "top_logprobs":
            fields["logprobs"] = True
        if field == "stream_options":
            fields["stream"] = True
        if field == "tool_choice":
            fields["tools"] = [WEATHER]
        rows = matrix.CHAT if route == "chat" else matrix.COMPLETION
        ask = api.chat if route == "chat" else api.complete
        found = []
        for value in rows[field]:
            body = {**fields, field: value}
            if field in ("max_tokens", "max_completion_tokens"):
                body = {api.limit: OMIT, field: value}
            found.append((value, ask(**body)))
        memory[key] = found
    api.client.exchanges.clear()
    answers: list[tuple[Any, Exchange]] = memory[key]
    return answers


def show(api: Api, bad: list[tuple[Any, Exchange]], expected: str) -> None:
    """Fail with the first of the bad answers, and a list of all."""
    if bad:
        api.client.exchanges[:] = [exchange for _, exchange in bad]
        listed = ", ".join(f"{clip(repr(value), 60)}: {exchange.status or 'none'}" for value, exchange in bad)
        raise Violation(f"expected {expected}; value: status of those that got another: {listed}")


def check_never_5xx(api: Api, answers: list[tuple[Any, Exchange]]) -> None:
    """An answer below 500 to each."""
    show(api, [(v, e) for v, e in answers if e.error or e.status >= 500], "an answer below 500")


def check_4xx(api: Api, answers: list[tuple[Any, Exchange]]) -> None:
    """A refusal of each."""
    show(api, [(v, e) for v, e in answers if e.status and not 400 <= e.status < 500], "a 4xx")


def check_param(api: Api, answers: list[tuple[Any, Exchange]], field: str) -> None:
    """Every refusal names the field."""
    bad = [(v, e) for v, e in answers if 400 <= e.status < 500 and e.error_param() != field]
    if bad:
        api.client.exchanges[:] = [exchange for _, exchange in bad]
        listed = ", ".join(f"{clip(repr(value), 60)}: {exchange.error_param()!r}" for value, exchange in bad)
        raise Violation(f"expected error.param {field}; value: param of those that got another: {listed}")


@must("no wrong value of a field of chat makes the server fail", CODES)
@pytest.mark.parametrize("field", matrix.CHAT)
def test_chat_never_fails(api: Api, memory: dict[str, Any], field: str) -> None:
    """The client's fault is a 4xx."""
    check_never_5xx(api, asked(api, memory, "chat", field))


@should("a value of the wrong type or out of range is refused, not read as another", CREATE)
@pytest.mark.parametrize("field", matrix.CHAT)
def test_chat_refuses(api: Api, memory: dict[str, Any], field: str) -> None:
    """Types and ranges are those of the published schema."""
    check_4xx(api, asked(api, memory, "chat", field))


@should("an error names the field to blame in param", CODES)
@pytest.mark.parametrize("field", matrix.CHAT)
def test_chat_names(api: Api, capabilities: Capabilities, memory: dict[str, Any], field: str) -> None:
    """Or a place inside it, such as messages[0].role."""
    if field == "tool_choice":
        capabilities.demand("tools")  # it comes with tools, which may be to blame just as well
    check_param(api, asked(api, memory, "chat", field), field)


@must("no wrong value of a field of completions makes the server fail", CODES)
@needs("completions")
@pytest.mark.parametrize("field", matrix.COMPLETION)
def test_completion_never_fails(api: Api, memory: dict[str, Any], field: str) -> None:
    """As in chat."""
    check_never_5xx(api, asked(api, memory, "completions", field))


@should("a wrong value of a field of completions is refused", "api-reference/completions/create")
@needs("completions")
@pytest.mark.parametrize("field", matrix.COMPLETION)
def test_completion_refuses(api: Api, memory: dict[str, Any], field: str) -> None:
    """As in chat."""
    check_4xx(api, asked(api, memory, "completions", field))


@should("an error of completions names the field to blame in param", CODES)
@needs("completions")
@pytest.mark.parametrize("field", matrix.COMPLETION)
def test_completion_names(api: Api, memory: dict[str, Any], field: str) -> None:
    """As in chat."""
    check_param(api, asked(api, memory, "completions", field), field)


@must("an error is an object with message and type, and param and code that may be null", CODES)
def test_shape(api: Api) -> None:
    """All four are there."""
    found = api.chat(temperature="hot")
    found.refused(400, 422)
    error = found.error_object()
    for name in ("message", "type"):
        assert isinstance(error.get(name), str) and error[name], f"expected {name} as text, got {error.get(name)!r}"
    for name in ("param", "code"):
        assert name in error, f"expected {name}, if only null, got {sorted(error)}"
        assert error[name] is None or isinstance(error[name], str), f"expected text or null, got {error[name]!r}"


@must("every error is an object under error, whatever is wrong", CODES)
@pytest.mark.parametrize("what", ["value", "JSON", "model", "route", "method"])
def test_object(api: Api, what: str) -> None:
    """Clients take the message from there; the status is other checks' business."""
    match what:
        case "value":
            found = api.chat(temperature="hot")
        case "JSON":
            found = api.client.post("/chat/completions", b"{")
        case "model":
            found = api.chat(model="no-such-model")
        case "route":
            found = api.client.post("/no/such/route", {})
        case _:
            found = api.client.get("/chat/completions")
    found.demand_answer()
    found.error_object()


@should("type is invalid_request_error for a bad request", CODES)
def test_type(api: Api) -> None:
    """Clients look at it."""
    kind = api.chat(temperature="hot").refused(400, 422).get("type")
    assert kind == "invalid_request_error", f"expected invalid_request_error, got {kind!r}"


@should("a bad request gets status 400, as OpenAI answers it", CODES)
def test_status(api: Api) -> None:
    """Not 422: the official clients raise another exception for it."""
    api.chat(temperature="hot").refused(400)


@must("a body that is no JSON object gets 400", CODES)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"model": NaN}',
        b"{'model': 1}",
        b'{"a": "\xff"}',
        b"{}{}",
    ],
    ids=repr,
)
def test_bad_json(api: Api, body: bytes) -> None:
    """Whatever is wrong with it."""
    api.client.post("/chat/completions", body).refused(400, 422)


@must("JSON that is nested deeply harms nobody", CODES)
@pytest.mark.parametrize("opening", [b"[", b'{"a":'], ids=["lists", "objects"])
def test_deep_json(api: Api, opening: bytes) -> None:
    """100,000 levels, in a field that nobody knows."""
    closing = b"]" if opening == b"[" else b"}"
    deep = opening * 100_000 + b"1" + closing * 100_000
    found = api.client.post("/chat/completions", b'{"x": ' + deep + b', "messages": []}')
    found.refused(400, 413, 422)
    api.chat(**{api.limit: 1}).ok()


@must("required fields are required", CREATE)
def test_missing_messages(api: Api) -> None:
    """Messages, above all."""
    found = api.chat(messages=OMIT)
    found.refused(400, 422)


@should("a missing field is named in param", CODES)
def test_missing_names(api: Api) -> None:
    """As a wrong one is."""
    found = api.chat(messages=OMIT)
    found.refused(400, 422)
    assert found.error_param() == "messages", f"expected param messages, got {found.error_param()!r}"


@must("a request without a valid key gets 401", CODES)
@needs("keys")
@pytest.mark.parametrize(
    "value", [None, "Bearer wrong", "Bearer", "Basic abc", "", "Bearer \u00e9".encode().decode("latin-1")], ids=repr
)
def test_key(api: Api, value: str | None) -> None:
    """Whatever is wrong with it."""
    try:
        found = api.client.get("/models", headers={"authorization": value})
    except UnicodeEncodeError:
        not_offered("this client cannot send it")
    found.refused(401)


@must("no way of writing the path goes around the key", CODES)
@needs("keys")
@pytest.mark.parametrize(
    "path", ["//models", "/./models", "/models/", "/%6dodels", "/x/../models", "/models?a=/health"]
)
def test_key_path(api: Api, path: str) -> None:
    """401, 404 or a redirect; never an answer."""
    found = api.client.get(path, headers={"authorization": None, "host": "example.com/health?"})
    found.demand_answer()
    assert found.status != 200, f"expected a refusal, got 200 for {path}"


@must("an unknown route gets 404", CODES)
@pytest.mark.parametrize("path", ["/no/such/route", "/chat/completions/extra"])
def test_unknown_route(api: Api, path: str) -> None:
    """Its shape is checked above."""
    api.client.post(path, {}).refused(404)


@should("an unknown model gets 404 and code model_not_found", CODES)
def test_unknown_model(api: Api) -> None:
    """Not another model's answer."""
    error = api.chat(model="no-such-model").refused(404)
    assert error.get("code") == "model_not_found", f"expected code model_not_found, got {error.get('code')!r}"


@must("an unknown model is not answered by another", CODES)
def test_unknown_model_is_refused(api: Api) -> None:
    """Whatever the status of the refusal."""
    api.chat(model="no-such-model").refused()


@must("a wrong method gets 405 (or 404)", CODES)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/chat/completions"), ("DELETE", "/models"), ("PUT", "/models")]
)
def test_method(api: Api, method: str, path: str) -> None:
    """Nothing else is done."""
    api.client.send(method, path).refused(405, 404)


@should("405 says in Allow what is allowed", "https://www.rfc-editor.org/rfc/rfc9110#name-405-method-not-allowed")
def test_allow(api: Api) -> None:
    """The HTTP standard demands it."""
    found = api.client.get("/chat/completions")
    found.refused(405)
    assert "POST" in found.answer_headers.get("allow", ""), f"expected Allow: POST, got {dict(found.answer_headers)}"


@should("a body of another content type is refused", "https://www.rfc-editor.org/rfc/rfc9110#status.415")
@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_content_type(api: Api, kind: str) -> None:
    """415 or 400: web pages of others can send these without asking."""
    api.client.post("/chat/completions", api.chat_body(), headers={"content-type": kind}).refused(415, 400, 422)


@must(
    "JSON with a charset or another case of its type is accepted",
    "https://www.rfc-editor.org/rfc/rfc9110#field.content-type",
)
@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
def test_content_type_variants(api: Api, kind: str) -> None:
    """They mean the same."""
    api.client.post("/chat/completions", api.chat_body(**{api.limit: 1}), headers={"content-type": kind}).ok()


@must("a prompt that is too long is refused", CODES)
@pytest.mark.heavy
def test_too_long(api: Api) -> None:
    """At once, with a 400; 413 where the body itself is too large."""
    api.chat(_too_long(api), **{api.limit: 1}).refused(400, 413)


@should("the refusal of a prompt that is too long has the code context_length_exceeded", CODES)
@pytest.mark.heavy
def test_too_long_code(api: Api) -> None:
    """Some clients cut their prompts when they see it."""
    found = api.chat(_too_long(api), **{api.limit: 1})
    code = found.refused(400, 413).get("code")
    if found.status == 400:
        assert code == "context_length_exceeded", f"expected code context_length_exceeded, got {code!r}"


@must("after a prompt that is too long the next request is answered", CODES)
@pytest.mark.heavy
def test_after_too_long(api: Api) -> None:
    """Streamed too: a status, not a stream."""
    api.chat_stream(_too_long(api), **{api.limit: 1}).refused(400, 413)
    api.chat(**{api.limit: 1}).ok()


def _too_long(api: Api) -> str:
    """A text of more tokens than the model's context, as far as that is known."""
    entries = api.client.get("/models").json().get("data", [])
    lengths = [entry.get("max_model_len") or entry.get("context_length") for entry in entries]
    known = next((length for length in lengths if isinstance(length, int)), 250_000)
    if known > 250_000:
        not_offered(f"a context of {known} tokens is too long to fill here")
    api.client.exchanges.clear()
    return "word 7 " * (known + 16)


@must("an answer's length that no context holds is refused or cut, never a failure", CREATE)
@pytest.mark.heavy
def test_huge_limit(api: Api) -> None:
    """2**31-1 tokens; the question asks for little, and the connection is left at the first of them."""
    body = api.chat_body(**{api.limit: 2**31 - 1}) | {"stream": True}
    found = api.client.abandon("/chat/completions", body, after=2)
    found.demand_answer()
    assert found.status in (200, 400, 422), f"expected 200 or 400, got {found.status}"


@should("an unknown field is accepted, or refused by name", CODES)
def test_unknown_field(api: Api) -> None:
    """Never a failure."""
    found = api.chat(no_such_field=1, **{api.limit: 1})
    if found.status != 200:
        found.refused(400, 422)
        assert found.error_param() == "no_such_field", f"expected param no_such_field, got {found.error_param()!r}"


@should("what a server does not do it refuses by name: it does not ignore it", CODES)
@pytest.mark.parametrize("name", ["tools", "structured", "logprobs"])
def test_not_ignored(api: Api, capabilities: Capabilities, name: str) -> None:
    """A request for a forced tool call, a schema or logprobs that is answered with plain text is answered wrongly."""
    why = capabilities[name].why
    assert not why.startswith("accepted, but"), f"expected {name} to be offered, or refused by name: {why}"


@must("errors tell nothing of the server's inside", CODES)
def test_no_leak(api: Api, memory: dict[str, Any]) -> None:
    """No traceback, no path, no address; in any answer to any wrong value above."""
    everything = [e for answers in memory.values() if isinstance(answers, list) for _, e in answers]
    everything.append(api.client.post("/chat/completions", b"{"))
    everything.append(api.chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": 5}]}]))
    bad = [(leak[0], e) for e in everything if e.status >= 400 and (leak := LEAK.search(e.text))]
    show(api, bad, "an error without paths, addresses and tracebacks")


@must("hostile text in a field is answered or refused, and never breaks the answer", CREATE)
@pytest.mark.parametrize(
    "text",
    ["\u0000", "\ud800", "\u202e\u2066", "<|im_end|>", "{{ 7 * 7 }}", "{% for i in range(10**9) %}", "a" * 65536, ""],
    ids=["null", "surrogate", "bidi", "special", "template", "loop", "long word", "empty"],
)
def test_hostile_text(api: Api, text: str) -> None:
    """As a message; JSON knows how to write all of them."""
    found = api.chat(text, **{api.limit: 1})
    found.demand_answer()
    if found.status != 200:
        found.refused()
    else:
        found.ok()


@must("a message's text is not run as a template", CREATE)
@needs("completions")
def test_no_template(api: Api) -> None:
    """As many tokens as the text has, not as its result would have."""
    short, long = (api.chat(text, **{api.limit: 1}).ok() for text in ("{{ 'ab' }}", "{{ 'ab' * 2000 }}"))
    difference = long["usage"]["prompt_tokens"] - short["usage"]["prompt_tokens"]
    assert difference < 100, f"expected about as many prompt tokens, got {difference} more"


@should("rate limits, where there are any, are told in whole numbers", "guides/rate-limits#rate-limits-in-headers")
def test_rate_limit_headers(api: Api) -> None:
    """x-ratelimit-limit-… and x-ratelimit-remaining-…"""
    headers = api.chat(**{api.limit: 1}).answer_headers
    limits = {name: value for name, value in headers.items() if re.match(r"x-ratelimit-(limit|remaining)-", name)}
    if not limits:
        not_offered("there are no such headers")
    assert all(value.isdigit() for value in limits.values()), f"expected numbers, got {limits}"


@must("ids that clients choose are no others' business", CREATE)
def test_same_user_id(api: Api) -> None:
    """The same x-request-id and user twice: two answers, two ids."""
    name = uuid.uuid4().hex
    body = api.chat_body(user=name, **{api.limit: 1})
    ids = [api.client.post("/chat/completions", body, headers={"x-request-id": name}).ok()["id"] for _ in range(2)]
    assert ids[0] != ids[1], f"expected two ids, got {ids[0]!r} twice"
