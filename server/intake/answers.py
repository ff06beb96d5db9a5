"""What the answer to a conversation may be, and how it is read: thoughts, tool calls, text of some form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from server.schemas.openai.chat import ChatRequest
from server.schemas.openai.tools import callable_tools
from server.state import Formats, LoadedModel
from tandem.errors import RequestError
from tandem.generation.decoding import PLAIN, Reading
from tandem.grammar.sources import (
    Marker,
    Thoughts,
    after_thoughts,
    anything,
    either,
    grammar_of,
    lark,
    quoted,
    text_and,
)
from tandem.text.parsers.chain import chain
from tandem.text.parsers.parser import Tool, ToolFormat

TAIL_TOKENS = 32  # of a prompt, in which thoughts may have begun or ended


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """How an answer is read, and the grammar that it must follow; empty for any, or for the form asked for.

    Attributes:
        param: the field of the request to blame for the grammar.
    """

    reading: Reading
    grammar: str
    param: str


def plan_answer(model: LoadedModel, request: ChatRequest, prompt: Sequence[int]) -> AnswerPlan:
    """The plan for one conversation, whose prompt says whether the model has begun to think.

    Raises:
        RequestError: tools or a thinking budget are asked for, and this model's format of them is not known.
    """
    formats = model.formats
    mode, tools = callable_tools(request.tools, request.tool_choice)
    if mode != "none" and formats.tools is None:
        message = "how this model writes tool calls is not known: the server needs --tool-call-parser"
        raise RequestError(message, "tools", "unsupported_parameter")
    tail = model.tokenizer.decode(list(prompt[-TAIL_TOKENS:]))
    grammar, param = _grammar(model, request, mode, tools)
    grammar, param = _behind_thoughts(model, request, tail, grammar, param)
    return AnswerPlan(_reading(formats, tail, mode, tools), grammar, param)


def _reading(formats: Formats, tail: str, mode: str, tools: list[Tool]) -> Reading:
    reasoning, calls = formats.reasoning, formats.tools if mode != "none" else None
    if reasoning is None and calls is None:
        return PLAIN
    markers = frozenset().union(*(form.markers for form in (reasoning, calls) if form is not None))
    return Reading(
        lambda choice: chain(
            choice,
            reasoning.parser(choice, tail) if reasoning is not None else None,
            calls.parser(choice, tools) if calls is not None else None,
        ),
        markers,
    )


def _grammar(model: LoadedModel, request: ChatRequest, mode: str, tools: list[Tool]) -> tuple[str, str]:
    """Of the answer behind any thoughts, and the field to blame for it."""
    param, form = request.form
    wanted = "" if form is None else grammar_of(form, param)
    calls = model.formats.tools
    if mode == "none" or calls is None:
        return wanted, param
    parallel = request.parallel_tool_calls is not False and request.named_function is None
    if mode == "auto" and not wanted:
        if parallel and not any(tool.strict for tool in tools):
            return "", param
        tools = [tool if tool.strict else msgspec.structs.replace(tool, parameters=None) for tool in tools]
    called = lark(calls.grammar(tools, parallel, lambda marker: _in_lark(model, marker)))
    if mode == "required":
        return called, "tools"
    return (either(called, wanted), param) if wanted else (_strict(model, calls, called), "tools")


def _strict(model: LoadedModel, calls: ToolFormat, called: str) -> str:
    """Free text, and calls as the grammar has them: it holds from the format's marker on, where that is a token."""
    control = model.tokenizer.control_token_ids
    markers = {model.tokenizer.token_id(marker) for marker in calls.markers} & control
    return text_and(called, control - markers - set(model.resolved.eos_token_ids)) if markers else ""


def _behind_thoughts(
    model: LoadedModel, request: ChatRequest, tail: str, grammar: str, param: str
) -> tuple[str, str]:
    budget, form = request.thinking_token_budget, model.formats.reasoning
    if budget is not None and form is None:
        message = "how this model writes its thoughts is not known: the server needs --reasoning-parser"
        raise RequestError(message, "thinking_token_budget", "unsupported_parameter")
    if form is None or not (grammar or budget is not None):
        return grammar, param
    thinking = form.is_thinking(tail)
    if thinking is False:
        return grammar, param
    thoughts = Thoughts(_marker(model, form.begin), _marker(model, form.end), bool(thinking), budget)
    if not grammar:
        param = "thinking_token_budget"
        others = {*model.resolved.eos_token_ids, thoughts.begin.token_id, thoughts.end.token_id}
        grammar = anything(model.tokenizer.control_token_ids - others)
    return after_thoughts(grammar, thoughts), param


def _marker(model: LoadedModel, text: str) -> Marker:
    token_id = model.tokenizer.token_id(text)
    return Marker(text, token_id if token_id in model.tokenizer.control_token_ids else None)


def _in_lark(model: LoadedModel, marker: str) -> str:
    """A control token is no text for a grammar; others are written like any text."""
    token_id = model.tokenizer.token_id(marker)
    return f"<[{token_id}]>" if token_id in model.tokenizer.control_token_ids else quoted(marker)
