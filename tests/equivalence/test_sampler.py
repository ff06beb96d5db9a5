"""The batched sampler against the reference's, row by row: same token, same report, same errors."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimized.kernels import sample as op
from optimized.kernels.native import Library
from optimized.runner.edits import Edits
from optimized.runner.grammars import RowGrammars
from optimized.runner.rows import Rows
from optimized.runner.sampler import Asked, Sampled, Sampler
from optimized.scheduling.plan import RowStart
from reference.sampling import SamplingError
from reference.sampling import sample as sample_one
from tandem.engine import EngineRequest
from tandem.grammar.matcher import Grammars
from tandem.sampling_params import SamplingParams
from tests.equivalence.comparison import assert_same_report, best_two
from tests.equivalence.helpers import cpu_kernels, engine_requests, token_ids
from tests.equivalence.tolerances import TIE
from tests.reference.families import VOCAB

MODES = ["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]
eighths = st.integers(-40, 40).map(lambda i: i / 8)  # ties everywhere
row_of_logits = st.one_of(
    st.lists(eighths, min_size=VOCAB, max_size=VOCAB),
    st.integers(0, 2**31).map(
        lambda seed: (4 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))).tolist()
    ),
)
broken = st.sampled_from([float("nan"), float("inf")])


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[float], EngineRequest, list[int]]:
    """Logits, a request, and its output: what it had when it took a row, and what has been sampled since."""
    logits = draw(row_of_logits)
    if draw(st.integers(0, 9)) == 0:
        logits[draw(token_ids)] = draw(broken)
    return logits, draw(engine_requests()), draw(st.lists(token_ids, max_size=6))


class Batch:
    """Rows as a runner has them, after ``num_known`` tokens of their outputs."""

    def __init__(
        self,
        requests: list[EngineRequest],
        outputs: list[list[int]],
        mode: str,
        library: Library,
        num_known: int = 1 << 30,
    ) -> None:
        self.rows = Rows(len(requests), 1)
        self.edits = Edits(VOCAB, torch.device("cpu"), library)
        grammars = RowGrammars(Grammars("", VOCAB), VOCAB, torch.device("cpu"), library)
        self.sampler = Sampler(self.rows, self.edits, grammars, mode, library)
        self.positions = [0] * len(requests)
        for row, (request, output) in enumerate(zip(requests, outputs, strict=True)):
            start = RowStart(
                row,
                request.sampling,
                request.seed,
                request.choice_index,
                request.eos_token_ids,
                request.bad_words_token_ids,
                request.grammar,
                len(request.prompt_token_ids),
                [],
                [*request.prompt_token_ids, *output[:num_known]],
            )
            self.rows.start(start)
            self.edits.start(start)
            self.positions[row] = len(output[:num_known])
        for step in range(max(map(len, outputs), default=0)):
            self._force([(row, out[step]) for row, out in enumerate(outputs) if num_known <= step < len(out)])

    def sample(self, logits: torch.Tensor) -> list[Sampled]:
        return self.sampler.sample(logits, [Asked(row, at) for row, at in enumerate(self.positions)]).take()

    def _force(self, tokens: list[tuple[int, int]]) -> None:
        """A step in which these rows sample these tokens, since their logits allow nothing else."""
        if not tokens:
            return
        logits = torch.full((len(tokens), VOCAB), -1e30)
        for i, (_, token_id) in enumerate(tokens):
            logits[i, token_id] = 0
        asked = [Asked(row, self.positions[row]) for row, _ in tokens]
        with mock.patch.object(op, "sample", lambda z, *_: op.Sampled(
            torch.tensor([token_id for _, token_id in tokens]), torch.zeros(len(z)), z.amax(-1)
        )):  # fmt: skip
            self.sampler.sample(logits, asked)
        for row, _ in tokens:
            self.positions[row] += 1


@settings(max_examples=5 * settings().max_examples)
@given(
    batch=st.lists(rows(), min_size=1, max_size=6),
    mode=st.sampled_from(MODES),
    kernels=st.booleans(),
    ordered=st.sampled_from([1, 20, 1024]),
    num_known=st.integers(0, 6),
)
def test_a_batch_is_sampled_as_its_rows_alone(
    batch: list, mode: str, kernels: bool, ordered: int, num_known: int
) -> None:
    """Whatever part of an output was known when its row started: the rest has been sampled step by step."""
    logits = torch.tensor([row for row, _, _ in batch])
    library = cpu_kernels() if kernels else Library()
    state = Batch([r for _, r, _ in batch], [output for _, _, output in batch], mode, library, num_known)
    with mock.patch.object(op, "_ORDERED", ordered):
        sampled = state.sample(logits)
    for got, (row, request, output) in zip(sampled, batch, strict=True):
        try:
            want = sample_one(torch.tensor(row), request, output, mode)
        except SamplingError as error:
            assert got.error == str(error)
            continue
        assert got.error is None
        if got.token_id != want.token_id:
            best, second = best_two(torch.tensor(row), request, output)
            assert best - second < TIE
            continue
        assert (got.logprobs is None) == (want.logprobs is None)
        if want.logprobs is not None:
            [report] = got.logprobs
            assert_same_report(report, want.logprobs)
            assert report.rank == want.logprobs.rank and report.top_ids == want.logprobs.top_ids


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_temperature_that_overflows_is_greedy(mode: str, kernels: bool) -> None:
    row = torch.full((VOCAB,), -3e34)
    row[:4] = torch.tensor([1.0, 3e34, 2e34, -3e34])
    sampling = SamplingParams(temperature=1e-5, top_k=2, min_p=0.5, logprobs=3)
    request = EngineRequest(request_id="", prompt_token_ids=[1], sampling=sampling, max_tokens=9, seed=1)
    [got] = Batch([request], [[]], mode, cpu_kernels() if kernels else Library()).sample(row[None].clone())
    want = sample_one(row, request, [], mode)
    assert got.token_id == want.token_id == 1
    [report] = got.logprobs
    assert_same_report(report, want.logprobs)


@pytest.mark.parametrize("mode", MODES)
def test_neighbours_do_not_change_a_row(mode: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(64, VOCAB, generator=generator)
    requests = [varied(i) for i in range(64)]
    together = Batch(requests, [[]] * 64, mode, Library()).sample(logits.clone())
    alone = [Batch([r], [[]], mode, Library()).sample(logits[i : i + 1].clone())[0] for i, r in enumerate(requests)]
    assert [t.token_id for t in together] == [a.token_id for a in alone]


def varied(i: int) -> EngineRequest:
    sampling = SamplingParams(temperature=(i % 3) / 2, top_k=i % 7, top_p=1 - (i % 5) / 10, min_p=(i % 4) / 20)
    return EngineRequest(request_id="", prompt_token_ids=[1], sampling=sampling, max_tokens=9, seed=i * 12345)
