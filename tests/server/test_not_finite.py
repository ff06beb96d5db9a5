"""A model that makes NaN of one token: who sends it gets an error in strict JSON, and nobody else notices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.server.conftest import MODEL
from tests.server.likeness import assert_same
from tests.server.process import Open, ServerProcess
from tests.tiny import write_model

BAD = "~"  # the token whose embedding is NaN
SAYS = "not finite"
NEIGHBOUR = {
    "prompt": "the quick brown",
    "max_tokens": 60,
    "ignore_eos": True,
    "seed": 1,
    "logprobs": 3,
    "bad_words": [BAD],
}
QUESTION = {"type": "choice", "criteria": {"fox": None, "dog": None}}
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/completions": [
        {"prompt": BAD, "max_tokens": 4, "logprobs": 3},
        {"prompt": ["the quick", f"fox {BAD}"], "n": 2, "max_tokens": 4},
        {"prompt": BAD, "max_tokens": 4, "use_beam_search": True, "n": 2},
        {"prompt": BAD, "max_tokens": 4, "structured_outputs": {"regex": "[a-z]+"}},
    ],
    "/v1/chat/completions": [
        {"messages": [{"role": "user", "content": BAD}], "max_tokens": 4, "logprobs": True, "top_logprobs": 5},
        {"messages": [{"role": "user", "content": BAD}], "max_tokens": 4, "temperature": 0, "n": 3},
    ],
    "/v1/responses": [
        {"input": BAD, "max_output_tokens": 4},
        {"input": BAD, "max_output_tokens": 4, "include": ["message.output_text.logprobs"], "top_logprobs": 5},
    ],
    "/v1/messages": [{"messages": [{"role": "user", "content": BAD}], "model": MODEL, "max_tokens": 4}],
    "/api/chat": [{"messages": [{"role": "user", "content": BAD}], "model": MODEL}],
    "/api/generate": [{"prompt": BAD, "model": MODEL}],
    "/inference/v1/generate": [{"token_ids": [], "sampling_params": {"max_tokens": 4, "logprobs": 3}}],
    "/v1/completions/reports": [{"prompt": f"the {BAD} quick", "max_tokens": 1, "prompt_logprobs": 3}],
    "/v1/completions/echo": [{"prompt": f"the {BAD} quick", "max_tokens": 0, "echo": True, "logprobs": 3}],
    "/v1/systemone": [{"state": BAD, "questions": {"a": QUESTION}}],
    "/v1/decisions": [
        {
            "input": BAD,
            "questions": [{"type": "choice", "instructions": "?", "choices": [{"value": "a"}, {"value": "b"}]}],
        }
    ],
    "/generative_scoring": [{"query": [], "items": [[5]], "label_token_ids": [7, 8]}],
}
WHOLE_ONLY = (
    "/v1/completions/reports",
    "/v1/completions/echo",
    "/v1/systemone",
    "/v1/decisions",
    "/generative_scoring",
)


@pytest.fixture(scope="module", params=["optimized", "reference"])
def broken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = write_model(tmp_path_factory.mktemp("broken"), tie_word_embeddings=False)
    weights = load_file(directory / "model.safetensors")
    weights["model.embed_tokens.weight"][bad_token(directory)] = torch.nan
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    options = ("--backend", request.param, "--served-model-name", MODEL, "--enable-ollama-api")
    with ServerProcess(directory, *options) as running:
        yield running


def bad_token(directory: Path) -> int:
    return json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"][BAD]


def strict(text: str) -> Any:
    """RFC 8259 has no NaN and no infinity, though Python's parser takes them."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {text[:200]}")

    return json.loads(text, parse_constant=refuse)


def last_event(text: str) -> str:
    """The JSON of every event or line is read; returns the last, as text."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line and not line.startswith("event: ")]
    for line in lines:
        assert line == "[DONE]" or strict(line)
    return lines[-1]


@pytest.mark.parametrize(
    ("path", "body", "stream"),
    [
        (path, body, stream)
        for path, bodies in BODIES.items()
        for body in bodies
        for stream in ((False,) if path in WHOLE_ONLY else (False, True))
    ],
)
def test_the_request_fails_and_its_neighbour_does_not(
    broken: ServerProcess, path: str, body: dict[str, Any], stream: bool
) -> None:
    before = strict(broken.post("/v1/completions", NEIGHBOUR).text)["choices"]
    tokens = broken.post("/tokenize", {"prompt": BAD, "add_special_tokens": False}).json()["tokens"]
    body = body | {name: tokens for name in ("token_ids", "query") if name in body}
    if path not in ("/v1/systemone", "/v1/decisions", "/generative_scoring"):
        body = body | {"stream": stream}
    neighbour = Open(broken, "/v1/completions", NEIGHBOUR)
    answer = broken.post(path.removesuffix("/reports").removesuffix("/echo"), body)
    last = last_event(answer.text)
    assert SAYS in last and "error" in last, answer.text
    assert answer.status_code == 500 or (stream and answer.status_code == 200)
    assert_same(strict(neighbour.wait().text)["choices"], before, "")
    # the memory that held the NaN is used again
    again = broken.post("/v1/completions", NEIGHBOUR | {"cache_salt": "new"})
    assert_same(strict(again.text)["choices"], before, "")
