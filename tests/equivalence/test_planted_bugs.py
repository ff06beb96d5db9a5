"""The comparison has teeth: each of these bugs, planted in the optimized engine, makes it fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from optimized.cache import attention_cpu, batch, block_pool, engine, row_cache, sampler, scheduler, sequence
from optimized.cache.row_cache import RowCache
from optimized.kernels import sample as op
from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams
from tests.equivalence import comparison
from tests.equivalence.comparison import TALLY, assert_same
from tests.equivalence.helpers import llama_optimized, llama_reference, pair, run, use_kernels
from tests.reference.families import VOCAB, build

Plant = Callable[[pytest.MonkeyPatch], None]
PREFIX = [(7 * i * i + 3) % VOCAB for i in range(40)]


def requests() -> list[EngineRequest]:
    """Some that share a prefix, greedy and drawn, with penalties and masks, more than run at once."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0, "prompt_logprobs": 2},
        {"temperature": 0},
        {"temperature": 1.2, "top_k": 20},
        {"temperature": 0.8, "top_p": 0.8, "min_p": 0.01},
        {"temperature": 0, "repetition_penalty": 1.6, "logit_bias": {3: 2.0, 40: -3.0}},
        {"temperature": 0, "presence_penalty": 0.2, "frequency_penalty": 1.5, "allowed_token_ids": [1, 2, 3, 4]},
        {"temperature": 0, "min_tokens": 6, "stop_token_ids": list(range(0, VOCAB, 2))},
    ]
    return [
        EngineRequest(
            request_id=str(i),
            prompt_token_ids=[i % 3] * 4 + PREFIX[: 20 + 2 * (i % 9)] + [i],
            sampling=SamplingParams(logprobs=3, **kinds[i % len(kinds)]),
            max_tokens=12,
            seed=i,
            choice_index=i % 2,
            cache_salt=str(i % 2),
        )
        for i in range(14)
    ]


def compare(kernels: bool = False) -> None:
    """Two rounds, so that the second finds prefixes of the first, in a pool too small for all."""
    optimized = llama_optimized(
        max_num_seqs=4, max_num_batched_tokens=30, block_size=4, kv_cache_memory_bytes=160 * 2 * 2 * 2 * 2 * 8 * 4
    )
    use_kernels(kernels)
    for _ in range(2):
        answers = run(optimized, requests())
        optimized.scheduling.scheduler.check_integrity()
        for request in requests():
            want = run(llama_reference(), [request])[request.request_id]
            assert_same(llama_reference(), request, answers[request.request_id], want)
    assert optimized.stats.num_prefix_hits > 0
    TALLY.assert_ties_are_rare()


@pytest.fixture(autouse=True)
def not_counted() -> Iterator[None]:
    """What bugs have made of the answers says nothing about the engines."""
    yield
    TALLY.clear()


@pytest.mark.parametrize("kernels", [False, True])
def test_without_a_bug_both_agree(kernels: bool) -> None:
    compare(kernels)


PLANTS: dict[str, Plant] = {}
KERNEL_PLANTS: dict[str, Plant] = {}  # where the CPU kernels are called


def plant(function: Plant) -> Plant:
    PLANTS[function.__name__] = function
    return function


@plant
def shifted_position(patch: pytest.MonkeyPatch) -> None:
    right = attention_cpu.plan

    def wrong(config: Any, tables: Any, *rest: Any) -> Any:
        at = torch.arange(len(tables[0][0]))
        shifted = at - (at > 20).long()
        return right(config, [(cos[shifted], sin[shifted]) for cos, sin in tables], *rest)

    patch.setattr(row_cache, "plan", wrong)


@plant
def wrong_kv_head(patch: pytest.MonkeyPatch) -> None:
    right = attention_cpu._decode
    patch.setattr(
        attention_cpu,
        "_decode",
        lambda c, w, q, *rest: right(c, w, q.flip(1), *rest).view(q.shape).flip(1).flatten(1),
    )


@plant
def stale_block(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RowCache, "save", lambda self, row, place, block: None)


@plant
def prefix_not_copied(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RowCache, "load", lambda self, row, blocks: None)


@plant
def hash_without_its_parent(patch: pytest.MonkeyPatch) -> None:
    right = block_pool.block_hash
    patch.setattr(sequence, "block_hash", lambda parent, tokens, salt: right(b"", tokens, salt))


@plant
def one_token_of_context_too_few(patch: pytest.MonkeyPatch) -> None:
    right = attention_cpu.plan

    def wrong(*args: Any) -> Any:
        plan = right(*args)
        for hidden in plan.twin.hidden.values():
            hidden[..., 0] = True
        return plan

    patch.setattr(row_cache, "plan", wrong)


@plant
def penalties_before_masks(patch: pytest.MonkeyPatch) -> None:
    masks, penalties = sampler._apply_masks, sampler._apply_penalties
    patch.setattr(sampler, "_apply_masks", penalties)
    patch.setattr(sampler, "_apply_penalties", masks)


@plant
def presence_counted_like_frequency(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sampler, "Counter", lambda ids: dict.fromkeys(ids, 1))


@plant
def noise_of_the_next_position(patch: pytest.MonkeyPatch) -> None:
    right = op.gumbel
    patch.setattr(op, "gumbel", lambda ids, at, choice, seed: right(ids, at + 1, choice, seed))


@plant
def choices_share_their_noise(patch: pytest.MonkeyPatch) -> None:
    right = op.gumbel
    patch.setattr(op, "gumbel", lambda ids, at, choice, seed: right(ids, at, choice * 0, seed))


@plant
def seeds_of_another_row(patch: pytest.MonkeyPatch) -> None:
    right = sampler.sample_rows
    patch.setattr(sampler, "sample_rows", lambda z, rows: right(z, rows._replace(seeds=rows.seeds.flip(0))))


@plant
def top_p_off_by_one(patch: pytest.MonkeyPatch) -> None:
    right = op._least_within_mass
    patch.setattr(op, "_least_within_mass", lambda z, top_p: right(z, top_p * 0.7))


@plant
def last_token_of_a_chunk_lost(patch: pytest.MonkeyPatch) -> None:
    right = scheduler.Scheduler.computed

    def wrong(self: Any, scheduled: Any) -> Any:
        found = right(self, scheduled)
        if scheduled.num_tokens > 4 and not scheduled.samples:
            scheduled.sequence.num_computed_tokens += 1
        return found

    patch.setattr(scheduler.Scheduler, "computed", wrong)


@plant
def rows_mixed_up(patch: pytest.MonkeyPatch) -> None:
    right = batch.build_batch

    def wrong(schedule: Any) -> Any:
        built = right(schedule)
        if len(built.decodes) > 2:
            built.token_ids[:2] = built.token_ids[:2].flip(0)
        return built

    patch.setattr(engine, "build_batch", wrong)


@plant
def min_tokens_one_short(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sampler, "_edits", lambda s: s.request.sampling.repetition_penalty != 1)


def plant_in_kernels(function: Plant) -> Plant:
    KERNEL_PLANTS[function.__name__] = function
    return function


@plant_in_kernels
def one_token_too_few_in_the_kernel(patch: pytest.MonkeyPatch) -> None:
    right = attention_cpu.attend_rows
    patch.setattr(
        attention_cpu,
        "attend_rows",
        lambda q, cache, rows, contexts, *rest: right(q, cache, rows, (contexts - 1).clamp(min=1), *rest),
    )


@plant_in_kernels
def rows_of_the_kernel_mixed_up(patch: pytest.MonkeyPatch) -> None:
    right = attention_cpu.attend_rows
    patch.setattr(
        attention_cpu, "attend_rows", lambda q, cache, rows, *rest: right(q, cache, rows[: len(q)].flip(0), *rest)
    )


@plant_in_kernels
def written_one_place_too_far(patch: pytest.MonkeyPatch) -> None:
    right = attention_cpu.write_rotated
    patch.setattr(
        attention_cpu,
        "write_rotated",
        lambda q, k, v, rotation, rows, positions, cache: right(q, k, v, rotation, rows, positions + 1, cache),
    )


@pytest.mark.parametrize("name", KERNEL_PLANTS)
@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
def test_a_bug_planted_in_the_kernels_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    KERNEL_PLANTS[name](monkeypatch)
    with pytest.raises(AssertionError):
        compare(kernels=True)


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTS[name](monkeypatch)
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
        compare()


def test_a_comparison_that_calls_everything_a_tie_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "TIE", float("inf"))
    wrong_kv_head(monkeypatch)
    with pytest.raises(AssertionError, match="num_ties"):
        compare()


def test_a_window_off_by_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "sliding_window": 7}
    mistral = build("mistral", {**sizes, **heads, "eos_token_id": None}, seed=2)
    _, reference, optimized = pair(mistral)
    sampling = SamplingParams(temperature=0, logprobs=3, prompt_logprobs=3)
    request = EngineRequest(request_id="r", prompt_token_ids=PREFIX[:20], sampling=sampling, max_tokens=9, seed=0)
    want = run(reference, [request])["r"]
    assert_same(reference, request, run(optimized, [request])["r"], want)
    right = attention_cpu._prefill
    monkeypatch.setattr(
        attention_cpu, "_prefill", lambda c, w, q, cache, chunk: right(c, w and w + 1, q, cache, chunk)
    )
    with pytest.raises(AssertionError):
        assert_same(reference, request, run(optimized, [request])["r"], want)
