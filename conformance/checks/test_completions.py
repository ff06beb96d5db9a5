"""``POST /completions``, the older API."""

from __future__ import annotations

from typing import Any

import pytest

from ..client import Api, Exchange, Json, choice_of, content_of, middle_of
from ..requirement import group, must, needs, not_able, not_offered, should
from ..schema import validate

pytestmark = group("completions", "completions")
CREATE = "api-reference/completions/create"
OBJECT = "api-reference/completions/object"
PROMPTS = ("Hello, my", "One, two, three,", "The sky is")


def answer(api: Api, prompt: Any = "Hello, my", **fields: Any) -> Json:
    """A whole answer that clients can read."""
    body = api.complete(prompt, **fields).offered(*fields).ok()
    validate("completion", body, strict=False)
    return body


def refused_forms(found: Exchange) -> Exchange:
    """A form of prompt that is refused by name is not offered."""
    return found.offered("prompt")


@must("the answer is a text_completion with id, created, model, choices, usage", OBJECT)
def test_minimal(api: Api) -> None:
    """Strictly typed."""
    body = answer(api)
    validate("completion", body)
    assert len(body["choices"]) == 1, f"expected one choice, got {len(body['choices'])}"
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"], (
        f"expected a sum, got {usage}"
    )


@must("max_tokens is 16 unless given", CREATE + "#completions-create-max_tokens")
def test_default_limit(api: Api) -> None:
    """The older API's default, unlike chat's; an answer may end earlier."""
    spent = api.client.post("/completions", {"model": api.model, "prompt": "Hello, my"}).ok()["usage"]
    assert spent["completion_tokens"] <= 16, f"expected 16 completion tokens at most, got {spent}"


@must("max_tokens: 1 gives one token", CREATE + "#completions-create-max_tokens")
def test_one_token(api: Api) -> None:
    """And finish_reason length, unless it is the end."""
    for prompt in PROMPTS:
        body = answer(api, prompt, max_tokens=1)
        spent = body["usage"]["completion_tokens"]
        assert spent == 1, f"expected 1 completion token, got {spent}"
        if choice_of(body)["finish_reason"] == "length":
            return
    not_able("its answers end with the first token")


@must("a list of prompts gives choices in their order", CREATE + "#completions-create-prompt")
def test_batch(api: Api) -> None:
    """Each with the answer that it gets alone, greedily."""
    alone = [content_of(answer(api, prompt)) for prompt in PROMPTS]
    body = refused_forms(api.complete(list(PROMPTS))).ok()
    validate("completion", body, strict=False)
    together = [content_of(body, index) for index in range(len(PROMPTS))]
    assert together == alone, f"expected {alone}, got {together}"


@must("with n, a prompt's choices stand together, in the order of the prompts", CREATE + "#completions-create-n")
def test_batch_of_n(api: Api) -> None:
    """Indexes 0 to n-1 are the first prompt's; greedy, so that they can be told."""
    first, second = (content_of(answer(api, prompt)) for prompt in PROMPTS[:2])
    body = refused_forms(api.complete(list(PROMPTS[:2]), n=2)).offered("n").ok()
    texts = [content_of(body, index) for index in range(4)]
    assert texts == [first, first, second, second], f"expected {[first, first, second, second]}, got {texts}"


@must("a prompt may be token ids, or lists of them", CREATE + "#completions-create-prompt")
@needs("tokenize")
@pytest.mark.parametrize("nested", [False, True], ids=["ids", "lists"])
def test_ids(api: Api, nested: bool) -> None:
    """They are used as they are: as many prompt tokens as ids."""
    ids = api.tokenize("Hello, my")
    found = refused_forms(api.complete([ids, ids] if nested else ids))
    body = found.ok()
    assert len(body["choices"]) == (2 if nested else 1), f"expected a choice for each prompt, got {body['choices']}"
    expected = len(ids) * (2 if nested else 1)
    spent = body["usage"]["prompt_tokens"]
    assert spent == expected, f"expected {expected} prompt tokens, got {spent}"


@must("echo: true gives the prompt back before the answer", CREATE + "#completions-create-echo")
def test_echo(api: Api) -> None:
    """Greedy, to compare with the answer alone."""
    alone = content_of(answer(api))
    text = content_of(answer(api, echo=True))
    assert text == "Hello, my" + alone, f"expected {'Hello, my' + alone!r}, got {text!r}"


@must("logprobs are columns of one length, as long as the answer", OBJECT + "#completions-object-choices")
@needs("text_logprobs")
@pytest.mark.parametrize("number", [0, 1, 5])
def test_logprobs(api: Api, number: int) -> None:
    """Up to 5; the sampled token is among the alternatives, which may be one more therefore."""
    body = answer(api, logprobs=number)
    columns = choice_of(body)["logprobs"]
    names = ("tokens", "token_logprobs", "text_offset")
    lengths = {name: len(columns[name]) for name in names}
    assert len(set(lengths.values())) == 1, f"expected one length, got {lengths}"
    assert abs(lengths["tokens"] - body["usage"]["completion_tokens"]) <= 1, f"expected one for each token: {lengths}"
    for top in columns.get("top_logprobs") or []:
        assert len(top) <= number + 1, f"expected {number + 1} alternatives at most, got {len(top)}"


@must("text_offset says where in the text each token begins", OBJECT + "#completions-object-choices")
@needs("text_logprobs")
def test_offsets(api: Api) -> None:
    """Rising."""
    offsets = choice_of(answer(api, logprobs=1))["logprobs"]["text_offset"]
    assert offsets == sorted(offsets), f"expected rising offsets, got {offsets}"


@must("echo with logprobs has those of the prompt too, the first one null", CREATE + "#completions-create-echo")
@needs("text_logprobs")
def test_echo_logprobs(api: Api) -> None:
    """Nothing comes before the first token, so that it has no probability."""
    found = api.complete(echo=True, logprobs=1).offered("echo", "logprobs")
    body = found.ok()
    columns = choice_of(body)["logprobs"]
    usage = body["usage"]
    assert abs(len(columns["tokens"]) - usage["total_tokens"]) <= 1, f"expected {usage['total_tokens']} entries"
    assert columns["token_logprobs"][0] is None, f"expected null first, got {columns['token_logprobs'][0]}"
    assert all(value is not None and value <= 1e-6 for value in columns["token_logprobs"][1:]), "expected values"


@should("max_tokens: 0 generates nothing; with echo and logprobs it scores a prompt", CREATE)
@needs("text_logprobs")
def test_score(api: Api) -> None:
    """The common way to evaluate a model."""
    found = api.complete(echo=True, logprobs=1, max_tokens=0).offered("echo", "logprobs", "max_tokens")
    body = found.ok()
    assert content_of(body) == "Hello, my", f"expected the prompt, got {content_of(body)!r}"
    assert body["usage"]["completion_tokens"] == 0, f"expected no completion tokens, got {body['usage']}"


@must("suffix is honoured, or refused by name", CREATE + "#completions-create-suffix")
def test_suffix(api: Api) -> None:
    """It needs a model that fills gaps; ignoring it is a wrong answer."""
    plain = answer(api)
    found = api.complete(suffix=" and that is all I have to say about the weather.")
    if found.status in (400, 422) and found.error_param() == "suffix":
        not_offered("suffix is refused by name")
    longer = found.ok()["usage"]["prompt_tokens"]
    assert longer > plain["usage"]["prompt_tokens"], "expected a longer prompt with the suffix in it"


@must("a stop string ends the text before it", CREATE + "#completions-create-stop")
def test_stop(api: Api) -> None:
    """As in chat."""
    wholes = [content_of(answer(api, prompt, max_tokens=24)) for prompt in PROMPTS]
    number, stop = middle_of(wholes)
    if not stop:
        not_able("its answers are too short to stop inside them")
    body = answer(api, PROMPTS[number], max_tokens=24, stop=stop)
    expected = wholes[number][: wholes[number].find(stop)]
    assert content_of(body) == expected, f"expected {expected!r}, got {content_of(body)!r}"
    assert choice_of(body)["finish_reason"] == "stop", "expected finish_reason stop"


@must("every chunk is a text_completion, with no null that the schema lacks", CREATE + "#completions-create-stream")
def test_chunks(api: Api) -> None:
    """Strictly typed."""
    for chunk in api.complete_stream(max_tokens=16).payloads():
        validate("completion chunk", chunk)


@must("a stream joins to the whole text and ends with [DONE]", CREATE + "#completions-create-stream")
def test_stream(api: Api) -> None:
    """Greedy."""
    whole = answer(api, max_tokens=16)
    found = api.complete_stream(max_tokens=16)
    text, expected = found.content(), content_of(whole)
    assert text == expected, f"expected {expected!r}, got {text!r}"
    assert found.events()[-1].data == "[DONE]", "expected [DONE] at the end"
    reason = found.choices()[-1].get("finish_reason")
    assert reason == choice_of(whole)["finish_reason"], f"expected the whole answer's finish_reason, got {reason!r}"


@must("a stream's usage is the whole answer's, in a last chunk with empty choices", CREATE)
def test_stream_usage(api: Api) -> None:
    """Only when asked for."""
    whole = answer(api)["usage"]
    last = api.complete_stream(stream_options={"include_usage": True}).offered("stream_options").payloads()[-1]
    assert last.get("choices") == [], f"expected choices: [], got {last.get('choices')}"
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert last["usage"][name] == whole[name], f"expected {name} {whole[name]}, got {last['usage'][name]}"


@must("a batch is streamed with each choice's index", CREATE + "#completions-create-prompt")
def test_stream_batch(api: Api) -> None:
    """Each joins to its own text."""
    alone = [content_of(answer(api, prompt)) for prompt in PROMPTS[:2]]
    found = api.complete_stream(list(PROMPTS[:2])).offered("prompt")
    texts = [found.content(index) for index in range(2)]
    assert texts == alone, f"expected {alone}, got {texts}"


@must("a list of texts and ids mixed is refused", CREATE + "#completions-create-prompt")
@pytest.mark.parametrize("prompt", [["a", 1], [[1], "a"], [], {}, 5, [None]], ids=str)
def test_bad_prompt(api: Api, prompt: Any) -> None:
    """As is anything that is no prompt."""
    api.complete(prompt).refused(400, 422)


@must("token ids outside the vocabulary are refused", CREATE + "#completions-create-prompt")
@pytest.mark.parametrize("token", [-1, 2**31 - 1, 2**63])
def test_bad_ids(api: Api, token: int) -> None:
    """Not a failure of the server, and not read as others."""
    api.complete([token]).refused(400, 422)
