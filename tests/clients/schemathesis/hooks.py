"""What generated requests need in order to reach a model, within a bounded time."""

from __future__ import annotations

import os
from typing import Any

import schemathesis

MODEL = os.environ["TANDEM_MODEL"]
MAX_TOKENS = 4
LIMITS = {
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/messages": "max_tokens",
    "/v1/responses": "max_output_tokens",
    "/invocations": "max_tokens",
}


@schemathesis.deserializer("application/x-ndjson", "text/event-stream")
def read_lines(context: Any, response: Any) -> str:
    """A stream, as the text that it is."""
    return str(response.text)


@schemathesis.hook
def map_case(context: Any, case: Any) -> Any:
    """Name the model that is served, and ask for few tokens, where the case is one that should be accepted."""
    if case.meta is not None and case.meta.generation.mode.is_negative:
        return case
    if "model" in (case.path_parameters or {}):
        case.path_parameters["model"] = MODEL
    if isinstance(case.body, dict):
        if "model" in case.body:
            case.body["model"] = MODEL
        path = case.operation.path
        if path in LIMITS and "n" not in case.body:
            case.body[LIMITS[path]] = MAX_TOKENS
        elif path.startswith("/api/") and isinstance(case.body.get("options"), dict):
            case.body["options"]["num_predict"] = MAX_TOKENS
    return case
