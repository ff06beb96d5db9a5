"""LlamaIndex's client of servers like OpenAI's."""

from __future__ import annotations

from typing import Any

from asked import ADA, BASE, EXPECTED, KEY, MODEL, SUM, WEATHERS, Person, Weather
from llama_index.core import PromptTemplate
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

LLM: Any = OpenAILike(
    model=MODEL,
    api_base=BASE,
    api_key=KEY,
    is_chat_model=True,
    is_function_calling_model=True,
    should_use_structured_outputs=True,
    temperature=0,
    max_retries=0,
)
MESSAGES = [ChatMessage(role="user", content=SUM)]


def test_a_stream_says_what_the_whole_answer_says() -> None:
    whole = LLM.chat(MESSAGES).message.content
    assert "42" in whole
    assert "".join(chunk.delta or "" for chunk in LLM.stream_chat(MESSAGES)) == whole
    assert "42" in LLM.complete(SUM).text


def test_tools_are_called() -> None:
    tools = [FunctionTool.from_defaults(Weather().get_weather)]
    fields: Any = {"tools": tools, "user_msg": WEATHERS, "allow_parallel_tool_calls": True}
    for answer in (LLM.chat_with_tools(**fields), list(LLM.stream_chat_with_tools(**fields))[-1]):
        calls = LLM.get_tool_calls_from_response(answer)
        assert [call.tool_kwargs for call in calls] == [{"city": "Paris"}, {"city": "Rome"}]


def test_an_object_of_a_type() -> None:
    assert LLM.structured_predict(Person, PromptTemplate(ADA)) == EXPECTED
