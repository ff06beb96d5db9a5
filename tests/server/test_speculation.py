"""Speculation changes how many steps an answer takes, and nothing else that a client sees but the metrics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.conftest import MODEL
from tests.server.likeness import assert_same
from tests.server.process import ServerProcess

GUESS = '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1}'
REPETITIVE = "the quick brown fox the quick brown fox the quick"


@pytest.fixture(scope="module")
def guessing(model_dir: Path) -> Iterator[ServerProcess]:
    with ServerProcess(model_dir, "--served-model-name", MODEL, "--speculative-config", GUESS) as server:
        yield server


def counters(server: ServerProcess) -> dict[str, float]:
    families = text_string_to_metric_families(httpx.get(server.url + "/metrics").text)
    return {sample.name: sample.value for family in families for sample in family.samples if "spec" in sample.name}


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": 0, "logprobs": 3, "prompt_logprobs": 2, "max_tokens": 33},
        {"temperature": 0.9, "seed": 7, "n": 3, "top_p": 0.8},
        {"temperature": 0, "stop": ["fox"], "logit_bias": {"260": 30}},
        {"temperature": 0, "logit_bias": {"300": 100}, "min_tokens": 5},
        {"temperature": 0.7, "seed": 1, "repetition_penalty": 1.1},
    ],
)
def test_answers_are_those_without_it(server: ServerProcess, guessing: ServerProcess, fields: dict[str, Any]) -> None:
    body = {"prompt": REPETITIVE, "max_tokens": 60, **fields}
    plain, guessed = (one.post("/v1/completions", body).json() for one in (server, guessing))
    for answer in (plain, guessed):
        assert answer.pop("id") and answer.pop("created")
        answer["usage"].pop("prompt_tokens_details")  # what else the server has computed
    assert_same(plain, guessed, "answer")


def test_what_was_guessed_and_accepted_is_counted(guessing: ServerProcess) -> None:
    before = counters(guessing)
    body = {"prompt": REPETITIVE, "max_tokens": 50, "temperature": 0, "logit_bias": {"260": 100}, "ignore_eos": True}
    assert guessing.post("/v1/completions", body).json()["usage"]["completion_tokens"] == 50
    grown = {name: value - before[name] for name, value in counters(guessing).items() if name.endswith("_total")}
    drafts, tokens, accepted = (
        grown[f"vllm:spec_decode_num_{name}_total"] for name in ("drafts", "draft_tokens", "accepted_tokens")
    )
    assert 0 < accepted <= tokens <= 4 * drafts
    assert accepted + drafts >= 45, "nearly all tokens came from verifications"


def test_the_reference_engine_refuses_it(model_dir: Path) -> None:
    with pytest.raises(AssertionError, match="--speculative-config"):
        ServerProcess(model_dir, "--backend", "reference", "--speculative-config", GUESS)
