"""``POST /chat/completions``, answered whole."""

from __future__ import annotations

from typing import Any

import pytest

from ..capabilities import WEATHER, Capabilities
from ..client import OMIT, Api, Json, choice_of, content_of, middle_of
from ..requirement import group, must, needs, not_able, should
from ..schema import validate

pytestmark = group("chat", "chat")
CREATE = "api-reference/chat/create"
OBJECT = "api-reference/chat/object"
QUESTIONS = ("Say hello.", "Count from one to ten.", "Name three colours.")
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}


def answer(api: Api, content: Any = "Say hello.", **fields: Any) -> Json:
    """A whole answer that clients can read."""
    body = api.chat(content, **fields).offered(*(set(fields) - {"messages"})).ok()
    validate("chat", body, strict=False)
    return body


def long_answer(api: Api, **fields: Any) -> tuple[str, str]:
    """A question, and its answer of some length."""
    for question in QUESTIONS:
        text = content_of(answer(api, question, **{api.limit: 24, **fields}))
        if middle_of([text])[1]:
            return question, text
    not_able("its answers are too short to stop inside them")


@must(
    "the answer is a chat.completion with id, created, model, choices, usage; no null that the schema lacks", OBJECT
)
def test_minimal(api: Api) -> None:
    """Nothing given but what is required (and a limit, so that it costs little)."""
    body = answer(api, temperature=OMIT)
    validate("chat", body)
    assert len(body["choices"]) == 1, f"expected one choice, got {len(body['choices'])}"
    assert isinstance(body.get("usage"), dict), "expected usage"


@must("model is there and names what answered", OBJECT + "#chat-object-model")
def test_model(api: Api) -> None:
    """A name may be resolved to a longer one (a dated version), but not be empty."""
    assert answer(api)["model"], "expected a name"


@must("the message has role assistant and its content is a string", OBJECT + "#chat-object-choices")
def test_message(api: Api) -> None:
    """Where no tools are given content cannot be null."""
    message = choice_of(answer(api))["message"]
    assert message.get("role") == "assistant", f"expected role assistant, got {message.get('role')!r}"
    assert isinstance(message.get("content"), str), f"expected a string, got {message.get('content')!r}"


@must("messages of these roles are accepted", CREATE + "#chat-create-messages")
@pytest.mark.parametrize("role", ["system", "developer"])
def test_instructions(api: Api, role: str) -> None:
    """``developer`` is the newer name of ``system``."""
    answer(api, messages=[{"role": role, "content": "Be brief."}, {"role": "user", "content": "Say hello."}])


@should("developer and system mean the same where the model knows one of them", "guides/text#message-roles")
def test_developer_counts(api: Api) -> None:
    """The message must reach the prompt: it makes it longer."""
    user = {"role": "user", "content": "Say hello."}
    message = {"role": "developer", "content": "Speak like a sailor who has been at sea for years."}
    plain = answer(api, messages=[user])["usage"]["prompt_tokens"]
    longer = answer(api, messages=[message, user])["usage"]["prompt_tokens"]
    assert longer > plain, f"expected more prompt tokens than {plain} with the message, got {longer}"


@must("content may be a list of text parts", CREATE + "#chat-create-messages")
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_parts(api: Api, role: str) -> None:
    """In every role that has content."""
    parts = [{"type": "text", "text": "Say "}, {"type": "text", "text": "hello."}]
    last = [] if role == "user" else [{"role": "user", "content": "Go on."}]
    answer(api, messages=[{"role": role, "content": parts}, *last])


@must("a conversation of several turns is accepted", CREATE + "#chat-create-messages")
def test_turns(api: Api) -> None:
    """User and assistant in turns."""
    turns = [("system", "Be brief."), ("user", "My name is Ada."), ("assistant", "Hello Ada."), ("user", "My name?")]
    answer(api, messages=[{"role": role, "content": content} for role, content in turns])


@must("an assistant message with tool_calls may have null content or none, and results follow", CREATE)
@pytest.mark.parametrize("content", [None, OMIT, ""])
def test_call_in_history(api: Api, capabilities: Capabilities, content: Any) -> None:
    """What the model asked for, and what came of it; the tools are named again where tools are offered."""
    call = {"role": "assistant", "content": content, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."}
    messages = [
        {"role": "user", "content": "The weather in Paris?"},
        {name: value for name, value in call.items() if value is not OMIT},
        result,
    ]
    tools = {"tools": [WEATHER]} if capabilities.has("tools") else {}
    api.chat(messages=messages, **tools).ok()


@must("n choices have the indexes 0 to n-1, each once", CREATE + "#chat-create-n")
def test_n(api: Api) -> None:
    """In any order."""
    body = answer(api, n=3, temperature=1)
    indexes = sorted(choice["index"] for choice in body["choices"])
    assert indexes == [0, 1, 2], f"expected indexes 0, 1, 2, got {indexes}"


@must("usage counts the tokens of all choices, and the prompt once", CREATE + "#chat-create-n")
def test_n_usage(api: Api) -> None:
    """Of one token each."""
    fields: Json = {"temperature": 1, api.limit: 1}
    one, three = answer(api, **fields)["usage"], answer(api, n=3, **fields)["usage"]
    assert three["prompt_tokens"] == one["prompt_tokens"], f"expected {one['prompt_tokens']} prompt tokens: {three}"
    assert three["completion_tokens"] == 3, f"expected the tokens of three answers, got {three}"


@must("total_tokens is the sum of prompt and completion tokens", OBJECT + "#chat-object-usage")
def test_usage_adds_up(api: Api) -> None:
    """And neither is negative; a prompt has at least one."""
    usage = answer(api)["usage"]
    assert usage["prompt_tokens"] > 0 and usage["completion_tokens"] >= 0, f"expected counts, got {usage}"
    total = usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["total_tokens"] == total, f"expected total_tokens {total}, got {usage['total_tokens']}"


@must("max_tokens: 1 gives one token and finish_reason length", CREATE + "#chat-create-max_tokens")
def test_one_token(api: Api) -> None:
    """Unless the first token happens to end the answer: then another question is asked."""
    for question in QUESTIONS:
        body = answer(api, question, **{api.limit: 1})
        spent = body["usage"]["completion_tokens"]
        assert spent == 1, f"expected 1 completion token, got {spent}"
        reason = choice_of(body)["finish_reason"]
        if not (reason == "stop" and content_of(body) == ""):
            assert reason == "length", f"expected finish_reason length, got {reason!r}"
            return
    not_able("its answers end with the first token")


@must("max_completion_tokens limits the answer", CREATE + "#chat-create-max_completion_tokens")
def test_newer_limit(api: Api) -> None:
    """The newer name of max_tokens."""
    spent = answer(api, **{"max_tokens": OMIT, "max_completion_tokens": 2})["usage"]["completion_tokens"]
    assert spent <= 2, f"expected 2 completion tokens at most, got {spent}"


@should("max_completion_tokens wins over the deprecated max_tokens", CREATE + "#chat-create-max_completion_tokens")
def test_newer_limit_wins(api: Api) -> None:
    """Or both together are refused."""
    found = api.chat("Count from one to ten.", max_tokens=12, max_completion_tokens=2)
    if found.status == 400:
        found.refused(400)
        return
    spent = found.ok()["usage"]["completion_tokens"]
    assert spent <= 2, f"expected 2 completion tokens at most, got {spent}"


@should("temperature 0 gives the same answer again", CREATE + "#chat-create-temperature")
def test_greedy_repeats(api: Api, repeats: int) -> None:
    """Mostly deterministic, the reference says."""
    texts = {content_of(answer(api, **{api.limit: 16})) for _ in range(repeats)}
    assert len(texts) == 1, f"expected one text, got {sorted(texts)}"


@should("one seed gives one answer", CREATE + "#chat-create-seed")
def test_seed_repeats(api: Api, repeats: int) -> None:
    """Best effort, the reference says."""
    fields = {"temperature": 1, "seed": 7, api.limit: 16}
    texts = {content_of(answer(api, **fields)) for _ in range(repeats)}
    assert len(texts) == 1, f"expected one text, got {sorted(texts)}"


@should("several seeds do not all give one answer", CREATE + "#chat-create-seed")
def test_seeds_differ(api: Api) -> None:
    """At the highest temperature; a model that is sure all the same leaves nothing to see."""
    fields: Json = {"temperature": 2, api.limit: 24}
    texts = {content_of(answer(api, "Name an animal.", seed=seed, **fields)) for seed in range(6)}
    if len(texts) > 1:
        return
    free = {content_of(answer(api, "Name an animal.", **fields)) for _ in range(6)}
    if len(free) == 1:
        not_able("it gives one answer without a seed, too")
    assert len(texts) > 1, f"expected different answers, got six times {texts.pop()!r}"


@must("generation ends before a stop string, which is not part of the answer", CREATE + "#chat-create-stop")
@pytest.mark.parametrize("as_list", [False, True], ids=["string", "list"])
def test_stop(api: Api, as_list: bool) -> None:
    """The string is one from inside the answer without it."""
    question, whole = long_answer(api)
    stop = middle_of([whole])[1]
    body = answer(api, question, stop=["\u0001never", stop] if as_list else stop, **{api.limit: 24})
    text, reason = content_of(body), choice_of(body)["finish_reason"]
    assert stop not in text, f"expected an answer without {stop!r}, got {text!r}"
    assert text == whole[: whole.find(stop)], f"expected {whole[: whole.find(stop)]!r}, got {text!r}"
    assert reason == "stop", f"expected finish_reason stop, got {reason!r}"


@must("up to four stop strings are accepted", CREATE + "#chat-create-stop")
def test_four_stops(api: Api) -> None:
    """None of them in the answer."""
    answer(api, stop=["\u0001a", "\u0001b", "\u0001c", "\u0001d"])


@should("a fifth stop string is refused by name", CREATE + "#chat-create-stop")
def test_fifth_stop(api: Api) -> None:
    """Not cut off in silence."""
    found = api.chat(stop=["\u0001a", "\u0001b", "\u0001c", "\u0001d", "\u0001e"])
    found.refused(400, 422)
    assert found.error_param() == "stop", f"expected param stop, got {found.error_param()!r}"


@must("a logit_bias of 100 makes a token the only one", CREATE + "#chat-create-logit_bias")
def test_bias_forces(api: Api) -> None:
    """Ids mean something else in every vocabulary, but four times one token is four times one text."""
    for token in (1000, 300, 70, 150):
        body = api.chat(logit_bias={str(token): 100}, **{api.limit: 4}).offered("logit_bias")
        if body.status == 400:
            continue  # no such token
        text = content_of(body.ok())
        if text and "\ufffd" not in text and text.strip():
            assert text == text[: len(text) // 4] * 4, f"expected four times the same, got {text!r}"
            return
    not_able("none of the ids that were tried has a text of its own")


@must("a logit_bias of -100 bans a token", CREATE + "#chat-create-logit_bias")
@needs("tokenize", "logprobs")
def test_bias_bans(api: Api) -> None:
    """The one that the answer begins with."""
    first = api.chat(logprobs=True).ok()["choices"][0]["logprobs"]["content"]
    if not first or len(ids := api.tokenize(first[0]["token"])) != 1:
        not_able("the first token of its answer cannot be told by its text")
    body = api.chat(logprobs=True, logit_bias={str(ids[0]): -100}).ok()
    tokens = [entry["token"] for entry in body["choices"][0]["logprobs"]["content"]]
    assert first[0]["token"] not in tokens, f"expected no {first[0]['token']!r} in {tokens}"


@must("penalties from -2 to 2 are accepted", CREATE + "#chat-create-frequency_penalty")
@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
@pytest.mark.parametrize("value", [-2, -0.5, 2])
def test_penalty(api: Api, name: str, value: float) -> None:
    """Both ends, as integers too."""
    answer(api, **{name: value})


@must("a frequency_penalty of 2 ends a repetition", CREATE + "#chat-create-frequency_penalty")
@needs("logprobs")
def test_penalty_acts(api: Api) -> None:
    """Two tokens are far ahead of all others, one of them first: each repetition takes 2 off its lead of about 5."""
    for first, second in ((1000, 1001), (300, 301), (70, 71)):
        fields = {"logit_bias": {str(first): 100, str(second): 95}, "logprobs": True, api.limit: 32}
        plain = api.chat(**fields).offered("logit_bias")
        if plain.status == 400:
            continue  # no such tokens
        tokens = [entry["token"] for entry in choice_of(plain.ok())["logprobs"]["content"]]
        if len(tokens) < 32 or len(set(tokens)) > 1:
            continue  # an end, or a lead that changes by itself
        body = answer(api, frequency_penalty=2, **fields)
        varied = {entry["token"] for entry in choice_of(body)["logprobs"]["content"]}
        assert len(varied) > 1, f"expected another token than {tokens[0]!r} within 32"
        return
    not_able("no two tokens were found with which it could be seen")


@must("temperature and top_p are accepted at their ends", CREATE + "#chat-create-temperature")
@pytest.mark.parametrize("fields", [{"temperature": 2}, {"temperature": 0}, {"top_p": 1}, {"top_p": 0.01}])
def test_sampling_ends(api: Api, fields: Json) -> None:
    """As integers too."""
    answer(api, **fields)


@must("every answer has an id of its own", OBJECT + "#chat-object-id")
def test_unique_ids(api: Api) -> None:
    """The same request twice."""
    ids = [answer(api, **{api.limit: 1})["id"] for _ in range(3)]
    assert len(set(ids)) == 3 and all(ids), f"expected three ids, got {ids}"


@must("messages must not be empty", CREATE + "#chat-create-messages")
def test_no_messages(api: Api) -> None:
    """A request without any is refused."""
    api.chat(messages=[]).refused(400, 422)


@must("null means not given", CREATE)
def test_nulls(api: Api) -> None:
    """For fields that the published schema has as nullable."""
    names = ["temperature", "top_p", "n", "stop", "max_completion_tokens", "presence_penalty", "logit_bias"]
    names += ["frequency_penalty", "logprobs", "top_logprobs", "seed", "stream", "stream_options", "metadata"]
    answer(api, **dict.fromkeys(names))


@should("created is the time of the answer", OBJECT + "#chat-object-created")
def test_created(api: Api) -> None:
    """In seconds, within an hour of the server's own clock (or ours)."""
    found = api.chat(**{api.limit: 1})
    created = found.ok()["created"]
    clock = _clock(found.answer_headers.get("date"))
    assert abs(created - clock) < 3600, f"expected about {clock:.0f}, got {created}"


def _clock(date: str | None) -> float:
    import time
    from email.utils import parsedate_to_datetime

    return parsedate_to_datetime(date).timestamp() if date else time.time()
