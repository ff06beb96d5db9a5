"""Batches laid out for captured graphs, without capturing them: what fills a batch up changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optimized.runner.batch import Batch, nothing
from optimized.runner.cuda_graphs import DecodeGraphs, PutTaken, batch_sizes
from optimized.runner.local import LocalRunner
from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams
from tests.equivalence.answers import run
from tests.equivalence.helpers import llama_optimized, pair, poison
from tests.reference.families import VOCAB, build

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": None,
}


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, [1]), (3, [1, 2, 3]), (4, [1, 2, 4]), (8, [1, 2, 4, 8]), (20, [1, 2, 4, 8, 16, 20])],
)
def test_sizes_rise_to_the_most_there_can_be(most: int, sizes: list[int]) -> None:
    assert batch_sizes(most) == sizes


@pytest.mark.parametrize("family", ["llama", "mistral", "mixtral"])
def test_padded_decodes_have_the_same_hidden_states(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    more: dict[str, Any] = {} if family == "llama" else {"sliding_window": 9}
    _, _, engine = pair(build(family, SIZES | more, seed=3), kind="gpu", max_num_seqs=11, block_size=4)
    runner = engine.runner
    assert isinstance(runner, LocalRunner)
    poison(engine)
    counts: set[int] = set()
    captured = DecodeGraphs.forward

    def forward(self: DecodeGraphs, batch: Batch, put_taken: PutTaken) -> torch.Tensor | None:
        x = captured(self, batch, put_taken)
        assert (x is None) != batch.is_decode
        if x is not None:
            counts.add(batch.num_tokens)
            alone = runner._run(batch, runner.cache.lay_out(batch, runner.rows.tables), runner.cache)
            torch.testing.assert_close(x, alone, rtol=1e-5, atol=1e-5)
        return x

    monkeypatch.setattr(DecodeGraphs, "forward", forward)
    run(engine, [request(i, 3 + 2 * i, 3 * (i + 1)) for i in range(11)])
    assert counts == set(range(1, 12))


def test_rows_that_fill_up_write_nowhere() -> None:
    engine = llama_optimized("gpu", max_num_seqs=8, block_size=4)
    run(engine, [request(0, 5, 3)])
    poison(engine)
    runner = engine.runner
    assert isinstance(runner, LocalRunner) and runner._graphs is not None
    before = [x.clone() for layer in runner.cache.layers for x in layer.tensors]
    with torch.inference_mode():
        assert runner._graphs.forward(nothing(), runner._put_taken) is not None
    after = [x for layer in runner.cache.layers for x in layer.tensors]
    assert all(
        torch.equal(a, b) for a, b in zip(map(torch.nan_to_num, after), map(torch.nan_to_num, before), strict=True)
    )


def request(i: int, length: int, max_tokens: int) -> EngineRequest:
    return EngineRequest(
        request_id=str(i),
        prompt_token_ids=[(7 * i + j) % VOCAB for j in range(length)],
        sampling=SamplingParams(temperature=i % 2, logprobs=1),
        max_tokens=max_tokens,
        seed=i,
    )
