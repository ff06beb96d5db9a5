"""What shows only over time or in company: splits, aborts, concurrency, overload, slow readers."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from .. import sse
from ..capabilities import Capabilities
from ..client import Api, Client, Exchange, content_of
from ..requirement import SSE, group, must, needs, not_offered, should

pytestmark = group("behaviour", "chat")
SEED = "api-reference/chat/create#chat-create-seed"
STREAM = "api-reference/chat/create#chat-create-stream"
CODES = "guides/error-codes/api-errors"
LONG = 400  # tokens of an answer that is abandoned; most of them are never made


def at_once(api: Api, number: int, ask: Callable[[Api, int], Exchange]) -> list[Exchange]:
    """So many requests at the same time; each thread has a client of its own."""

    def one(i: int) -> Exchange:
        client = Client(api.client.api, api.client.key, api.client.timeout)
        own = Api(client, api.model)
        own.limit = api.limit
        try:
            return ask(own, i)
        finally:
            client.close()

    with ThreadPoolExecutor(number) as pool:
        found = list(pool.map(one, range(number)))
    api.client.exchanges += found
    return found


def load(api: Api, capabilities: Capabilities) -> int | None:
    """How many requests the server says that it works on, if it says so."""
    if capabilities.has("load"):
        body = api.client.get("root:/load").json()
        names = [name for name in body if name.startswith("num_requests_")] or ["server_load"]
        return sum(int(body[name]) for name in names)
    if capabilities.has("metrics"):
        lines = api.client.get("root:/metrics").text.splitlines()
        gauges = ("vllm:num_requests_running", "vllm:num_requests_waiting")
        values = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(gauges)]
        return int(sum(values)) if values else None
    return None


def settles(api: Api, capabilities: Capabilities, baseline: int | None, seconds: float) -> None:
    """The load goes back to what it was; where no load is told, an answer comes promptly."""
    until = time.monotonic() + seconds
    if baseline is None:
        began = time.monotonic()
        api.chat(**{api.limit: 1}).ok()
        took = time.monotonic() - began
        assert took < seconds, f"expected an answer within {seconds} s, it took {took:.1f} s"
        return
    now = load(api, capabilities)
    while now is not None and now > baseline and time.monotonic() < until:
        time.sleep(0.1)
        now = load(api, capabilities)
    assert now is not None and now <= baseline, f"expected {baseline} requests after {seconds} s, got {now}"


@must("a stream reads the same at every split of its bytes", SSE)
def test_every_split(api: Api) -> None:
    """Fed to a parser cut in two at every byte, and byte by byte."""
    found = api.chat_stream("Say: naïve 東京 🎉", n=1, **{api.limit: 6})
    expected, data = found.events(), found.answer
    assert sse.parse(data[i : i + 1] for i in range(len(data))) == expected, "expected the same byte by byte"
    for i in range(1, min(len(data), 1500)):
        assert sse.parse((data[:i], data[i:])) == expected, f"expected the same events when split at byte {i}"


@must("a stream is read the same with either line ending in mind: it has one kind", SSE)
def test_line_endings(api: Api) -> None:
    """A mix of LF and CRLF breaks simple clients."""
    data = api.chat_stream(**{api.limit: 2}).answer
    crlf, lf = data.count(b"\r\n"), data.count(b"\n")
    assert crlf in (0, lf), f"expected one kind of line ending, got {crlf} CRLF of {lf}"


@must("a client that leaves a stream stops its work", STREAM)
@needs("streaming")
@pytest.mark.parametrize("n", [1, 3])
def test_abandoned_stream(api: Api, capabilities: Capabilities, n: int) -> None:
    """After its first piece, several times; the load returns to what it was."""
    baseline = load(api, capabilities)
    body = api.chat_body("Count from one to one thousand.", n=n, temperature=1, **{api.limit: LONG}) | {
        "stream": True
    }
    for _ in range(3):
        found = api.client.abandon("/chat/completions", body, after=1)
        if found.status != 200:
            found.offered("n").events()
    settles(api, capabilities, baseline, 5.0)


@must("a client that leaves before the answer stops its work", STREAM)
def test_abandoned_whole(api: Api, capabilities: Capabilities) -> None:
    """The answer is not waited for; the load returns to what it was."""
    baseline = load(api, capabilities)
    body = api.chat_body("Count from one to one thousand.", **{api.limit: LONG})
    for _ in range(3):
        api.client.post("/chat/completions", body, timeout=0.05)
    settles(api, capabilities, baseline, 10.0)


@must("after a hundred clients that leave, answers are what they were", STREAM)
@needs("streaming")
def test_many_aborts(api: Api, capabilities: Capabilities) -> None:
    """Sixteen at a time, at different moments; nothing is left behind."""
    baseline, before = load(api, capabilities), content_of(api.chat().ok())
    at_once(
        api,
        16,
        lambda own, i: [
            own.client.abandon("/chat/completions", own.chat_body(**{own.limit: 64}) | {"stream": True}, i % 5)
            for _ in range(6)
        ][-1],
    )
    settles(api, capabilities, baseline, 10.0)
    after = content_of(api.chat().ok())
    assert after == before, f"expected {before!r} as before, got {after!r}"


@should("one seed gives one answer in any company", SEED)
def test_seed_in_company(api: Api, repeats: int) -> None:
    """Eight at once with one seed, among others with other seeds, against the answer alone."""
    fields = {"temperature": 1, api.limit: 16}
    alone = content_of(api.chat("Name an animal.", seed=11, **fields).ok())
    for _ in range(repeats):
        found = at_once(api, 8, lambda own, i: own.chat("Name an animal.", seed=11 if i % 2 else 100 + i, **fields))
        texts = {content_of(exchange.ok()) for exchange in found[1::2]}
        assert texts == {alone}, f"expected {alone!r} each time, got {sorted(texts)}"


@must("answers at the same time are not mixed up", STREAM)
@needs("streaming")
def test_not_mixed(api: Api) -> None:
    """Streams of different questions, each against its answer alone (greedy, so that it repeats)."""
    questions = [f"Count from {i} to {i + 9}." for i in range(6)]
    alone = [[content_of(api.chat(question).ok()) for _ in range(2)] for question in questions]
    found = at_once(api, 6, lambda own, i: own.chat_stream(questions[i]))
    for i, exchange in enumerate(found):
        ids = {payload["id"] for payload in exchange.payloads()}  # type: ignore[attr-defined]
        assert len(ids) == 1, f"expected one id in a stream, got {ids}"
        if alone[i][0] == alone[i][1]:
            text = exchange.content()  # type: ignore[attr-defined]
            assert text == alone[i][0], f"expected {alone[i][0]!r}, got {text!r}"


@must("under more load than it takes a server answers, or refuses with 429 or 503", CODES)
def test_overload(api: Api) -> None:
    """64 requests at once; each gets one of the three."""
    found = at_once(api, 64, lambda own, i: own.chat(f"Say {i}.", **{own.limit: 2}))
    statuses = sorted({exchange.status for exchange in found})
    assert set(statuses) <= {200, 429, 503}, f"expected 200, 429 or 503, got {statuses}"
    api.chat(**{api.limit: 1}).ok()


@should("a refusal under load says when to try again", "guides/rate-limits")
def test_retry_after(api: Api) -> None:
    """Retry-After, in seconds."""
    found = at_once(api, 64, lambda own, i: own.chat(f"Say {i}.", **{own.limit: 2}))
    refused = [exchange for exchange in found if exchange.status in (429, 503)]
    if not refused:
        not_offered("all 64 requests were answered")
    missing = [exchange for exchange in refused if "retry-after" not in exchange.answer_headers]
    assert not missing, f"expected Retry-After in all {len(refused)} refusals, missing in {len(missing)}"


@must("a slow reader gets the whole answer", STREAM)
@needs("streaming")
def test_slow_reader(api: Api) -> None:
    """A pause after each piece."""
    whole = api.chat_stream(**{api.limit: 12}).content()
    found = api.client.slowly("/chat/completions", api.chat_body(**{api.limit: 12}), 0.05)
    assert found.content() == whole, f"expected {whole!r}, got {found.content()!r}"


@must("a slow reader does not delay others", STREAM)
@needs("streaming")
def test_slow_reader_alone(api: Api) -> None:
    """While three read slowly, others are answered about as fast as before."""
    began = time.monotonic()
    api.chat(**{api.limit: 4}).ok()
    usual = time.monotonic() - began

    def ask(own: Api, i: int) -> Exchange:
        if i < 3:
            return own.client.slowly("/chat/completions", own.chat_body(**{own.limit: 24}), 0.1)
        time.sleep(0.2)
        return own.chat(**{own.limit: 4})

    found = at_once(api, 6, ask)
    slowest = max(exchange.seconds for exchange in found[3:])
    for exchange in found[3:]:
        exchange.ok()
    assert slowest < 2.0 + 10 * usual, f"expected about {usual:.1f} s, it took {slowest:.1f} s"


@must("the same request as a stream and whole, many times at once, says the same", STREAM)
@needs("streaming")
def test_stream_equals_whole_in_company(api: Api) -> None:
    """Eight at once, greedy."""
    first, second = (content_of(api.chat(**{api.limit: 12}).ok()) for _ in range(2))
    if first != second:
        not_offered("temperature 0 does not repeat")

    def ask(own: Api, i: int) -> Exchange:
        return own.chat_stream(**{own.limit: 12}) if i % 2 else own.chat(**{own.limit: 12})

    for i, exchange in enumerate(at_once(api, 8, ask)):
        text = exchange.content() if i % 2 else content_of(exchange.ok())  # type: ignore[attr-defined]
        assert text == first, f"expected {first!r}, got {text!r}"
