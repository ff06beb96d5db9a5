"""Log-probabilities of chat."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ..client import Api, Exchange, Json, choice_of, content_of
from ..requirement import group, must, needs, not_able, should
from ..schema import validate

pytestmark = group("logprobs", "chat", "logprobs")
CREATE = "api-reference/chat/create#chat-create-logprobs"
TOP = "api-reference/chat/create#chat-create-top_logprobs"
OBJECT = "api-reference/chat/object#chat-object-choices-logprobs"


def entries(found: Exchange, index: int = 0) -> list[Json]:
    """What a whole answer says of its tokens."""
    body = found.ok()
    validate("chat", body, strict=False)
    logprobs = choice_of(body, index)["logprobs"]
    assert isinstance(logprobs, dict), f"expected logprobs, got {logprobs!r}"
    content: list[Json] = logprobs["content"]
    return content


@must("logprobs are null unless asked for", CREATE)
def test_none(api: Api) -> None:
    """Not an empty object."""
    body = api.chat().ok()
    assert choice_of(body)["logprobs"] is None, f"expected null, got {choice_of(body)['logprobs']}"


@must("logprobs have content and refusal, its entries token, logprob, bytes and top_logprobs", OBJECT)
def test_shape(api: Api) -> None:
    """Strictly typed."""
    validate("chat", api.chat(logprobs=True, top_logprobs=2).offered("top_logprobs").ok())


@must("there is one entry for each completion token", OBJECT)
@pytest.mark.parametrize("limit", [1, 12])
def test_count(api: Api, limit: int) -> None:
    """A last one for the end of the answer may be there or not, as the usage may count it or not."""
    found = api.chat(logprobs=True, **{api.limit: limit})
    number, spent = len(entries(found)), found.ok()["usage"]["completion_tokens"]
    slack = 1 if choice_of(found.ok())["finish_reason"] == "stop" else 0
    assert abs(number - spent) <= slack, f"expected {spent} entries, got {number}"


@must("the bytes of the entries are those of the text", OBJECT)
def test_bytes(api: Api) -> None:
    """They are there for characters that several tokens make up; the end of the answer may have null, or a name."""
    found = api.chat("Repeat: naïve 東京 🎉", logprobs=True, **{api.limit: 24})
    content = entries(found)
    joined = b"".join(bytes(entry["bytes"] or []) for entry in content)
    text = content_of(found.ok())
    if "\ufffd" in text:
        joined_text = joined.decode("utf-8", "replace")
        assert text.split("\ufffd")[0] == joined_text.split("\ufffd")[0], f"expected {text!r}, got {joined_text!r}"
        return
    rest = joined.removeprefix(text.encode())
    assert joined.startswith(text.encode()), f"expected the bytes of {text!r}, got {joined!r}"
    last = bytes(content[-1]["bytes"] or []) if content else b""
    assert rest in (b"", last), f"expected nothing after the text but an end, got {rest!r}"


@must("no probability is above 1, and all are finite", OBJECT)
def test_range(api: Api) -> None:
    """-9999.0 stands for a very unlikely token."""
    for entry in entries(api.chat(logprobs=True, top_logprobs=5, **{api.limit: 12})):
        for item in (entry, *entry["top_logprobs"]):
            value = item["logprob"]
            assert math.isfinite(value) and value <= 1e-6, f"expected a finite value of 0 at most, got {value}"


@must("top_logprobs gives so many alternatives", TOP)
@pytest.mark.parametrize("number", [0, 1, 5, 20])
def test_top(api: Api, number: int) -> None:
    """0 to 20. Some servers add the sampled token, which is allowed for where it is not among them."""
    for entry in entries(api.chat(logprobs=True, top_logprobs=number, **{api.limit: 3}).offered("top_logprobs")):
        found = len(entry["top_logprobs"])
        assert found == number, f"expected {number} alternatives, got {found}"


@must("top_logprobs above 20 or below 0 is refused", TOP)
@pytest.mark.parametrize("number", [-1, 21])
def test_too_many(api: Api, number: int) -> None:
    """Where a server allows more, the excess is still refused at some point; the reference says 20."""
    api.chat(logprobs=True, top_logprobs=number, **{api.limit: 1}).refused(400, 422)


@must("top_logprobs needs logprobs: true", TOP)
def test_top_alone(api: Api) -> None:
    """Must be set to true if this parameter is used, the reference says."""
    api.chat(top_logprobs=2).refused(400, 422)


@must("alternatives come in order, the likeliest first, each once", TOP)
def test_sorted(api: Api) -> None:
    """Together they are no more than certain."""
    for entry in entries(api.chat(logprobs=True, top_logprobs=5, **{api.limit: 8})):
        values = [top["logprob"] for top in entry["top_logprobs"]]
        assert values == sorted(values, reverse=True), f"expected falling values, got {values}"
        total = sum(math.exp(value) for value in values)
        assert total <= 1.001, f"expected probabilities that sum to 1 at most, got {total}"
        names = [(top["token"], tuple(top["bytes"] or ())) for top in entry["top_logprobs"]]
        assert len(names) == len(set(names)), f"expected each token once, got {names}"


@must("a greedy answer takes the likeliest token, with the same value", TOP)
def test_greedy_is_first(api: Api) -> None:
    """The entry and the first alternative are one token."""
    for entry in entries(api.chat(logprobs=True, top_logprobs=2, **{api.limit: 8})):
        top = entry["top_logprobs"][0]
        assert abs(top["logprob"] - entry["logprob"]) < 1e-4, f"expected {entry['token']!r} first, got {top}"


@must("logprobs of a stream are those of the whole answer", CREATE)
@needs("streaming")
def test_stream(api: Api) -> None:
    """Token by token; the values to 0.001, as they may depend on the company."""
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, api.limit: 12}
    whole = entries(api.chat(**fields))
    found = api.chat_stream(**fields)
    streamed = [
        entry for choice in found.choices() for entry in ((choice.get("logprobs") or {}).get("content") or [])
    ]
    assert [e["token"] for e in streamed] == [e["token"] for e in whole], (
        f"expected {[e['token'] for e in whole]}, got {[e['token'] for e in streamed]}"
    )
    for one, other in zip(streamed, whole, strict=True):
        assert abs(one["logprob"] - other["logprob"]) < 1e-3, f"expected {other['logprob']}, got {one['logprob']}"


@must("each of n choices has logprobs of its own", CREATE)
def test_n(api: Api) -> None:
    """As many as its text has."""
    found = api.chat(n=2, logprobs=True, temperature=1, **{api.limit: 4})
    for index in range(2):
        if not entries(found, index):
            not_able("an answer is empty")


@should("values do not depend on the temperature", CREATE)
def test_raw(api: Api) -> None:
    """They are the model's, before sampling changes anything."""
    cold = entries(api.chat(logprobs=True, top_logprobs=3, temperature=0, **{api.limit: 1}))[0]["top_logprobs"]
    hot = entries(api.chat(logprobs=True, top_logprobs=3, temperature=1.5, **{api.limit: 1}))[0]["top_logprobs"]
    values = {str(entry["bytes"]): entry["logprob"] for entry in hot}  # in any order: another check's business
    for entry in cold:
        found = values.get(str(entry["bytes"]), entry["logprob"])
        assert abs(entry["logprob"] - found) < 1e-2, f"expected {entry}, got {found}"
