"""``suffix`` where the model's tokenizer has the tokens for it, and where it has not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from tests.server.process import ServerProcess
from tests.tiny import write_model

TEXT, GENERATE = "/v1/completions", "/api/generate"
TOKENS = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>")


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The tiny model with StarCoder's tokens."""
    directory = write_model(tmp_path_factory.mktemp("coder"), vocab_size=332)
    add_tokens(directory)
    with ServerProcess(directory, "--enable-ollama-api", "--served-model-name", "coder") as running:
        yield running


def add_tokens(directory: Path) -> None:
    file = str(directory / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in TOKENS])
    tokenizer.save(file)


def ids(server: ServerProcess, text: str) -> list[int]:
    tokens: list[int] = server.post("/tokenize", {"prompt": text}).json()["tokens"]
    return tokens


def test_a_gap_is_filled_as_its_prompt_is_gone_on_with(coder: ServerProcess) -> None:
    written = ids(coder, "<fim_prefix>the quick<fim_suffix>the dog<fim_middle>")
    common: dict[str, Any] = {"max_tokens": 12, "seed": 3, "return_token_ids": True}
    gap = coder.post(TEXT, {"prompt": "the quick", "suffix": "the dog"} | common).json()["choices"][0]
    assert gap["prompt_token_ids"] == written
    plain = coder.post(TEXT, {"prompt": written, "stop_token_ids": ids(coder, "<fim_pad>")} | common).json()
    assert gap["token_ids"] == plain["choices"][0]["token_ids"]
    echoed = coder.post(TEXT, {"prompt": "the quick", "suffix": "the dog", "echo": True} | common).json()
    assert echoed["choices"][0]["text"] == "the quick" + gap["text"]
    several = coder.post(TEXT, {"prompt": ["a", "b"], "suffix": "c", "n": 2} | common).json()["choices"]
    assert [c["prompt_token_ids"][1] for c in several] == [ids(coder, x)[0] for x in "aabb"]


def test_the_tokens_around_gaps_end_the_answer(coder: ServerProcess) -> None:
    (pad,) = ids(coder, "<fim_pad>")
    body = {"prompt": "a", "suffix": "b", "max_tokens": 5, "logit_bias": {str(pad): 100}, "temperature": 0}
    choice = coder.post(TEXT, body).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("", "stop", pad)
    assert coder.post(TEXT, body | {"ignore_eos": True}).json()["choices"][0]["finish_reason"] == "length"


def test_ollama_fills_gaps(coder: ServerProcess) -> None:
    options = {"temperature": 0, "num_predict": 8}
    body = {"model": "coder", "prompt": "the quick", "suffix": "the dog", "stream": False, "options": options}
    gap = coder.post(GENERATE, body).json()
    expected = coder.post(
        TEXT, {"prompt": "the quick", "suffix": "the dog", "temperature": 0, "max_tokens": 8}
    ).json()
    assert gap["response"] == expected["choices"][0]["text"]
    assert gap["prompt_eval_count"] == expected["usage"]["prompt_tokens"]
    assert "insert" in coder.post("/api/show", {"model": "coder"}).json()["capabilities"]
    refused = coder.post(GENERATE, body | {"system": "Be nice."})
    assert refused.status_code == 400 and "system" in refused.json()["error"]


@pytest.mark.parametrize(
    "change", [{"prompt": [5]}, {"prompt": [[5], [6]]}, {"truncate_prompt_tokens": 3}, {"suffix": "fox " * 9000}]
)
def test_what_is_no_text_with_a_gap_is_refused(coder: ServerProcess, change: dict[str, Any]) -> None:
    answer = coder.post(TEXT, {"prompt": "a", "suffix": "b", "max_tokens": 1} | change)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] in ("suffix", "prompt"), json.dumps(error)


def test_a_model_that_fills_no_gaps_says_so(server: ServerProcess) -> None:
    refused = server.post(TEXT, {"prompt": "a", "suffix": "b"})
    assert refused.status_code == 400
    assert (refused.json()["error"]["param"], refused.json()["error"]["code"]) == ("suffix", "unsupported_parameter")
    assert server.post(TEXT, {"prompt": "a", "suffix": "", "max_tokens": 1}).status_code == 200
    chat = {"messages": [{"role": "user", "content": "hi"}], "suffix": "b"}
    assert server.post("/v1/chat/completions", chat).json()["error"]["param"] == "suffix"
