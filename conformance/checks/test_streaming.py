"""``stream: true`` of chat: the events, and that they say what the whole answer says."""

from __future__ import annotations

from typing import Any

import pytest

from ..client import Api, Json, Stream, content_of, middle_of
from ..requirement import SSE, Violation, group, must, not_able, not_offered, should
from ..schema import validate

pytestmark = group("streaming", "chat", "streaming")
CREATE = "api-reference/chat/create#chat-create-stream"
CHUNK = "api-reference/chat-streaming/streaming"
OPTIONS = "api-reference/chat/create#chat-create-stream_options"


def streamed(api: Api, memory: dict[str, Any]) -> Stream:
    """One stream that several checks look at."""
    if "stream" not in memory:
        memory["stream"] = api.chat_stream(temperature=0, **{api.limit: 16})
    found: Stream = memory["stream"]
    api.client.exchanges.append(found)
    return found


@must("the content type is text/event-stream", CREATE)
def test_content_type(api: Api, memory: dict[str, Any]) -> None:
    """Whatever the client accepts."""
    streamed(api, memory).events()


@must("every chunk is a chat.completion.chunk, with no null that the schema lacks", CHUNK)
def test_chunks(api: Api, memory: dict[str, Any]) -> None:
    """Strictly typed."""
    for chunk in streamed(api, memory).payloads():
        validate("chat chunk", chunk)


@must("the first chunk of a choice has the role", CHUNK)
def test_role_first(api: Api, memory: dict[str, Any]) -> None:
    """Clients build the message from it."""
    first = streamed(api, memory).choices()[0]["delta"]
    assert first.get("role") == "assistant", f"expected role assistant in the first delta, got {first}"


@should("the role comes once", CHUNK)
def test_role_once(api: Api, memory: dict[str, Any]) -> None:
    """Clients that join every field would get it many times."""
    number = sum("role" in choice["delta"] for choice in streamed(api, memory).choices())
    assert number == 1, f"expected one delta with a role, got {number}"


@must("id, model and created are the same in all chunks", CHUNK)
@pytest.mark.parametrize("name", ["id", "model", "created"])
def test_constant(api: Api, memory: dict[str, Any], name: str) -> None:
    """One answer, one identity."""
    values = {str(chunk.get(name)) for chunk in streamed(api, memory).payloads()}
    assert len(values) == 1, f"expected one {name}, got {sorted(values)}"


@must("a choice has one finish_reason, in its last chunk", CHUNK)
def test_one_finish(api: Api, memory: dict[str, Any]) -> None:
    """Null in all before it."""
    reasons = [choice.get("finish_reason") for choice in streamed(api, memory).choices()]
    assert reasons[-1] in ("stop", "length", "content_filter"), f"expected a reason at the end, got {reasons}"
    assert not any(reasons[:-1]), f"expected null before the end, got {reasons}"


@must("the stream ends with data: [DONE], once, and nothing after it", CREATE)
def test_done(api: Api, memory: dict[str, Any]) -> None:
    """Clients read until then."""
    found = streamed(api, memory)
    data = [event.data for event in found.events()]
    assert data.count("[DONE]") == 1, f"expected one [DONE], got {data.count('[DONE]')}"
    assert data[-1] == "[DONE]", f"expected [DONE] at the end, got {data[-1][:200]!r}"
    rest = found.answer.rpartition(b"[DONE]")[2].strip()
    assert not rest, f"expected nothing after [DONE], got {rest[:100]!r}"


@must("every event ends with an empty line, the last one too", SSE)
def test_last_event_ends(api: Api, memory: dict[str, Any]) -> None:
    """A browser drops an event without it."""
    end = streamed(api, memory).answer[-4:]
    assert end.endswith((b"\n\n", b"\r\n\r\n", b"\r\r")), f"expected an empty line at the end, got {end!r}"


@must("the joined deltas are the text of the whole answer", CREATE)
@pytest.mark.parametrize(
    "question", ["Say hello.", "Count from one to ten.", "Say it in Greek: γειά, 東京, 🎉."], ids=["a", "b", "c"]
)
def test_equals_whole(api: Api, question: str) -> None:
    """Greedy; where the whole answer itself varies there is nothing to compare with."""
    fields = {api.limit: 24}
    wholes = [content_of(api.chat(question, **fields).ok()) for _ in range(2)]
    text = api.chat_stream(question, **fields).content()
    if wholes[0] != wholes[1]:
        not_able("temperature 0 does not repeat, so that nothing can be compared")
    assert text == wholes[0], f"expected {wholes[0]!r}, got {text!r}"


@must("finish_reason is that of the whole answer", CREATE)
@pytest.mark.parametrize("limit", [1, 24])
def test_finish_equals_whole(api: Api, limit: int) -> None:
    """With a limit that cuts, and with a longer one."""
    whole = api.chat(**{api.limit: limit}).ok()["choices"][0]["finish_reason"]
    last = api.chat_stream(**{api.limit: limit}).choices()[-1].get("finish_reason")
    assert last == whole, f"expected {whole!r}, got {last!r}"


@must("no usage unless it is asked for", OPTIONS)
def test_no_usage(api: Api, memory: dict[str, Any]) -> None:
    """And no chunk without choices."""
    chunks = streamed(api, memory).payloads()
    assert not any(chunk.get("usage") for chunk in chunks), "expected no usage"
    assert all(chunk.get("choices") for chunk in chunks), "expected choices in every chunk"


def with_usage(api: Api, **fields: Any) -> list[Json]:
    """The chunks of a stream that was asked for its usage."""
    return api.chat_stream(stream_options={"include_usage": True}, **fields).offered("stream_options").payloads()


@must("with include_usage the last chunk has the usage, and empty choices", OPTIONS)
def test_usage_last(api: Api) -> None:
    """All others have a null usage, or none."""
    chunks = with_usage(api)
    for chunk in chunks:
        validate("chat chunk", chunk, strict=False)
    assert isinstance(chunks[-1].get("usage"), dict), "expected usage in the last chunk"
    assert chunks[-1].get("choices") == [], f"expected choices: [], got {chunks[-1].get('choices')}"


@should("with include_usage all other chunks have usage: null", OPTIONS)
def test_usage_null_before(api: Api) -> None:
    """So says the reference."""
    for chunk in with_usage(api)[:-1]:
        assert "usage" in chunk and chunk["usage"] is None, "expected usage: null in every chunk but the last"


@must("usage of a stream is that of the whole answer", OPTIONS)
def test_usage_equals_whole(api: Api) -> None:
    """The counts; what was cached may differ."""
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    whole = api.chat().ok()["usage"]
    usage = with_usage(api)[-1].get("usage") or {}
    for name in names:
        assert usage.get(name) == whole[name], f"expected {name} {whole[name]}, got {usage.get(name)}"


@must("with n each chunk names its choice, and each choice is complete", "api-reference/chat/create#chat-create-n")
def test_n(api: Api) -> None:
    """Sampled: n beside temperature 0 is not what is asked here."""
    found = api.chat_stream(n=3, temperature=1)
    if found.status == 400 and found.error_param() == "n":
        not_offered("n is refused by name in a stream")
    indexes = {choice["index"] for chunk in found.payloads() for choice in chunk["choices"]}
    assert indexes == {0, 1, 2}, f"expected indexes 0, 1, 2, got {sorted(indexes)}"
    for index in range(3):
        own = found.choices(index)
        assert own[0]["delta"].get("role") == "assistant", f"expected a role first in choice {index}"
        assert [bool(choice.get("finish_reason")) for choice in own].count(True) == 1, f"expected one end in {index}"


@should("the choices of a stream come interleaved", "api-reference/chat/create#chat-create-n")
def test_n_interleaved(api: Api) -> None:
    """Not one after another: nobody should wait for the second until the first is done."""
    found = api.chat_stream("Count from one to ten.", n=2, temperature=1, **{api.limit: 16})
    found.offered("n")
    choices = [choice for chunk in found.payloads() for choice in chunk["choices"]]
    order = [choice["index"] for choice in choices if choice["delta"].get("content")]
    if min(order.count(0), order.count(1)) < 5:
        not_able("its answers are too short")
    changes = sum(a != b for a, b in zip(order, order[1:], strict=False))
    assert changes > 1, f"expected chunks of both in turns, got {order}"


@must("text in a stream is UTF-8 without characters broken over chunks", SSE)
def test_characters_are_whole(api: Api) -> None:
    """Emoji and newlines in the question make answers with them more likely; a chunk is never half a character."""
    question = "Repeat after me: naïve 東京 🎉🎉\n\nline two\r\n🇫🇷"
    fields = {api.limit: 24, "temperature": 1, "seed": 3}
    streamed_text = api.chat_stream(question, **fields).content()
    whole = [content_of(api.chat(question, **fields).ok()) for _ in range(2)]
    if whole[0] == whole[1] and streamed_text.count("\ufffd") > whole[0].count("\ufffd"):
        raise Violation(f"expected no broken characters, got {streamed_text!r} for {whole[0]!r}")


@must("newlines in text never break an event", SSE)
def test_newlines(api: Api) -> None:
    """Events are one line of JSON each: a raw newline would end the line."""
    chunks = api.chat_stream("Write two lines.\n\nThen two more.", **{api.limit: 16}).payloads()
    assert all(chunk.get("choices") for chunk in chunks), "expected choices in every chunk"


@should("the first text comes before the answer is complete", CREATE)
def test_first_token_early(api: Api) -> None:
    """Not all at the end: several pieces, at different times."""
    found = api.chat_stream("Count from one to twenty.", **{api.limit: 48})
    if len(found.choices()) < 12:
        not_able("its answer is too short")
    if found.seconds < 0.02:
        not_able("its answer comes too fast to see")
    times = [when for when, _ in found.pieces]
    assert len(times) > 2, f"expected the stream in several pieces, got {len(times)}"
    assert times[0] < times[-1], "expected time between the first piece and the last"


@must("stop strings never appear in a stream, not even in part", "api-reference/chat/create#chat-create-stop")
def test_stop(api: Api) -> None:
    """The joined text is what stands before the stop string."""
    for question in ("Say hello.", "Count from one to ten."):
        whole = content_of(api.chat(question, **{api.limit: 24}).ok())
        if stop := middle_of([whole])[1]:
            found = api.chat_stream(question, stop=stop, **{api.limit: 24})
            expected = whole[: whole.find(stop)]
            assert found.content() == expected, f"expected {expected!r}, got {found.content()!r}"
            assert found.choices()[-1].get("finish_reason") == "stop", "expected finish_reason stop"
            return
    not_able("its answers are too short to stop inside them")


@must("a request that is refused gets its status, not a stream with an error in it", "guides/error-codes/api-errors")
def test_refused_before_the_stream(api: Api) -> None:
    """What can be known before the first token is an HTTP status."""
    found = api.chat_stream(temperature="hot")
    found.refused(400, 422)


@must("stream_options needs stream", OPTIONS)
def test_options_without_stream(api: Api) -> None:
    """Refused, or without effect; never a stream."""
    found = api.chat(stream_options={"include_usage": True})
    if found.status != 200:
        found.refused(400, 422)
        return
    found.ok()


@should("a stream may not be cached or buffered on its way", SSE)
def test_headers(api: Api, memory: dict[str, Any]) -> None:
    """Cache-Control: no-cache (or no-store), and no Content-Length."""
    headers = streamed(api, memory).answer_headers
    control = headers.get("cache-control", "")
    assert "no-cache" in control or "no-store" in control, f"expected Cache-Control: no-cache, got {control!r}"
    assert "content-length" not in headers, "expected no Content-Length"
