"""The official client against the server."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import openai
import pytest

from tests.server.conftest import MODEL
from tests.server.process import ServerProcess

MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the quick brown fox"}]


def chat(client: openai.OpenAI, **options: Any) -> Any:
    defaults = {"model": MODEL, "messages": MESSAGES, "max_tokens": 24, "seed": 7}
    return client.chat.completions.create(**(defaults | options))


def test_a_whole_answer(client: openai.OpenAI) -> None:
    answer = chat(client)
    assert answer.id.startswith("chatcmpl-") and answer.model == MODEL
    assert answer.system_fingerprint.startswith("tandem-")
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"n": 3}, {"logprobs": True, "top_logprobs": 2}])
def test_a_stream_says_the_same(client: openai.OpenAI, options: dict[str, Any]) -> None:
    whole = chat(client, **options)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}, **options))
    assert len({chunk.id for chunk in chunks}) == len({chunk.created for chunk in chunks}) == 1
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    for choice in whole.choices:
        own = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert own[0].delta.role == "assistant" and own[0].delta.content == ""
        assert all(c.delta.role is None for c in own[1:])
        assert "".join(c.delta.content or "" for c in own) == choice.message.content
        assert [c.finish_reason for c in own if c.finish_reason] == [choice.finish_reason]
        assert own[-1].finish_reason and own[-1].delta.content is None
        entries = [entry for c in own if c.logprobs for entry in c.logprobs.content]
        assert entries == (choice.logprobs.content if choice.logprobs else [])


def test_choices_are_interleaved_and_differ(client: openai.OpenAI) -> None:
    chunks = chat(client, n=2, stream=True)
    order = [chunk.choices[0].index for chunk in chunks if chunk.choices[0].delta.content]
    assert {0, 1} <= set(order[: len(order) // 2])
    answer = chat(client, n=2)
    assert answer.choices[0].message.content != answer.choices[1].message.content


def test_a_seed_repeats_and_another_does_not(client: openai.OpenAI) -> None:
    texts = [chat(client, seed=seed).choices[0].message.content for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    unseeded = [chat(client, seed=None).choices[0].message.content for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_logprobs_of_chat(client: openai.OpenAI) -> None:
    answer = chat(client, logprobs=True, top_logprobs=3, temperature=0)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    joined = b"".join(bytes(entry.bytes) for entry in entries if entry.bytes is not None)
    assert joined.decode(errors="replace") == answer.choices[0].message.content
    for entry in entries:
        values = [top.logprob for top in entry.top_logprobs]
        assert len(values) == 3 and values == sorted(values, reverse=True)
        assert all(math.isfinite(value) and value <= 0 for value in values)
        assert entry.top_logprobs[0].token == entry.token and entry.logprob == values[0]  # greedy
    assert chat(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


def test_stop_strings_are_cut_off(client: openai.OpenAI) -> None:
    text = chat(client, temperature=0).choices[0].message.content
    stop = text[4:6]
    for stops in (stop, [stop, "never said"]):
        choice = chat(client, temperature=0, stop=stops).choices[0]
        assert choice.message.content == text[: text.index(stop)]
        assert choice.finish_reason == "stop"
        assert choice.stop_reason == stop
    streamed = chat(client, temperature=0, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == text[: text.index(stop)]


def test_max_completion_tokens_wins(client: openai.OpenAI) -> None:
    assert chat(client, max_tokens=20, max_completion_tokens=3).usage.completion_tokens == 3


def test_biases_and_penalties_act(client: openai.OpenAI) -> None:
    forced = chat(client, logit_bias={"65": 100}, temperature=0, max_tokens=5, logprobs=True)
    assert len({entry.token for entry in forced.choices[0].logprobs.content}) == 1
    plain = chat(client, temperature=0, max_tokens=24).choices[0].message.content
    for option in ({"frequency_penalty": 2}, {"presence_penalty": 2}):
        assert chat(client, temperature=0, **option).choices[0].finish_reason
    assert chat(client, temperature=0, extra_body={"repetition_penalty": 5.0}).choices[0].message.content != plain


def test_parameters_beyond_openai(client: openai.OpenAI) -> None:
    only = [65, 66, 67]
    answer = chat(client, extra_body={"allowed_token_ids": only, "return_token_ids": True, "ignore_eos": True})
    assert set(answer.choices[0].token_ids) <= set(only)
    assert len(answer.prompt_token_ids) == answer.usage.prompt_tokens
    for option in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-9}):
        greedy = chat(client, temperature=0).choices[0].message.content
        assert chat(client, extra_body=option).choices[0].message.content == greedy
    ended = chat(client, temperature=0, extra_body={"stop_token_ids": list(range(300))}).choices[0]
    assert ended.finish_reason == "stop" and isinstance(ended.stop_reason, int)
    assert chat(client, extra_body={"min_tokens": 8, "stop_token_ids": only}).usage.completion_tokens >= 8
    tokens = chat(client, logprobs=True, extra_body={"return_tokens_as_token_ids": True}).choices[0].logprobs.content
    assert all(entry.token.startswith("token_id:") for entry in tokens)


def test_conversations_with_tool_calls_are_read(client: openai.OpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "fox"}'}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief"}]},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "a fox"},
    ]
    assert chat(client, messages=messages, max_tokens=2).choices[0].message.content is not None


def test_a_message_is_continued(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the lazy"}]
    body = {"continue_final_message": True, "echo": True, "return_token_ids": True}
    answer = chat(client, messages=messages, extra_body=body, temperature=0)
    assert answer.choices[0].message.content.startswith("the lazy")
    shown = client.post("/../tokenize", cast_to=dict[str, Any], body={"prompt": "the lazy"})
    assert answer.prompt_token_ids[-shown["count"] :] == shown["tokens"]
    stream = chat(client, messages=messages, extra_body=body, temperature=0, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in stream) == answer.choices[0].message.content


@pytest.mark.parametrize(
    ("prompt", "count"),
    [("the fox", 1), (["the fox", "a dog"], 2), ([5, 6, 7], 1), ([[5, 6], [7, 8, 9], [10]], 3)],
)
def test_forms_of_prompts(client: openai.OpenAI, prompt: Any, count: int) -> None:
    answer = client.completions.create(model=MODEL, prompt=prompt, temperature=0, n=2, max_tokens=4)
    assert [choice.index for choice in answer.choices] == list(range(2 * count))
    for first, second in zip(answer.choices[::2], answer.choices[1::2], strict=True):
        assert first.text == second.text  # greedy
    items = [prompt] if count == 1 else prompt
    for item, choice in zip(items, answer.choices[::2], strict=True):
        alone = client.completions.create(model=MODEL, prompt=item, temperature=0, max_tokens=4)
        assert alone.choices[0].text == choice.text
    stream = list(
        client.completions.create(
            model=MODEL,
            prompt=prompt,
            temperature=0,
            n=2,
            max_tokens=4,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert stream[-1].usage == answer.usage
    for choice in answer.choices:
        own = [c for chunk in stream for c in chunk.choices if c.index == choice.index]
        assert "".join(c.text for c in own) == choice.text
        assert own[-1].finish_reason == choice.finish_reason


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["naïve 東京 café the fox 🎉", [300, 5, 77]])
def test_a_prompt_is_scored(client: openai.OpenAI, prompt: Any, stream: bool) -> None:
    options: Any = {"model": MODEL, "prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 2, "n": 2}
    answer = client.completions.create(**options)
    assert answer.usage.completion_tokens == 0
    for choice in answer.choices:
        logprobs, finish_reason, text = choice.logprobs, choice.finish_reason, choice.text
        if stream:
            chunks = [c for chunk in client.completions.create(**options, stream=True) for c in chunk.choices]
            own = [c for c in chunks if c.index == choice.index]
            assert own[0].logprobs == logprobs and "".join(c.text for c in own) == text
        assert finish_reason == "length"
        if isinstance(prompt, str):
            assert text == prompt
        assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
        assert len(logprobs.tokens) == len(logprobs.text_offset) == answer.usage.prompt_tokens
        for value, top in zip(logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], strict=True):
            assert value <= 0 and 2 <= len(top) <= 3 and value in top.values()
        assert logprobs.text_offset[0] == 0 and logprobs.text_offset == sorted(logprobs.text_offset)
        for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
            assert token.startswith("bytes:") or text.startswith(token, offset)


def test_echoed_logprobs_go_on_with_the_answer(client: openai.OpenAI) -> None:
    options: Any = {"model": MODEL, "prompt": "the quick", "max_tokens": 6, "temperature": 0, "logprobs": 1}
    plain = client.completions.create(**options)
    both = client.completions.create(**options, echo=True)
    assert both.choices[0].text == "the quick" + plain.choices[0].text
    length = both.usage.prompt_tokens
    assert both.choices[0].logprobs.tokens[length:] == plain.choices[0].logprobs.tokens
    shifted = [offset + len("the quick") for offset in plain.choices[0].logprobs.text_offset]
    assert both.choices[0].logprobs.text_offset[length:] == shifted


def test_prompt_logprobs(client: openai.OpenAI) -> None:
    prompt = [5, 6, 7, 8]
    extra: Any = {"prompt_logprobs": 2, "return_token_ids": True}
    choice = client.completions.create(model=MODEL, prompt=prompt, max_tokens=1, extra_body=extra).choices[0]
    assert choice.prompt_token_ids == prompt and len(choice.token_ids) == 1
    assert choice.prompt_logprobs[0] is None
    for token_id, entry in zip(prompt[1:], choice.prompt_logprobs[1:], strict=True):
        assert entry[str(token_id)]["rank"] >= 1 and entry[str(token_id)]["logprob"] <= 0
        assert sorted(value["rank"] for value in entry.values())[:2] == [1, 2]
    answer = chat(client, max_tokens=1, extra_body=extra)
    assert len(answer.prompt_logprobs) == len(answer.prompt_token_ids) == answer.usage.prompt_tokens


def test_a_prompt_is_truncated_from_the_left(client: openai.OpenAI) -> None:
    extra = {"truncate_prompt_tokens": 2, "return_token_ids": True}
    answer = client.completions.create(model=MODEL, prompt=[5, 6, 7, 8], max_tokens=1, echo=True, extra_body=extra)
    assert answer.choices[0].prompt_token_ids == [7, 8] and answer.usage.prompt_tokens == 2
    long = client.completions.create(
        model=MODEL, prompt=[5] * 5000, max_tokens=1, extra_body={"truncate_prompt_tokens": -1}
    )
    assert long.usage.prompt_tokens == 4095


def test_errors_have_their_classes(client: openai.OpenAI, guarded: ServerProcess) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        chat(client, model="other")
    assert not_found.value.code == "model_not_found" and not_found.value.param == "model"
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, max_tokens=100_000)
    assert refused.value.code == "context_length_exceeded" and refused.value.param == "max_tokens"
    with pytest.raises(openai.AuthenticationError):
        chat(openai.OpenAI(base_url=guarded.url + "/v1", api_key="wrong", max_retries=0))
    assert chat(openai.OpenAI(base_url=guarded.url + "/v1", api_key="second-key", max_retries=0), max_tokens=1)


def test_the_async_client(server: ServerProcess) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none") as client:

            async def one(seed: int) -> str:
                stream = await client.chat.completions.create(
                    model=MODEL, messages=MESSAGES, max_tokens=8, seed=seed, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one(seed) for seed in (1, 2, 1)))

    first, second, again = asyncio.run(ask())
    assert first == again != second
