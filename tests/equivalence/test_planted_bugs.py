"""The comparison has teeth: each of these bugs, planted in the optimized engine, makes it fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace as replace_fields
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from optimized.cache import paged_cache
from optimized.cache.paged_cache import PagedCache
from optimized.kernels import edit_logits, gathered_attention
from optimized.kernels import sample as op
from optimized.layers import moe
from optimized.runner import cuda_graphs, edits, local, rows, sampler
from optimized.runner.grammars import RowGrammar, RowGrammars
from optimized.scheduling import scheduler, sequence
from tandem.config import SpeculativeConfig
from tandem.engine import EngineRequest
from tandem.grammar.matcher import Grammars
from tandem.sampling_params import SamplingParams
from tests.equivalence import comparison
from tests.equivalence.answers import run
from tests.equivalence.comparison import TALLY, assert_same
from tests.equivalence.helpers import GRAMMARS, assert_as_reference, llama_optimized, pair, run_over_poison
from tests.reference.families import VOCAB, build

Plant = Callable[[pytest.MonkeyPatch], None]
PREFIX = [(7 * i * i + 3) % VOCAB for i in range(40)]
KINDS: list[dict[str, Any]] = [
    {"temperature": 0, "prompt_logprobs": 2},
    {"temperature": 0},
    {"temperature": 1.2, "top_k": 20},
    {"temperature": 0.8, "top_p": 0.8, "min_p": 0.01},
    {"temperature": 0, "repetition_penalty": 1.6, "logit_bias": {3: 2.0, 40: -3.0}},
    {"temperature": 0, "presence_penalty": 0.2, "frequency_penalty": 1.5, "allowed_token_ids": [1, 2, 3, 4]},
    {"temperature": 0, "min_tokens": 6, "stop_token_ids": list(range(0, VOCAB, 2))},
]
PAIRS = ((1, 2), (1, 3), (2, 3), (3, 1), (4, 1), (2, 4))  # of those that one kind allows
GUESSES = SpeculativeConfig(method="ngram", num_speculative_tokens=3, prompt_lookup_min=1, prompt_lookup_max=2)
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


def requests() -> list[EngineRequest]:
    """Some that share a prefix, greedy and random, with penalties and masks, more than run at once."""
    return [
        EngineRequest(
            request_id=str(i),
            prompt_token_ids=[i % 3] * 4 + PREFIX[: 20 + 2 * (i % 9)] + [i],
            sampling=SamplingParams(
                logprobs=3, logprob_token_ids=(i, 50, 2 + i) if i % 3 else None, **KINDS[i % len(KINDS)]
            ),
            max_tokens=12,
            seed=i,
            choice_index=i % 2,
            cache_salt=str(i % 2),
            bad_words_token_ids=((PREFIX[3],), *PAIRS) if i % 5 == 0 else (),
            eos_token_ids=tuple(range(0, VOCAB, 9)) if i % 4 == 3 else (),
        )
        for i in range(14)
    ]


def repetitive() -> list[EngineRequest]:
    """Answers that repeat themselves, so that drafts are right for a while and then wrong, or end the answer."""
    greedy, random = {8: 3.0, 9: 2.5}, {8: 9.0, 9: 9.0, 11: 8.0}
    return [
        EngineRequest(
            request_id=str(i),
            prompt_token_ids=[8, 9, 8, 11, 9, i] * 4,
            sampling=SamplingParams(
                temperature=i % 2, logprobs=1, logit_bias=random if i % 2 else greedy, stop_token_ids=[11]
            ),
            max_tokens=30,
            seed=i,
        )
        for i in range(30)
    ]


def following() -> list[EngineRequest]:
    """Answers that follow grammars; half of them have masks of their own besides."""
    return [
        EngineRequest(
            request_id=str(i),
            prompt_token_ids=[i, 3, i] * 9,
            sampling=SamplingParams(temperature=i % 2, logprobs=1, logit_bias={35: 2.0} if i % 3 else None),
            max_tokens=24,
            seed=i,
            eos_token_ids=(7, 9),
            grammar=GRAMMARS[i % len(GRAMMARS)],
        )
        for i in range(12)
    ]


def compare(kind: str) -> None:
    """Two rounds, so that the second finds prefixes of the first, in a pool too small for all; then with drafts."""
    limits: dict[str, Any] = {"max_num_seqs": 4, "max_num_batched_tokens": 30, "block_size": 4}
    optimized = llama_optimized(kind, 160, **limits)
    for _ in range(2):
        assert_as_reference(requests(), run_over_poison(optimized, requests()))
    assert optimized.stats.num_prefix_hits > 0
    guessing = llama_optimized(kind, **limits, speculative_config=GUESSES)
    assert_as_reference(repetitive(), run_over_poison(guessing, repetitive()))
    assert 0 < guessing.stats.num_accepted_tokens < guessing.stats.num_draft_tokens
    assert_as_reference(following(), run_over_poison(optimized, following()))
    assert_as_reference(following(), run_over_poison(guessing, following()))
    compare_families(kind)
    TALLY.assert_ties_are_rare()


def compare_families(kind: str) -> None:
    """A window, and a mixture of experts."""
    for family, more in (("mistral", {"sliding_window": 7}), ("mixtral", {"num_local_experts": 4})):
        _, reference, engine = pair(build(family, SIZES | more, seed=2), kind=kind, max_num_seqs=3)
        asked = [replace(r, prompt_token_ids=r.prompt_token_ids[:20], max_tokens=9) for r in requests()[:4]]
        answers = run(engine, asked)
        for request in asked:
            assert_same(
                reference, request, answers[request.request_id], run(reference, [request])[request.request_id]
            )


@pytest.fixture(autouse=True)
def not_counted() -> Iterator[None]:
    """What bugs have made of the answers says nothing about the engines."""
    yield
    TALLY.clear()


@pytest.fixture
def stacked_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    monkeypatch.setattr(moe, "use_triton", lambda x: True)


@pytest.mark.parametrize("kind", ["twins", "kernels", "gpu"])
def test_without_a_bug_both_agree(kind: str) -> None:
    compare(kind)


def test_without_a_bug_both_agree_with_stacked_experts(stacked_experts: None) -> None:
    compare_families("gpu")


PLANTS: dict[str, tuple[str, Plant]] = {}  # the runner that has the bug, and the bug


def plant(*kinds: str) -> Callable[[Plant], Plant]:
    def note(function: Plant) -> Plant:
        PLANTS.update({f"{function.__name__}, {kind}": (kind, function) for kind in kinds})
        return function

    return note


def change_step(patch: pytest.MonkeyPatch, change: Callable[[paged_cache.CacheStep], None]) -> None:
    right = PagedCache.lay_out

    def wrong(self: PagedCache, *args: Any) -> paged_cache.CacheStep:
        step = right(self, *args)
        change(step)
        return step

    patch.setattr(PagedCache, "lay_out", wrong)


# ---------------------------------------------------------------------- cache and attention


@plant("twins", "kernels", "gpu")
def position_off_by_one(patch: pytest.MonkeyPatch) -> None:
    change_step(patch, lambda step: step.places.positions.add_((step.places.positions > 20).long()))


@plant("twins", "kernels", "gpu")
def wrong_slot(patch: pytest.MonkeyPatch) -> None:
    change_step(patch, lambda step: step.places.slots.bitwise_xor_((step.places.slots >= 0).long()))


@plant("twins", "kernels", "gpu")
def context_off_by_one(patch: pytest.MonkeyPatch) -> None:
    change_step(patch, lambda step: step.queries.contexts.sub_((step.queries.contexts > 1).int()))


@plant("twins", "kernels", "gpu")
def block_table_of_another_row(patch: pytest.MonkeyPatch) -> None:
    change_step(patch, lambda step: step.queries.tables.copy_(step.queries.tables.roll(1, 0)))


@plant("twins", "kernels")
def wrong_kv_head(patch: pytest.MonkeyPatch) -> None:
    right = paged_cache.paged_attention

    def wrong(q: torch.Tensor, *rest: Any) -> torch.Tensor:
        return right(q.flip(1).contiguous(), *rest).flip(1)

    patch.setattr(paged_cache, "paged_attention", wrong)


@plant("twins", "kernels", "gpu")
def window_off_by_one(patch: pytest.MonkeyPatch) -> None:
    right = paged_cache.Form
    patch.setattr(paged_cache, "Form", lambda scale, window, cap: right(scale, window and window + 1, cap))


@plant("twins")
def one_token_of_context_hidden(patch: pytest.MonkeyPatch) -> None:
    right = gathered_attention._softmax

    def wrong(scores: torch.Tensor, hidden: torch.Tensor, form: Any) -> torch.Tensor:
        hidden = hidden.clone()
        hidden[..., :1] |= ~hidden[..., 1:2] if hidden.shape[-1] > 1 else False
        return right(scores, hidden, form)

    patch.setattr(gathered_attention, "_softmax", wrong)


@plant("gpu")
def row_that_fills_up_writes_into_block_0(patch: pytest.MonkeyPatch) -> None:
    change_step(patch, lambda step: step.places.slots.clamp_(min=0))


@plant("gpu")
def captured_inputs_of_the_step_before(patch: pytest.MonkeyPatch) -> None:
    right = cuda_graphs.DecodeGraphs.forward
    before: dict[int, torch.Tensor] = {}

    def wrong(self: Any, batch: Any, put_taken: Any) -> torch.Tensor | None:
        x = right(self, batch, put_taken)
        if x is None:
            return None
        late = before.get(batch.num_tokens, x)
        before[batch.num_tokens] = x
        return late

    patch.setattr(cuda_graphs.DecodeGraphs, "forward", wrong)


# ---------------------------------------------------------------------- the plan


@plant("twins", "gpu")
def stale_block_table_change(patch: pytest.MonkeyPatch) -> None:
    """Blocks that a row gets later are not noted."""
    patch.setattr(rows.Rows, "extend", lambda self, work: None if work.position else rows.Rows._add_blocks(
        self, work.row, work.new_blocks
    ))  # fmt: skip


@plant("twins", "gpu")
def state_of_the_row_before(patch: pytest.MonkeyPatch) -> None:
    """A row keeps the sampling parameters of its first owner."""
    right = rows.Rows.start

    def wrong(self: Any, start: Any) -> None:
        first = self.__dict__.setdefault("first", {}).setdefault(start.row, start)
        right(self, replace(start, sampling=first.sampling, seed=first.seed))

    patch.setattr(rows.Rows, "start", wrong)


@plant("twins", "gpu")
def edits_of_the_row_before(patch: pytest.MonkeyPatch) -> None:
    """Masks and penalties are not dropped when their owner leaves."""
    patch.setattr(edits.Edits, "end", lambda self, row: None)


@plant("twins", "gpu")
def prefix_not_in_the_table(patch: pytest.MonkeyPatch) -> None:
    right = rows.Rows.start

    def wrong(self: Any, start: Any) -> None:
        right(self, replace(start, block_ids=[0] * len(start.block_ids)))

    patch.setattr(rows.Rows, "start", wrong)


@plant("twins", "gpu")
def hash_without_its_parent(patch: pytest.MonkeyPatch) -> None:
    right = sequence.block_hash
    patch.setattr(sequence, "block_hash", lambda parent, tokens, salt: right(b"", tokens, salt))


@plant("twins", "gpu")
def last_token_of_a_chunk_lost(patch: pytest.MonkeyPatch) -> None:
    right = scheduler.Scheduler._emit

    def wrong(self: Any, scheduled: Any) -> Any:
        cut = scheduled.num_tokens > 4 and not scheduled.is_last
        work = right(self, scheduled)
        scheduled.sequence.num_computed_tokens += cut
        return work

    patch.setattr(scheduler.Scheduler, "_emit", wrong)


@plant("twins")
def tokens_of_the_row_beside(patch: pytest.MonkeyPatch) -> None:
    right = local.build_batch

    def wrong(work: Any) -> Any:
        built = right(work)
        if built.num_decodes > 2:
            built.token_ids[:2] = built.token_ids[:2].flip(0)
        return built

    patch.setattr(local, "build_batch", wrong)


@plant("gpu")
def sampled_token_left_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(local.LocalRunner, "_put_taken", lambda self, batch, token_ids: None)


@plant("gpu")
def sampled_token_of_another_row(patch: pytest.MonkeyPatch) -> None:
    right = local.LocalRunner._put_taken

    def wrong(self: Any, batch: Any, token_ids: torch.Tensor) -> None:
        places, taken = batch.taken
        right(self, replace_fields(batch, taken=(places, taken[1:] + taken[:1])), token_ids)

    patch.setattr(local.LocalRunner, "_put_taken", wrong)


@plant("gpu")
def tokens_in_flight_not_counted(patch: pytest.MonkeyPatch) -> None:
    """So the noise of a position is used twice."""
    right = scheduler.Scheduler._emit

    def wrong(self: Any, scheduled: Any) -> Any:
        late = scheduled.sequence.num_pending
        work = right(self, scheduled)
        return replace(work, position=work.position - late)

    patch.setattr(scheduler.Scheduler, "_emit", wrong)


@plant("gpu")
def result_of_who_has_left(patch: pytest.MonkeyPatch) -> None:
    right = scheduler.Scheduler.holds
    patch.setattr(scheduler.Scheduler, "holds", lambda self, s: right(self, s) or len(s.output_ids) > 2)


# ---------------------------------------------------------------------- drafts


@plant("twins", "kernels", "gpu")
def draft_accepted_that_was_not_sampled(patch: pytest.MonkeyPatch) -> None:
    right = local._accepted

    def wrong(work: Any, tokens: Any) -> Any:
        if len(tokens) > 1 and tokens[0].token_id != work.token_ids[-work.num_drafts]:
            tokens = [tokens[0]._replace(token_id=work.token_ids[-work.num_drafts]), *tokens[1:]]
        return right(work, tokens)

    patch.setattr(local, "_accepted", wrong)


@plant("twins", "gpu")
def rejected_drafts_stay_in_the_cache(patch: pytest.MonkeyPatch) -> None:
    right = scheduler.Scheduler._account_for

    def wrong(self: Any, sequence: Any, num_starts: int, work: Any, num_tokens: int) -> None:
        right(self, sequence, num_starts, work, num_tokens)
        if work.num_drafts > num_tokens > 1:
            sequence.num_computed_tokens += 1

    patch.setattr(scheduler.Scheduler, "_account_for", wrong)


@plant("twins", "gpu")
def drafts_share_their_noise(patch: pytest.MonkeyPatch) -> None:
    right = sampler.Sampler.sample

    def wrong(self: Any, logits: torch.Tensor, asked: Any) -> Any:
        first: dict[int, int] = {}
        asked = [a._replace(position=first.setdefault(a.row, a.position)) for a in asked]
        return right(self, logits, asked)

    patch.setattr(sampler.Sampler, "sample", wrong)


@plant("twins", "gpu")
def tokens_behind_the_stop_token_kept(patch: pytest.MonkeyPatch) -> None:
    right = sequence.Sequence._end_of
    patch.setattr(sequence.Sequence, "_end_of", lambda s, ids: (*right(s, ids)[:2], len(ids)))


# ---------------------------------------------------------------------- grammars


@plant("twins", "gpu")
def grammars_mask_of_the_row_beside(patch: pytest.MonkeyPatch) -> None:
    right = RowGrammars._fill
    patch.setattr(RowGrammars, "_fill", lambda self: right(self).roll(1, 0))


@plant("twins", "gpu")
def grammar_one_token_late(patch: pytest.MonkeyPatch) -> None:
    late: dict[int, list[int]] = {}

    def wrong(self: RowGrammar, token_ids: list[int]) -> None:
        self.num_pending -= 1
        self.matcher.accept(late.pop(id(self), []))
        late[id(self)] = token_ids

    patch.setattr(RowGrammar, "accept", wrong)


@plant("twins", "gpu")
def mask_of_the_latest_token_for_drafts(patch: pytest.MonkeyPatch) -> None:
    right = Grammars.fill

    def wrong(self: Any, table: int, num_rows: int, num_words: int, asked: Any) -> None:
        again = [(m, row + i, []) for m, row, drafts in asked for i in range(len(drafts) + 1)]
        right(self, table, num_rows, num_words, again)

    patch.setattr(Grammars, "fill", wrong)


@plant("twins", "gpu")
def grammar_begins_again_after_a_preemption(patch: pytest.MonkeyPatch) -> None:
    right = RowGrammars.start

    def wrong(self: Any, start: Any) -> None:
        right(self, replace(start, token_ids=start.token_ids[: start.num_prompt_tokens]))

    patch.setattr(RowGrammars, "start", wrong)


# ---------------------------------------------------------------------- sampling


@plant("twins", "kernels")
def penalties_before_masks(patch: pytest.MonkeyPatch) -> None:
    """A bias that is added after the penalties."""
    right = edits.Edits.apply

    def wrong(self: Any, logits: torch.Tensor, edited: Any) -> Any:
        biased = {e.row: self._rows[e.row].bias for e in edited}
        for row in biased:
            self._rows[row].bias = None
        checks = right(self, logits, edited)
        for e in edited:
            self._rows[e.row].bias = biased[e.row]
            if biased[e.row] is not None:
                logits[e.number].index_add_(0, *biased[e.row])
        return checks

    patch.setattr(edits.Edits, "apply", wrong)


@plant("twins", "kernels")
def presence_counted_like_frequency(patch: pytest.MonkeyPatch) -> None:
    right = edits.penalize

    def wrong(logits: Any, rows: Any, slots: Any, counts: torch.Tensor, *rest: Any) -> None:
        out = counts & (edit_logits.IN_PROMPT - 1)
        right(logits, rows, slots, (counts - out) | (out > 0).int(), *rest)

    patch.setattr(edits, "penalize", wrong)


@plant("twins", "gpu")
def counts_one_token_late(patch: pytest.MonkeyPatch) -> None:
    right = edits.Edits.sampled

    def wrong(self: Any, edited: Any, tokens: torch.Tensor) -> None:
        late = self.__dict__.get("late")
        self.late = tokens.clone()
        right(self, edited, tokens if late is None or len(late) != len(tokens) else late)

    patch.setattr(edits.Edits, "sampled", wrong)


@plant("twins", "kernels")
def mask_of_the_row_beside(patch: pytest.MonkeyPatch) -> None:
    right = edits.mask
    patch.setattr(edits, "mask", lambda z, at, slots, *rest: right(z, at, slots.roll(1), *rest))


@plant("twins")
def min_tokens_one_short(patch: pytest.MonkeyPatch) -> None:
    right = edits.Edits._compile_mask

    def wrong(self: Any, start: Any, row: Any) -> None:
        right(self, start, row)
        row.min_tokens = max(0, row.min_tokens - 1)

    patch.setattr(edits.Edits, "_compile_mask", wrong)


@plant("twins", "gpu")
def words_of_several_tokens_not_followed(patch: pytest.MonkeyPatch) -> None:
    right = edits.Edits.sampled

    def wrong(self: Any, edited: Any, tokens: torch.Tensor) -> None:
        words = [w for e in edited if (w := self._rows[e.row].words)]
        recent = [w.recent for w in words]
        right(self, edited, tokens)
        for w, before in zip(words, recent, strict=True):
            w.recent = before

    patch.setattr(edits.Edits, "sampled", wrong)


@plant("twins")
def noise_of_the_next_position(patch: pytest.MonkeyPatch) -> None:
    right = op.gumbel
    patch.setattr(op, "gumbel", lambda ids, at, choice, seed: right(ids, at + 1, choice, seed))


@plant("twins")
def choices_share_their_noise(patch: pytest.MonkeyPatch) -> None:
    right = op.gumbel
    patch.setattr(op, "gumbel", lambda ids, at, choice, seed: right(ids, at, choice * 0, seed))


@plant("twins", "kernels")
def seeds_of_another_row(patch: pytest.MonkeyPatch) -> None:
    right = op.sample
    patch.setattr(op, "sample", lambda z, rows, lib: right(z, rows._replace(seeds=rows.seeds.flip(0)), lib))


@plant("twins")
def top_p_off_by_one(patch: pytest.MonkeyPatch) -> None:
    right = op._least_within_mass
    patch.setattr(op, "_least_within_mass", lambda z, top_p: right(z, top_p * 0.7))


@plant("twins", "gpu")
def given_tokens_of_the_row_beside(patch: pytest.MonkeyPatch) -> None:
    right = sampler.report

    def wrong(logits: Any, tokens: Any, num_top: int, given: Any) -> Any:
        return right(logits, tokens, num_top, given and given._replace(token_ids=given.token_ids.roll(1, 0)))

    patch.setattr(sampler, "report", wrong)


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, bug = PLANTS[name]
    if kind == "kernels" and not shutil.which("c++"):
        pytest.skip("no C++ compiler")
    bug(monkeypatch)
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
        compare(kind)


def test_experts_mixed_up_are_found(stacked_experts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = moe.experts
    monkeypatch.setattr(moe, "experts", lambda x, up, down, chosen, *rest: right(x, up, down, chosen.flip(1), *rest))
    with pytest.raises(AssertionError):
        compare_families("gpu")


def test_a_comparison_that_calls_everything_a_tie_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "TIE", float("inf"))
    wrong_kv_head(monkeypatch)
    asked = [replace(request, sampling=SamplingParams(temperature=0)) for request in requests()]
    assert_as_reference(asked, run(llama_optimized(), asked))
    with pytest.raises(AssertionError, match="num_ties"):
        TALLY.assert_ties_are_rare()
