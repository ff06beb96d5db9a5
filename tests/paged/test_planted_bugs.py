"""The comparison has teeth: each of these bugs, planted in what only a GPU's engine has, makes it fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from optimized.cache.paged_cache import PagedCache, PagedStep
from optimized.runner import batch, cuda_graphs, engine, moe, paged_cache, scheduler, sequence
from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams
from tests.equivalence.comparison import assert_same
from tests.equivalence.helpers import pair, run
from tests.paged.helpers import as_on_a_gpu, assert_as_told, foreseeable, paged_llama, run_over_poison
from tests.reference.families import VOCAB, build

Plant = Callable[[pytest.MonkeyPatch], None]
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
PLANTS: dict[str, Plant] = {}


def requests(num_prompts: int, length: int) -> list[EngineRequest]:
    """Greedy and drawn, some with a prefix in common, of lengths that differ."""
    return [
        EngineRequest(
            request_id=str(i),
            prompt_token_ids=[(3 * j + i % 2) % VOCAB for j in range(length + i)],
            sampling=SamplingParams(
                temperature=i % 3 / 2,
                top_k=0 if i % 2 else 30,
                presence_penalty=0.0 if i % 3 else 2.0,
                logprobs=2,
                prompt_logprobs=i or None,
            ),
            max_tokens=6 + 3 * i,
            seed=i,
        )
        for i in range(num_prompts)
    ]


def compare() -> None:
    """Two rounds, the second with prefixes of the first, in a pool too small for all; steps of decodes are padded."""
    engine = paged_llama(120, max_num_seqs=7, max_num_batched_tokens=30, block_size=4)
    for _ in range(2):
        asked = requests(5, 17)
        assert_as_told(asked, run_over_poison(engine, asked))


def compare_overlapped() -> None:
    """As ``compare``, of requests whose steps need not wait for each other; some end where nobody foresaw it."""
    engine = paged_llama(120, max_num_seqs=7, max_num_batched_tokens=30, block_size=4)
    for _ in range(2):
        asked = [foreseeable(replace(request, eos_token_ids=range(0, VOCAB, 9))) for request in requests(9, 17)]
        assert_as_told(asked, run_over_poison(engine, asked))
        engine.scheduler.check_integrity()


def compare_families() -> None:
    """A window, and a mixture of experts."""
    for family, more in (("mistral", {"sliding_window": 7}), ("mixtral", {"num_local_experts": 4})):
        _, reference, engine = pair(build(family, SIZES | more, seed=2), max_num_seqs=7)
        as_on_a_gpu(engine)
        asked = requests(2, 20)
        answers = run(engine, asked)
        for request in asked:
            want = run(reference, [request])[request.request_id]
            assert_same(reference, request, answers[request.request_id], want)


def test_without_a_bug_both_agree() -> None:
    compare()
    compare_overlapped()
    compare_families()


def plant(function: Plant) -> Plant:
    PLANTS[function.__name__] = function
    return function


def change_step(patch: pytest.MonkeyPatch, change: Callable[[PagedStep], None]) -> None:
    right = PagedCache.lay_out

    def wrong(self: PagedCache, batch: Any, size: int | None = None) -> PagedStep:
        step = right(self, batch, size)
        change(step)
        return step

    patch.setattr(PagedCache, "lay_out", wrong)


@plant
def wrong_slot(patch: pytest.MonkeyPatch) -> None:
    right = PagedCache._slots
    patch.setattr(PagedCache, "_slots", lambda self, batch: right(self, batch) ^ 1)


@plant
def stale_block_table(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PagedCache, "load", lambda self, row, block_ids: None)


@plant
def context_off_by_one(patch: pytest.MonkeyPatch) -> None:
    change_step(patch, lambda step: step.context_lens.sub_(1))


@plant
def position_off_by_one(patch: pytest.MonkeyPatch) -> None:
    change_step(patch, lambda step: step.positions.add_((step.positions > 20).long()))


@plant
def block_table_of_another_sequence(patch: pytest.MonkeyPatch) -> None:
    change_step(patch, lambda step: step.block_tables.copy_(step.block_tables.roll(1, 0)))


@plant
def filling_row_writes_into_block_0(patch: pytest.MonkeyPatch) -> None:
    change_step(patch, lambda step: step.slots.clamp_(min=0))


@plant
def captured_inputs_of_the_step_before(patch: pytest.MonkeyPatch) -> None:
    right = cuda_graphs.DecodeGraphs.forward
    before: dict[int, torch.Tensor] = {}

    def wrong(self: Any, batch: Any, fill: Any) -> torch.Tensor | None:
        x = right(self, batch, fill)
        if x is None:
            return None
        late = before.get(batch.num_tokens, x)
        before[batch.num_tokens] = x
        return late

    patch.setattr(cuda_graphs.DecodeGraphs, "forward", wrong)


@plant
def window_off_by_one(patch: pytest.MonkeyPatch) -> None:
    right = paged_cache.paged_attention

    def wrong(*args: Any, window: int | None, **rest: Any) -> torch.Tensor:
        return right(*args, window=window and window + 1, **rest)

    patch.setattr(paged_cache, "paged_attention", wrong)


@plant
def experts_mixed_up(patch: pytest.MonkeyPatch) -> None:
    right = moe.experts
    patch.setattr(moe, "experts", lambda x, up, down, chosen, *rest: right(x, up, down, chosen.flip(1), *rest))


@plant
def token_being_drawn_left_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(batch.Fill, "put_into", lambda self, token_ids: None)


@plant
def token_being_drawn_of_another_row(patch: pytest.MonkeyPatch) -> None:
    right = batch.Fill.put_into
    patch.setattr(
        batch.Fill, "put_into", lambda self, ids: right(self._replace(token_ids=self.token_ids.roll(1)), ids)
    )


@plant
def token_being_drawn_not_counted(patch: pytest.MonkeyPatch) -> None:
    """So the noise of a position is used twice."""
    known = property(lambda self: len(self.token_ids) - self.num_prompt_tokens)
    patch.setattr(sequence.Sequence, "num_output_tokens", known)


@plant
def result_of_who_has_left(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scheduler.Scheduler, "holds", lambda self, sequence: True)


@plant
def all_is_foreseeable(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(engine.UnderWay, "is_foreseeable", True)


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTS[name](monkeypatch)
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
        compare()
        compare_overlapped()
        compare_families()
