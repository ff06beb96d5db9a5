"""What a request of Anthropic's Messages API means in terms of chat.

Turns of one role that follow each other are one. A turn of the user becomes tool messages and messages of the user,
in the order of its blocks; a turn of the assistant one message, its text joined. A last turn of the assistant is
continued.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from server.config import ServerConfig
from server.intake.conversation import chat_job
from server.intake.job import Job
from server.intake.prompts import tokenize
from server.schemas.openai.chat import ChatRequest, ContentPart, FunctionCall, Message, ToolCall
from server.schemas.openai.forms import JsonSchemaFormat, NamedSchema
from server.schemas.openai.tools import FunctionDefinition, Named, NamedTool, ToolChoice, ToolDefinition
from server.schemas.tokens import TokenizeRequest
from server.schemas.vendors.messages import (
    AdaptiveThinking,
    AnyChoice,
    AutoChoice,
    Block,
    Conversation,
    CountRequest,
    DisabledThinking,
    EnabledThinking,
    MessagesRequest,
    NoChoice,
    OneChoice,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from server.state import LoadedModel
from tandem.errors import RequestError

ERROR_PREFIX = "Error: "  # of a result that says is_error: chat has no such mark
_FIELDS = {  # of chat, and what they are called here
    "prompt": "messages",
    "stop": "stop_sequences",
    "parallel_tool_calls": "tool_choice",
    "thinking_token_budget": "thinking.budget_tokens",
    "chat_template_kwargs": "thinking",
    "response_format": "output_config.format",
}


def messages_job(model: LoadedModel, config: ServerConfig, request: MessagesRequest, arrival_time: float) -> Job:
    """A conversation to answer. May take long: see ``WorkPool``.

    Raises:
        RequestError: something is refused; ``param`` is a field of ``request``.
    """
    try:
        return chat_job(model, config, chat_request(request), arrival_time)
    except RequestError as error:
        raise _in_own_terms(error) from error


def count_tokens(model: LoadedModel, request: CountRequest) -> int:
    """Tokens of the prompt that the same conversation would have. May take long: see ``WorkPool``.

    Raises:
        RequestError: as ``messages_job``.
    """
    common = _common(request)
    hidden = common.pop("tool_choice") == "none"
    common.pop("parallel_tool_calls")
    common["tools"] = None if hidden else common["tools"]
    try:
        return len(tokenize(model, TokenizeRequest(**common), None))
    except RequestError as error:
        raise _in_own_terms(error) from error


def chat_request(request: MessagesRequest) -> ChatRequest:
    """The same in terms of chat.

    Raises:
        RequestError: turns do not fit together.
    """
    thinking, output = request.thinking, request.output_config
    form = None
    if output is not None and output.format is not None:
        form = JsonSchemaFormat(json_schema=NamedSchema(name="output", schema=output.format.schema))
    return ChatRequest(
        **_common(request),
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        stop=request.stop_sequences,
        seed=request.seed,
        thinking_token_budget=thinking.budget_tokens if isinstance(thinking, EnabledThinking) else None,
        response_format=form,
        user=request.metadata.user_id if request.metadata is not None else None,
    )


def _common(request: Conversation) -> dict[str, Any]:
    """All that makes the prompt."""
    turns = _joined_turns(request)
    _check_results(turns)
    messages = [message for role, blocks, _ in turns for message in _messages(role, blocks)]
    if isinstance(request.system, str) and request.system:
        messages.insert(0, Message(role="system", content=request.system))
    elif request.system:
        messages.insert(0, Message(role="system", content=_content([part.text for part in request.system])))
    choice, is_single = _choice(request)
    return {
        "model": request.model,
        "messages": messages,
        "tools": _tools(request),
        "tool_choice": choice,
        "parallel_tool_calls": False if is_single else None,
        "continue_final_message": _continues(turns, request),
        "chat_template_kwargs": _variables(request) or None,
    }


Turns = list[tuple[str, list[Block], str]]  # role, blocks, and the field of the request that the last block is in


def _joined_turns(request: Conversation) -> Turns:
    turns: Turns = []
    for i, turn in enumerate(request.messages):
        text = turn.content
        blocks: list[Block] = ([TextBlock(text=text)] if text else []) if isinstance(text, str) else list(text)
        if turns and turns[-1][0] == turn.role:
            joined = turns[-1][1]
            joined += blocks
            turns[-1] = (turn.role, joined, f"messages[{i}]")
        else:
            turns.append((turn.role, blocks, f"messages[{i}]"))
    if turns[-1][0] == "assistant" and not turns[-1][1]:  # nothing to continue
        turns.pop()
    if not turns:
        raise RequestError("messages must hold some content", "messages")
    return turns


def _check_results(turns: Turns) -> None:
    """Each call is followed by its result, and each result follows its call."""
    open_calls: set[str] = set()
    for _, blocks, param in turns:
        results = [block.tool_use_id for block in blocks if isinstance(block, ToolResultBlock)]
        for call in results:
            if call not in open_calls:
                message = f"{param}.content: the tool_result of {call!r} has no tool_use in the message before it"
                raise RequestError(message, f"{param}.content")
            open_calls.discard(call)
        if open_calls:
            message = f"{param}.content: there is no tool_result for the tool_use {min(open_calls)!r} before it"
            raise RequestError(message, f"{param}.content")
        for block in blocks:
            if isinstance(block, ToolUseBlock):
                if block.id in open_calls:
                    raise RequestError(f"{param}.content: two tool_use have the id {block.id!r}", f"{param}.content")
                open_calls.add(block.id)
    if open_calls:
        message = f"{param}.content: there is no tool_result for the tool_use {min(open_calls)!r}"
        raise RequestError(message, f"{param}.content")


def _messages(role: str, blocks: Sequence[Block]) -> Iterator[Message]:
    if role == "assistant":
        yield _assistant(blocks)
        return
    texts: list[str] = []
    for block in blocks:
        if isinstance(block, ToolResultBlock):
            if texts:
                yield Message(role="user", content=_content(texts))
                texts = []
            yield Message(role="tool", tool_call_id=block.tool_use_id, content=_result(block))
        elif isinstance(block, TextBlock):
            texts.append(block.text)
    if texts:
        yield Message(role="system" if role == "system" else "user", content=_content(texts))


def _assistant(blocks: Sequence[Block]) -> Message:
    calls = [
        ToolCall(id=block.id, function=FunctionCall(name=block.name, arguments=block.input))
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    thoughts = "".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock))
    return Message(
        role="assistant",
        content="".join(block.text for block in blocks if isinstance(block, TextBlock)),
        tool_calls=calls or None,
        reasoning_content=thoughts or None,
    )


def _result(block: ToolResultBlock) -> str:
    content = block.content
    parts = [] if isinstance(content, str) else [part.text for part in content or () if isinstance(part, TextBlock)]
    text = content if isinstance(content, str) else "\n".join(parts)
    return ERROR_PREFIX + text if block.is_error else text


def _content(texts: Sequence[str]) -> str | list[ContentPart]:
    return texts[0] if len(texts) == 1 else [ContentPart(type="text", text=text) for text in texts]


def _continues(turns: Turns, request: Conversation) -> bool:
    role, blocks, param = turns[-1]
    if role != "assistant":
        return False
    if isinstance(request.thinking, (EnabledThinking, AdaptiveThinking)):
        message = "messages: an answer that has begun cannot be continued with thinking; end with the user's turn"
        raise RequestError(message, "messages")
    if not isinstance(last := blocks[-1], TextBlock):
        raise RequestError(f"{param}.content: only text can be continued", f"{param}.content")
    if last.text != last.text.rstrip():
        message = f"{param}.content: the answer to continue must not end with white space"
        raise RequestError(message, f"{param}.content")
    return True


def _tools(request: Conversation) -> list[ToolDefinition] | None:
    if not request.tools:
        return None
    return [
        ToolDefinition(
            function=FunctionDefinition(
                name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
            )
        )
        for tool in request.tools
    ]


def _choice(request: Conversation) -> tuple[ToolChoice | None, bool]:
    """The choice, and whether one call at most is wanted."""
    match request.tool_choice:
        case OneChoice(name=name, disable_parallel_tool_use=is_single):
            return NamedTool(function=Named(name=name)), bool(is_single)
        case AnyChoice(disable_parallel_tool_use=is_single):
            return "required", bool(is_single)
        case AutoChoice(disable_parallel_tool_use=is_single):
            return "auto", bool(is_single)
        case NoChoice():
            return "none", False
    return None, False


def _variables(request: Conversation) -> dict[str, Any]:
    """Of the template; nothing where the request leaves thinking to the model."""
    variables: dict[str, Any] = {}
    if request.output_config is not None and request.output_config.effort is not None:
        variables["reasoning_effort"] = request.output_config.effort
    if request.thinking is not None:
        thinks = not isinstance(request.thinking, DisabledThinking)
        variables |= {"enable_thinking": thinks, "thinking": thinks}
    return variables


def _in_own_terms(error: RequestError) -> RequestError:
    if error.param is None:
        return error
    field, rest = re.fullmatch(r"(\w*)(.*)", error.param, re.DOTALL).groups()  # type: ignore[union-attr]
    if field == "messages":
        rest = rest if "content" in str(error) and rest in str(error) else ""  # chat numbers its messages otherwise
    elif field == "tools":
        rest = rest.replace(".function.parameters", ".input_schema").replace(".function", "")
    return RequestError(str(error), _FIELDS.get(field, field) + rest, error.code)
