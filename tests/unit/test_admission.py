"""The gate refuses what the engine could not do, and completes what it can."""

from __future__ import annotations

from typing import Any

import pytest

from tandem import SamplingParams
from tandem.config import EngineConfig, ResolvedModel
from tandem.engine import EngineInfo, EngineRequest
from tandem.errors import ContextLengthError, RequestError
from tandem.generation.admission import MAX_CHOICES, MIN_TEXT_BYTES, Admission
from tandem.models.families import read_model_config
from tandem.models.hub import ModelFiles
from tests.unit.test_detokenizer import BYTE_LEVEL

RAW = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 300, "hidden_size": 8}
RAW |= {"num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "rms_norm_eps": 1e-6}
MODEL = read_model_config(RAW | {"max_position_embeddings": 64})


def admit(admission: Admission, prompt: list[int], sampling: SamplingParams) -> list[EngineRequest]:
    return admission.admit(prompt, admission.terms(sampling))


def gate(
    seed: int = 0,
    kv_cache_tokens: int = 1000,
    max_logprobs: int = 5,
    vocab_size: int = 300,
    eos: tuple[int, ...] = (9,),
) -> Admission:
    engine = EngineConfig(
        files=ModelFiles(path=""), model=MODEL, backend="auto", dtype="float32", max_model_len=32, seed=seed
    )
    resolved = ResolvedModel(
        engine=engine, tokenizer_path="", eos_token_ids=eos, default_sampling={}, max_logprobs=max_logprobs
    )
    info = EngineInfo(
        backend="b",
        device="cpu",
        dtype="float32",
        vocab_size=vocab_size,
        max_model_len=32,
        kv_cache_tokens=kv_cache_tokens,
        num_parameters=1,
    )
    return Admission(resolved, info, BYTE_LEVEL)


@pytest.mark.parametrize(
    ("prompt", "params", "param"),
    [
        ([], {}, "prompt"),
        ([300], {}, "prompt"),
        ([-1], {}, "prompt"),
        ([1], {"n": MAX_CHOICES + 1}, "n"),
        ([1], {"logprobs": 6}, "logprobs"),
        ([1], {"logprob_token_ids": [1, 99999]}, "logprob_token_ids"),
        ([1], {"prompt_logprobs": 6}, "prompt_logprobs"),
        ([1], {"stop_token_ids": [300]}, "stop_token_ids"),
        ([1], {"allowed_token_ids": [-1]}, "allowed_token_ids"),
        ([1], {"logit_bias": {300: 1.0}}, "logit_bias"),
    ],
)
def test_what_this_model_does_not_have_is_refused_by_name(
    prompt: list[int], params: dict[str, Any], param: str
) -> None:
    with pytest.raises(RequestError) as refusal:
        admit(gate(), prompt, SamplingParams(**params))
    assert refusal.value.param == param


def test_given_tokens_are_not_counted_against_the_limit_on_logprobs() -> None:
    admit(gate(max_logprobs=0), [1], SamplingParams(logprob_token_ids=[3, 2, 1]))


def test_no_limit_on_logprobs_means_the_vocabulary() -> None:
    admit(gate(max_logprobs=-1), [1], SamplingParams(logprobs=300))


@pytest.mark.parametrize("length", [17, 32, 33])
def test_an_answer_that_does_not_fit_is_refused(length: int) -> None:
    with pytest.raises(ContextLengthError) as refusal:
        admit(gate(), [1] * length, SamplingParams(max_tokens=16))
    assert refusal.value.code == "context_length_exceeded"


def test_a_prompt_within_the_model_but_above_the_cache_is_refused() -> None:
    with pytest.raises(ContextLengthError):
        admit(gate(kv_cache_tokens=10), [1] * 11, SamplingParams(max_tokens=1))


def test_without_max_tokens_the_answer_may_fill_the_context() -> None:
    (request,) = admit(gate(), [1] * 10, SamplingParams(max_tokens=None))
    assert request.max_tokens == 22
    with pytest.raises(ContextLengthError):
        admit(gate(), [1] * 32, SamplingParams(max_tokens=None))


def test_choices_share_all_but_their_number_and_the_prompts_logprobs() -> None:
    requests = admit(gate(), [1], SamplingParams(n=3, prompt_logprobs=1))
    assert [request.choice_index for request in requests] == [0, 1, 2]
    assert len({request.request_id for request in requests}) == 3
    assert len({request.seed for request in requests}) == 1
    assert [request.sampling.prompt_logprobs for request in requests] == [1, None, None]


def test_seeds_are_kept_or_drawn_in_an_order_that_repeats() -> None:
    (given,) = admit(gate(), [1], SamplingParams(seed=5))
    assert given.seed == 5
    first, second, other = gate(seed=1), gate(seed=1), gate(seed=2)
    drawn = [[admit(g, [1], SamplingParams())[0].seed for _ in range(3)] for g in (first, second, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 3


def test_the_end_of_sequence_is_ordinary_if_asked() -> None:
    assert admit(gate(), [1], SamplingParams())[0].eos_token_ids == (9,)
    assert admit(gate(), [1], SamplingParams(ignore_eos=True))[0].eos_token_ids == ()


def test_bad_words_are_forbidden_with_and_without_a_space_before() -> None:
    (request,) = admit(gate(), [1], SamplingParams(bad_words=["the"]))
    assert {BYTE_LEVEL.decode(list(ids)) for ids in request.bad_words_token_ids} == {"the", " the"}


def test_ids_outside_the_vocabulary_never_reach_an_engine() -> None:
    """A tokenizer or a generation config may know more tokens than the model has."""
    narrow = gate(vocab_size=258, eos=(9, 258, 2**70, -1))
    (request,) = admit(narrow, [1], SamplingParams(bad_words=["the", "th"]))
    assert request.eos_token_ids == (9,)
    spelled = [i for word in request.bad_words_token_ids for i in word]
    assert spelled and max(spelled) < 258, "'the' is token 257 and 'th' 256"
    for params in ({"stop_token_ids": [258]}, {"allowed_token_ids": [258]}, {"logit_bias": {258: 1.0}}):
        with pytest.raises(RequestError):
            admit(narrow, [1], SamplingParams(**params))
    with pytest.raises(RequestError):
        admit(narrow, [258], SamplingParams())


def test_bad_words_are_tokenized_once_and_everything_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    admission, encoded = gate(), []
    encode = BYTE_LEVEL.encode
    monkeypatch.setattr(BYTE_LEVEL, "encode", lambda text, **options: encoded.append(text) or encode(text, **options))
    terms = admission.terms(SamplingParams(n=128, bad_words=["the", "fox"], prompt_logprobs=0))
    prompts = [[1, 2, 3] for _ in range(32)]
    requests = [request for prompt in prompts for request in admission.admit(prompt, terms, group="g")]
    assert len(requests) == 4096 and len(encoded) == 4
    assert len({id(request.prompt_token_ids) for request in requests}) == 32
    assert len({id(request.sampling) for request in requests}) == 2
    for field in ("bad_words_token_ids", "eos_token_ids"):
        assert len({id(getattr(request, field)) for request in requests}) == 1
    assert {request.group for request in requests} == {"g"}


def test_a_text_that_cannot_fit_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    admission = gate()
    admission.encode("the quick")
    monkeypatch.setattr(BYTE_LEVEL, "encode", lambda text, add_special_tokens: pytest.fail("it was tokenized"))
    with pytest.raises(ContextLengthError):
        admission.encode("x" * 10_000)
    with pytest.raises(ContextLengthError):
        admission.encode("é" * (MIN_TEXT_BYTES // 2 + 1), fits=False)
    with pytest.raises(ContextLengthError):
        admission.measure("x" * 10_000)
