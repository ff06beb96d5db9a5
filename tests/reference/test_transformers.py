"""The reference engine against transformers in float32: every family, over drawn architectures."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reference import ReferenceEngine
from tandem.config import ModelOptions, resolve
from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams
from tests.reference.families import CONTEXT, FAMILIES, VOCAB, build, configs, save

TOLERANCE = 1e-4
TIE = 1e-5  # a top-two gap below it counts as agreement

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

few = settings(max_examples=max(2, settings().max_examples // 4))


def load(model: Any, max_model_len: int | str = "auto") -> ReferenceEngine:
    """The reference engine on what transformers saves of ``model``."""
    with tempfile.TemporaryDirectory() as directory:
        save(model, directory)
        config = resolve(ModelOptions(model=directory, dtype="float32", max_model_len=max_model_len)).engine
        return ReferenceEngine(config)


def expected_logits(model: Any, ids: list[int]) -> torch.Tensor:
    """Logits [T, V] of transformers.

    With dynamic RoPE one forward pass turns every position by the base for the whole length; decoding token by token
    is what defines it.
    """
    rope = model.config.rope_parameters
    if "dynamic" not in (rope.get("rope_type"), rope.get("full_attention", {}).get("rope_type")):
        return model(torch.tensor([ids]), use_cache=False).logits[0]
    cache, rows = transformers.DynamicCache(), []  # plain: its windowed layers keep too much for a window of 1
    for token_id in ids:
        out = model(torch.tensor([[token_id]]), past_key_values=cache, use_cache=True)
        rows.append(out.logits[0])
    return torch.cat(rows)


def well_conditioned(model: Any, ids: list[int]) -> bool:
    """Whether rounding errors stay small: a norm of a vector that happens to be near zero makes noise of them.

    The embeddings are moved by some ten units in the last place; what that changes, no float32 code can promise.
    """
    before = model(torch.tensor([ids]), use_cache=False).logits
    scale = getattr(model.model.embed_tokens, "scalar_embed_scale", 1.0)
    moved = model.get_input_embeddings().weight.clone()
    moved *= 1 + 1e-6 * torch.randn(moved.shape, generator=torch.Generator().manual_seed(0))
    after = model(inputs_embeds=moved[torch.tensor([ids])] * scale, use_cache=False).logits
    return bool((after - before).abs().max() < TOLERANCE)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Compares row by row, so that one bad position cannot hide among good ones."""
    worst = (actual - expected).abs().amax(dim=-1)
    position = int(worst.argmax())
    assert worst[position] < TOLERANCE, f"{what} differ by {worst[position]:.2e}, worst at position {position}"


def run(engine: ReferenceEngine, prompt: list[int], max_tokens: int, **sampling: Any) -> list[Any]:
    params = SamplingParams(temperature=0, max_tokens=max_tokens, **sampling)
    engine.add(EngineRequest(request_id="r", prompt_token_ids=prompt, sampling=params, max_tokens=max_tokens, seed=0))
    outputs = []
    while engine.has_unfinished:
        outputs += engine.step()
    assert outputs[-1].finish_reason == "length", outputs[-1].error
    return outputs


@pytest.mark.parametrize("family", FAMILIES)
@few
@given(data=st.data())
def test_family_matches_transformers(family: str, data: st.DataObject) -> None:
    config = data.draw(configs(family))
    model = build(family, config, seed=data.draw(st.integers(0, 2**31)))
    # with a short limit, longrope takes its other set of frequencies
    engine = load(model, data.draw(st.sampled_from(["auto", "auto", 20])))
    length = min(2 * CONTEXT, engine.info.max_model_len)
    ids = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=length, max_size=length))
    with torch.inference_mode():
        assume(well_conditioned(model, ids))
        check(engine, model, ids)


ROPES = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 24},
}


@pytest.mark.parametrize("kind", ROPES)
def test_every_way_to_a_longer_context(kind: str) -> None:
    check_example("llama", {"rope_parameters": {"rope_type": kind, "rope_theta": 100.0} | ROPES[kind]})


@pytest.mark.parametrize("max_model_len", [20, "auto"])
def test_longrope_on_both_sides_of_the_original_context(max_model_len: int | str) -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0], "long_factor": [1.0, 3.0, 9.0]}
    rope |= {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    changes = {"rope_parameters": rope, "original_max_position_embeddings": 20, "pad_token_id": None}
    check_example("phi3", changes, max_model_len)


def check_example(family: str, changes: dict[str, Any], max_model_len: int | str = "auto") -> None:
    sizes = {"vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT}
    model = build(family, sizes | heads | {"eos_token_id": None} | changes, seed=1)
    engine = load(model, max_model_len)
    length = min(2 * CONTEXT, engine.info.max_model_len)
    with torch.inference_mode():
        check(engine, model, [7 * i * i % VOCAB for i in range(length)])


def check(engine: ReferenceEngine, model: Any, ids: list[int]) -> None:
    expected = expected_logits(model, ids)
    check_logits_of_every_position(engine, ids, expected)
    check_prompt_logprobs(engine, ids, torch.log_softmax(expected, -1))
    check_greedy_tokens(engine, model, ids[: min(8, len(ids) // 2)])


def check_logits_of_every_position(engine: ReferenceEngine, ids: list[int], expected: torch.Tensor) -> None:
    kv = engine.model.new_cache()
    split = len(ids) // 3
    x = [engine.model(torch.tensor(ids[:split]), kv)]  # several tokens at once …
    x += [engine.model(torch.tensor([token_id]), kv) for token_id in ids[split:]]  # … and one by one
    assert_close(engine.model.logits(torch.cat(x)), expected, "logits")


def check_prompt_logprobs(engine: ReferenceEngine, ids: list[int], expected: torch.Tensor) -> None:
    (output,) = run(engine, ids, max_tokens=0, prompt_logprobs=3)
    reports = list(output.prompt_logprobs)
    assert len(reports) == len(ids) - 1
    for position, (report, row) in enumerate(zip(reports, expected[:-1], strict=True)):
        assert report.token_id == ids[position + 1]
        got = torch.tensor([report.logprob, *report.top_logprobs])
        want = torch.cat((row[report.token_id][None], row.topk(3).values))
        assert (got - want).abs().max() < TOLERANCE, f"prompt logprobs at position {position}: {got} for {want}"


def check_greedy_tokens(engine: ReferenceEngine, model: Any, prompt: list[int]) -> None:
    room = engine.info.max_model_len - len(prompt)
    outputs = run(engine, prompt, max_tokens=min(64, room), logprobs=2)
    tokens = [token_id for output in outputs for token_id in output.new_token_ids]
    logits = expected_logits(model, prompt + tokens[:-1])[len(prompt) - 1 :]
    expected = torch.log_softmax(logits, -1)
    for position, (output, row) in enumerate(zip(outputs, expected, strict=True)):
        (report,) = output.logprobs
        (best, second), (best_id, _) = (x.tolist() for x in row.topk(2))
        assert report.token_id == best_id or best - second < TIE, f"token {position}: {report} for {best_id}"
        assert abs(report.logprob - best) < TOLERANCE and report.rank == 1, f"token {position}: {report}"
