"""The offline interface."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tandem import LLM, SamplingParams
from tandem.errors import CheckpointError, ConfigError, RequestError
from tests.tiny import write_model

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    llm = LLM(str(write_model(tmp_path_factory.mktemp("model"))), dtype="float32")
    yield llm
    llm.close()


def test_results_come_in_the_order_of_the_prompts_and_do_not_depend_on_company(llm: LLM) -> None:
    prompts = ["the quick", "a lazy dog", "東京"]
    together = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [result.prompt for result in together] == prompts
    for prompt, result in zip(prompts, together, strict=True):
        (alone,) = llm.generate(prompt, GREEDY, use_tqdm=False)
        assert alone.outputs[0].token_ids == result.outputs[0].token_ids
        assert result.finished and result.outputs[0].finish_reason == "length"


def test_the_forms_of_a_prompt_mean_the_same(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("the quick")
    forms: list[Any] = ["the quick", ["the quick"], ids, [ids], {"prompt": "the quick"}, [{"prompt_token_ids": ids}]]
    answers = [llm.generate(form, GREEDY, use_tqdm=False) for form in forms]
    assert all(len(answer) == 1 for answer in answers)
    assert len({tuple(answer[0].outputs[0].token_ids) for answer in answers}) == 1


def test_choices_differ_and_a_seed_repeats(llm: LLM) -> None:
    sampling = SamplingParams(n=3, seed=11, max_tokens=12, ignore_eos=True)
    first, second = (llm.generate("the", sampling, use_tqdm=False)[0] for _ in range(2))
    assert [o.token_ids for o in first.outputs] == [o.token_ids for o in second.outputs]
    assert len({tuple(o.token_ids) for o in first.outputs}) == 3
    assert [o.index for o in first.outputs] == [0, 1, 2]


def test_logprobs_are_reported_for_answer_and_prompt(llm: LLM) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logprobs=3, prompt_logprobs=2)
    (result,) = llm.generate("the quick", sampling, use_tqdm=False)
    output = result.outputs[0]
    assert output.logprobs is not None and result.prompt_logprobs is not None
    assert [len(entry) for entry in output.logprobs] == [3] * 5
    assert output.cumulative_logprob == sum(max(entry.values()) for entry in output.logprobs)
    assert result.prompt_logprobs[0] is None
    assert len(result.prompt_logprobs) == len(result.prompt_token_ids)
    assert all(
        token in entry for token, entry in zip(result.prompt_token_ids[1:], result.prompt_logprobs[1:], strict=True)
    )


def test_log_probabilities_of_given_tokens_are_those_of_the_whole_distribution(llm: LLM) -> None:
    every = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, logprobs=20)
    ((expected,),) = ([r.outputs[0].logprobs] for r in llm.generate("the quick", every, use_tqdm=False))
    assert expected is not None
    chosen = list(expected[0])[5:2:-1]
    given = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, logprob_token_ids=chosen)
    ((found,),) = ([r.outputs[0].logprobs] for r in llm.generate("the quick", given, use_tqdm=False))
    assert found is not None and [list(entry)[:3] for entry in found] == [chosen] * 3
    for token_id in chosen:
        assert found[0][token_id] == pytest.approx(expected[0][token_id], abs=1e-4)


def test_a_conversation_is_the_prompt_its_template_makes(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hi"}]
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    (by_chat,) = llm.chat(messages, GREEDY, use_tqdm=False)
    (by_prompt,) = llm.generate(prompt, GREEDY, use_tqdm=False)
    assert by_chat.prompt == prompt
    assert by_chat.outputs[0].token_ids == by_prompt.outputs[0].token_ids
    assert len(llm.chat([messages, messages], GREEDY, use_tqdm=False)) == 2
    (own,) = llm.chat(messages, GREEDY, use_tqdm=False, chat_template="{{ messages[0].content }}!")
    assert own.prompt == "hi!"


def test_a_refused_prompt_leaves_the_model_usable(llm: LLM) -> None:
    with pytest.raises(RequestError):
        llm.generate(["fine", []], GREEDY, use_tqdm=False)
    with pytest.raises(RequestError, match="sampling_params"):
        llm.generate(["a", "b"], [GREEDY], use_tqdm=False)
    assert llm.generate("fine", GREEDY, use_tqdm=False)[0].finished


def test_what_cannot_be_loaded_is_named(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="max_modle_len"):
        LLM(max_modle_len=5)
    with pytest.raises(CheckpointError, match="neither a directory"):
        LLM("nowhere")
    write_model(tmp_path, chat_template=None)
    with pytest.raises(RequestError, match="no chat template"):
        LLM(str(tmp_path)).chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ((None,), "prompts"),
        ((3,), "prompts"),
        ((b"text",), "prompts"),
        (([1.5],), "prompts"),
        (([[1.5]],), "prompts"),
        (([True, 2],), "prompts"),
        (([None],), "prompts"),
        (({"text": "a"},), "prompts"),
        (({"prompt": 5},), "prompts"),
        (({"prompt_token_ids": "abc"},), "prompts"),
        (("a", {"temperature": 0}), "sampling_params"),
        (("a", ["greedy"]), "sampling_params"),
        (("a", 5), "sampling_params"),
    ],
)
def test_arguments_of_wrong_types_are_named_in_one_line(llm: LLM, arguments: Any, param: str) -> None:
    with pytest.raises(RequestError) as refusal:
        llm.generate(*arguments, use_tqdm=False)
    assert refusal.value.param == param and "\n" not in str(refusal.value)


@pytest.mark.parametrize("messages", [None, "hi", 5, ["hi"], [[["user", "hi"]]], {"role": "user", "content": "hi"}])
def test_conversations_of_wrong_types_are_named(llm: LLM, messages: Any) -> None:
    with pytest.raises(RequestError) as refusal:
        llm.chat(messages, use_tqdm=False)
    assert refusal.value.param == "messages"
    with pytest.raises(RequestError, match="chat_template"):
        llm.chat([{"role": "user", "content": "hi"}], use_tqdm=False, chat_template="{% broken")


def test_arrays_are_lists_of_token_ids(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("the quick")
    answers = [
        llm.generate(form, GREEDY, use_tqdm=False) for form in (np.array(ids), [np.array(ids)], tuple(ids), ids)
    ]
    assert len({tuple(answer[0].outputs[0].token_ids) for answer in answers}) == 1
    assert all(type(i) is int for i in answers[0][0].prompt_token_ids)
    assert llm.generate([], GREEDY, use_tqdm=False) == [] == llm.chat([], use_tqdm=False)
