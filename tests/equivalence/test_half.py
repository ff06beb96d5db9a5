"""Half precision, which is what users run: the optimized engine errs no more than the reference engine does.

Both are held against the reference in float32 on the same weights, rounded to half precision: what is left are the
roundings of the computation. How large those are depends on the model, so the reference's own are the measure.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimized.kernels import gathered_attention
from optimized.layers import norm
from reference import ReferenceEngine
from tandem.config import ModelOptions, resolve
from tandem.engine import EngineRequest, TokenLogprobs
from tandem.sampling_params import SamplingParams
from tests.equivalence.answers import run
from tests.equivalence.helpers import LLAMA, create_optimized, poison
from tests.equivalence.test_model import request
from tests.equivalence.tolerances import HALF_OF_MANY, HALF_OF_ONE, TIE
from tests.reference.families import FAMILIES, VOCAB, build, configs, save

DTYPES = ("bfloat16", "float16")
SPLITS = {"max_num_batched_tokens": [1, 19, 512], "block_size": [2, 16], "max_num_seqs": [1, 4]}
MAX_TOKENS = 64


@dataclass
class Errors:
    """Of one answer: at each position after the first, the largest error of any token's log-probability.

    Attributes:
        ours, reference: float32 [T], of both engines in half precision.
        regret: float32 [T'], how much less likely than the likeliest token each output token is in float32.
    """

    ours: torch.Tensor
    reference: torch.Tensor
    regret: torch.Tensor

    def check_choices(self) -> None:
        """Greedy: a token that is not the best in float32 was taken because its error and the best one's allow it."""
        if len(self.regret):
            assert (self.regret <= 2 * self.ours[-len(self.regret) :] + TIE).all()


def mean_ratio(answers: list[Errors]) -> float:
    """The optimized engine's mean error to the reference's. At one position either may be lucky."""
    ours, reference = (torch.cat([getattr(a, name) for a in answers]) for name in ("ours", "reference"))
    return float(ours.mean() / reference.mean())


def errors(
    half: Any, dtype: str, ids: list[int], lengths: list[int], kernels: bool = False, **scheduler: Any
) -> list[Errors]:
    """Prompts that begin like ``ids``, continued greedily by the optimized engine; both score what it wrote."""
    with tempfile.TemporaryDirectory() as directory:
        save(half.to(getattr(torch, dtype)), Path(directory))
        exact = ReferenceEngine(resolve(ModelOptions(model=directory, dtype="float32")).engine)
        config = resolve(ModelOptions(model=directory, dtype=dtype)).engine
        reference = ReferenceEngine(config)
        optimized = create_optimized(config, "kernels" if kernels else "twins", **scheduler)
    poison(optimized)
    limit = min(MAX_TOKENS, exact.info.max_model_len)
    requests = [request(i, ids[: min(length, limit)], limit) for i, length in enumerate(lengths)]
    found = []
    for name, answer in run(optimized, requests).items():
        assert answer.finish_reason == "length", answer.error
        ids_of_all = requests[int(name)].prompt_token_ids + answer.token_ids
        ours = rows([*(answer.prompt_logprobs or []), *answer.logprobs])
        want, theirs = (scores(engine, ids_of_all) for engine in (exact, reference))
        outputs = want[len(want) - len(answer.token_ids) :]
        taken = outputs.gather(1, torch.tensor(answer.token_ids, dtype=torch.int64)[:, None])
        found.append(
            Errors(
                (ours - want).abs().amax(-1), (theirs - want).abs().amax(-1), (outputs.amax(-1) - taken[:, 0]).float()
            )
        )
    return found


def scores(engine: ReferenceEngine, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [T - 1, V] of all tokens but the first, each after those before it."""
    sampling = SamplingParams(temperature=0, prompt_logprobs=VOCAB)
    whole = EngineRequest(request_id="s", prompt_token_ids=ids, sampling=sampling, max_tokens=0, seed=0)
    return rows(run(engine, [whole])["s"].prompt_logprobs or [])


def rows(reports: list[Any]) -> torch.Tensor:
    """Full reports as log-probabilities [T, V]."""
    logprobs = torch.empty(len(reports), VOCAB)
    for row, report in zip(logprobs, reports, strict=True):
        assert isinstance(report, TokenLogprobs)
        row[report.top_ids] = torch.tensor(report.top_logprobs)
    return logprobs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=max(2, settings().max_examples // 10))
@given(data=st.data())
def test_a_model_of_any_family_errs_no_more_than_in_the_reference(
    family: str, dtype: str, data: st.DataObject
) -> None:
    config = data.draw(configs(family))
    for experts in ("num_experts", "num_local_experts"):
        if experts in config:  # all of them: where two are nearly tied, which is chosen is no matter of precision
            config["num_experts_per_tok"] = config[experts]
    half = build(family, config, seed=data.draw(st.integers(0, 2**31)))
    scheduler = {name: data.draw(st.sampled_from(values)) for name, values in SPLITS.items()}
    draw = random.Random(data.draw(st.integers(0, 2**31)))
    ids = draw.choices(range(VOCAB), k=MAX_TOKENS)
    lengths, kernels = [draw.randint(2, MAX_TOKENS) for _ in range(3)], data.draw(st.booleans())
    answers = errors(half, dtype, ids, lengths, kernels, **scheduler)
    for answer in answers:
        answer.check_choices()
    assert mean_ratio(answers) <= HALF_OF_ONE


def llama_ratio(dtype: str, kernels: bool = False) -> float:
    """Over some seeds, sizes and ways to cut the work."""
    answers = []
    for seed, tokens in enumerate([1, 7, 512, 1, 7, 512]):
        sizes = LLAMA | {"hidden_size": 64, "num_key_value_heads": 1 + seed % 2}
        ids = random.Random(seed).choices(range(VOCAB), k=MAX_TOKENS)
        llama = build("llama", sizes, seed)
        answers += errors(llama, dtype, ids, [20, 44, 64], kernels, max_num_batched_tokens=tokens)
    return mean_ratio(answers)


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_models_err_as_in_the_reference(dtype: str, kernels: bool) -> None:
    assert llama_ratio(dtype, kernels) <= HALF_OF_MANY


PLANTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {}


def plant(function: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
    PLANTS[function.__name__] = function
    return function


@plant
def norm_without_float32(patch: pytest.MonkeyPatch) -> None:
    def wrong(x: torch.Tensor, weight: torch.Tensor, eps: float, library: Any, **options: Any) -> Any:
        added, scale = options.get("added"), options.get("added_scale", 1.0)
        s = x if added is None else x + added * scale
        y = s * torch.rsqrt(s.square().mean(-1, keepdim=True) + eps)
        return (y * weight.to(x.dtype)).contiguous(), s

    patch.setattr(norm, "rms_norm", wrong)


class Torch:
    """The module with one function replaced."""

    def __init__(self, **replaced: Any) -> None:
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@plant
def softmax_in_bfloat16(patch: pytest.MonkeyPatch) -> None:
    """Hardly seen in a model that is in bfloat16, plainly in float16."""

    def wrong(x: torch.Tensor, dim: int) -> torch.Tensor:
        weights = (x - x.amax(dim, keepdim=True)).bfloat16().exp()
        return weights / weights.sum(dim, keepdim=True)

    patch.setattr(gathered_attention, "torch", Torch(softmax=wrong))


@plant
def attention_summed_one_by_one(patch: pytest.MonkeyPatch) -> None:
    """Values added up in half precision, rounded after each."""
    right = torch.bmm

    def wrong(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if b.stride(-1) != 1:  # the product with the keys
            return right(a, b)
        o = torch.zeros_like(right(a, b))
        for j in range(a.shape[-1]):
            o = o + a[..., j : j + 1] * b[..., j : j + 1, :]
        return o

    patch.setattr(gathered_attention, "torch", Torch(bmm=wrong))


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_loss_of_precision_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTS[name](monkeypatch)
    with pytest.raises(AssertionError):
        for dtype in DTYPES:
            assert llama_ratio(dtype) <= HALF_OF_MANY
