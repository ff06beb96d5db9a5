"""The bundled model: small enough, loadable by others, and the same there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tandem import LLM, SamplingParams
from tandem.models.hub import BUNDLED_MODEL

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "What is 17 plus 25?"}]},
    {
        "messages": [
            {"role": "system", "content": "Answer in upper case."},
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": "NICE TO MEET YOU, ADA!"},
            {"role": "user", "content": "What is my name?"},
        ]
    },
    {"messages": [{"role": "user", "content": "How is the weather in Oslo?"}], "tools": [WEATHER]},
    {
        "messages": [
            {"role": "user", "content": "How is the weather in Oslo?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": '{"temperature": 21}'},
        ],
        "tools": [WEATHER],
    },
    {"messages": [{"role": "user", "content": "What is 48 + 37?"}], "enable_thinking": True},
]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    llm = LLM(dtype="float32")
    yield llm
    llm.close()


def test_it_is_small() -> None:
    assert (BUNDLED_MODEL / "model.safetensors").stat().st_size <= 8_000_000


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_transformers_renders_and_answers_the_same(llm: LLM, conversation: dict[str, Any]) -> None:
    messages, tools = conversation["messages"], conversation.get("tools")
    thinking = conversation.get("enable_thinking", False)
    (ours,) = llm.chat(
        messages,
        SamplingParams(temperature=0, max_tokens=48),
        tools=tools,
        chat_template_kwargs={"enable_thinking": thinking},
        use_tqdm=False,
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    prompt = tokenizer.apply_chat_template(
        messages, tools=tools, enable_thinking=thinking, add_generation_prompt=True, tokenize=False
    )
    assert ours.prompt == prompt
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    assert inputs.input_ids[0].tolist() == ours.prompt_token_ids
    model: Any = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.float32)
    output = model.generate(inputs.input_ids, max_new_tokens=48, do_sample=False)
    theirs = tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert ours.outputs[0].text == theirs
