"""The fields of a response that do not change while it is made. Wire format: ``Response`` of OpenAI's API."""

from __future__ import annotations

from typing import Any

import msgspec

from server.dialects.dialect import Context
from server.schemas.openai.responses import JsonSchemaText, ResponsesRequest


def frame(request: ResponsesRequest, context: Context) -> dict[str, Any]:
    """What was asked for, with the defaults of what was not."""
    sampling, common = context.job.sampling, context.common
    fields: dict[str, Any] = {
        "id": common["id"],
        "object": "response",
        "created_at": common["created"],
        "model": common["model"],
        "background": bool(request.background),
        "conversation": {"id": request.conversation_id} if request.conversation_id else None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": request.reasoning.effort if request.reasoning else None, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": request.stored,
        "temperature": sampling.temperature,
        "text": {"format": _format(request), "verbosity": "medium"},
        "tool_choice": msgspec.to_builtins(request.tool_choice or "auto"),
        "tools": [_tool(tool) for tool in msgspec.to_builtins(request.tools or [])],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": sampling.top_p if request.top_p is None else request.top_p,
        "truncation": request.truncation or "disabled",
        "user": request.user,
    }
    return fields


def _tool(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None or name in ("parameters", "strict")}


def _format(request: ResponsesRequest) -> dict[str, Any]:
    form = request.text.format if request.text else None
    if form is None:
        return {"type": "text"}
    fields: dict[str, Any] = msgspec.to_builtins(form)
    if isinstance(form, JsonSchemaText):
        fields = {name: value for name, value in fields.items() if value is not None}
    return fields
