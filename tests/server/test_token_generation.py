"""Token ids in, token ids out: the same tokens as completions generate."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.equivalence.tolerances import LOGPROBS
from tests.server.likeness import joined
from tests.server.process import ServerProcess, connect, events, eventually

PATH, TEXT = "/inference/v1/generate", "/v1/completions"
drawn = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**40), "max_tokens": st.integers(1, 30), "logprobs": st.integers(0, 4)},
    optional={
        "temperature": st.floats(0, 2),
        "top_k": st.integers(0, 40),
        "n": st.integers(1, 3),
        "stop": st.sampled_from(["e", ["o", "qu"]]),
        "stop_token_ids": st.lists(st.integers(0, 319), max_size=20),
        "logit_bias": st.dictionaries(st.integers(0, 319).map(str), st.floats(-5, 5), max_size=3),
        "logprob_token_ids": st.lists(st.integers(0, 319), min_size=1, max_size=4, unique=True),
    },
)


def ask(server: ServerProcess, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = server.post(path, body)
    assert answer.status_code == 200, answer.text
    whole: dict[str, Any] = answer.json()
    return whole


@settings(max_examples=15)
@given(prompt=st.lists(st.integers(0, 319), min_size=1, max_size=12), sampling=drawn, text=st.booleans())
def test_the_tokens_are_those_of_a_completion(
    server: ServerProcess, prompt: list[int], sampling: dict[str, Any], text: bool
) -> None:
    mode = {"output_mode": "text"} if text else {}
    ours = ask(server, PATH, {"token_ids": prompt, "sampling_params": sampling, "cache_salt": "a"} | mode)
    asked = {"prompt": prompt, "return_token_ids": True, "temperature": 1.0, "cache_salt": "b"} | sampling
    theirs = ask(server, TEXT, asked)
    assert ours["output_mode"] == ("text" if text else "tokens") and ours["usage"] == theirs["usage"]
    for own, other in zip(ours["choices"], theirs["choices"], strict=True):
        assert own["token_ids"] == other["token_ids"] and own["finish_reason"] == other["finish_reason"]
        assert own.get("stop_reason") == other.get("stop_reason")
        assert own.get("text") == (other["text"] if text else None)
        reports = own["logprobs"]["content"]
        assert [entry["logprob"] for entry in reports] == pytest.approx(
            other["logprobs"]["token_logprobs"], abs=LOGPROBS
        )
        if text:
            continue
        assert [entry["token_id"] for entry in reports] == own["token_ids"]
        given_ids = sampling.get("logprob_token_ids")
        for entry in reports:
            top = entry["top_logprobs"]
            if given_ids is not None:
                assert {t["token_id"] for t in top} == {*given_ids, entry["token_id"]}
            else:
                assert len(top) == sampling["logprobs"]
                assert top == [] or top[0] == {name: entry[name] for name in ("token_id", "logprob", "rank")}
                assert [t["rank"] for t in top[1:]] == sorted(t["rank"] for t in top[1:])


@pytest.mark.parametrize("mode", ["tokens", "text"])
@pytest.mark.parametrize("sampling", [{"n": 2}, {"logprobs": 2}, {"stop": "e", "max_tokens": 60}])
def test_a_stream_tells_the_same_as_the_whole(server: ServerProcess, mode: str, sampling: dict[str, Any]) -> None:
    body = {
        "token_ids": [5, 6, 7, 300],
        "sampling_params": {"seed": 4, "max_tokens": 20} | sampling,
        "output_mode": mode,
    }
    whole = ask(server, PATH, body | {"cache_salt": "a"})
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = server.post(PATH, body | {"cache_salt": "b", "stream": True, "stream_options": options})
    chunks = events(stream.text)
    assert chunks[-1] == "[DONE]" and chunks[-2]["choices"] == []
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks[:-1]]
    assert counts == sorted(counts) and counts[-1] == whole["usage"]["completion_tokens"]
    assert all("text" not in choice for chunk in chunks[:-2] for choice in chunk["choices"]) == (mode == "tokens")
    told = joined(chunks)
    assert told["usage"] == whole["usage"] and told["output_mode"] == mode
    for choice in whole["choices"]:
        assert told["choices"][choice["index"]] == choice


def test_the_prompt_is_reported(server: ServerProcess) -> None:
    sampling = {"prompt_logprobs": 2, "max_tokens": 0}
    ours = ask(server, PATH, {"token_ids": [5, 6, 7], "sampling_params": sampling, "request_id": "mine"})
    theirs = ask(server, TEXT, {"prompt": [5, 6, 7]} | sampling)
    assert ours["prompt_logprobs"] == theirs["choices"][0]["prompt_logprobs"]
    assert ours["request_id"] == "generate-tokens-mine" and ours["choices"][0]["token_ids"] == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"stream": True, "sampling_params": {"prompt_logprobs": 1}}, "sampling_params.prompt_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"output_mode": "text", "sampling_params": {"detokenize": False}}, "sampling_params.detokenize"),
        ({"sampling_params": {"min_tokens": 17}}, "sampling_params.min_tokens"),
        ({"sampling_params": {"max_tokens": 9000}}, "sampling_params.max_tokens"),
        ({"sampling_params": {"logit_bias": {"999999": 1}}}, "sampling_params.logit_bias"),
        ({"sampling_params": {"structured_outputs": {"regex": "("}}}, "sampling_params.structured_outputs"),
        ({"token_ids": [999_999]}, "token_ids"),
        ({"priority": 1}, "priority"),
        ({"features": {"mm_hashes": {}}}, "features"),
        ({"kv_transfer_params": {"a": 1}}, "kv_transfer_params"),
    ],
)
def test_what_is_refused_is_named(server: ServerProcess, change: dict[str, Any], param: str) -> None:
    answer = server.post(PATH, {"token_ids": [5]} | change)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_leave_take_their_generation_along(server: ServerProcess, stream: bool) -> None:
    sampling = {"max_tokens": 4000, "ignore_eos": True}
    connection = connect(server, PATH, {"token_ids": [5], "stream": stream, "sampling_params": sampling})
    eventually(lambda: server.load()["num_requests_running"] == 1)
    connection.close()
    eventually(server.is_idle)
