"""What the stub server takes in each field: types and ranges of the published schemas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Check = Callable[[Any], bool]


class BadField(Exception):
    """A field with a wrong value."""

    def __init__(
        self, param: str | None, message: str, status: int = 400, code: str | None = "invalid_value"
    ) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


def number(low: float, high: float) -> Check:
    return lambda v: type(v) in (int, float) and math.isfinite(float(min(v, 10**9))) and low <= v <= high


def integer(low: int, high: int = 2**31 - 1) -> Check:
    return lambda v: type(v) is int and low <= v <= high


def text(v: Any) -> bool:
    return isinstance(v, str)


def flag(v: Any) -> bool:
    return isinstance(v, bool)


def is_object(v: Any) -> bool:
    return isinstance(v, dict)


def stops(v: Any) -> bool:
    return text(v) or (isinstance(v, list) and len(v) <= 4 and all(text(s) for s in v))


def biases(v: Any) -> bool:
    return is_object(v) and all(k.isdigit() and int(k) < 0x110000 and number(-100, 100)(b) for k, b in v.items())


def metadata(v: Any) -> bool:
    return is_object(v) and all(text(item) for item in v.values())


def content(v: Any, kinds: tuple[str, ...] = ("text",)) -> bool:
    if isinstance(v, list):
        return all(is_object(part) and part.get("type") in kinds and text(part.get("text")) for part in v)
    return text(v)


def messages(v: Any) -> bool:
    roles = ("system", "developer", "user", "assistant", "tool")
    if not isinstance(v, list) or not v or not all(is_object(m) and m.get("role") in roles for m in v):
        return False
    return all(content(m.get("content")) or (m.get("content") is None and m.get("tool_calls")) for m in v)


def tool_name(v: Any) -> bool:
    return text(v) and 0 < len(v) <= 64 and all(c.isascii() and (c.isalnum() or c in "_-") for c in v)


def tools(v: Any) -> bool:
    if not isinstance(v, list) or not all(is_object(t) and is_object(t.get("function")) for t in v):
        return False
    names = [t["function"].get("name") for t in v]
    return all(tool_name(name) for name in names) and len(set(names)) == len(names)


def tool_choice(v: Any) -> bool:
    if is_object(v):
        return is_object(v.get("function")) and text(v["function"].get("name"))
    return v in ("none", "auto", "required") if text(v) else False


def response_format(v: Any) -> bool:
    if not is_object(v) or v.get("type") not in ("text", "json_object", "json_schema"):
        return False
    inner = v.get("json_schema")
    return v["type"] != "json_schema" or (is_object(inner) and text(inner.get("name")))


def stream_options(v: Any) -> bool:
    return is_object(v) and flag(v.get("include_usage", False))


def prompt(v: Any) -> bool:
    if text(v):
        return True
    if not isinstance(v, list) or not v:
        return False
    return all(text(p) for p in v) or ids(v) or all(isinstance(p, list) and ids(p) for p in v)


def ids(v: Any) -> bool:
    return bool(v) and all(integer(0, 0x10FFFF)(i) for i in v)


def items(v: Any) -> bool:
    if text(v):
        return True
    known = ("user", "assistant", "system", "developer")
    kinds = ("function_call", "function_call_output")
    return isinstance(v, list) and all(is_object(i) and (i.get("role") in known or i.get("type") in kinds) for i in v)


def turns(v: Any) -> bool:
    return isinstance(v, list) and bool(v) and all(is_object(m) and m.get("role") in ("user", "assistant") for m in v)


SAMPLING: dict[str, Check] = {
    "model": text,
    "stream": flag,
    "stream_options": stream_options,
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "n": integer(1, 128),
    "stop": stops,
    "max_tokens": integer(0),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "logit_bias": biases,
    "seed": integer(-(2**63), 2**63 - 1),
    "user": text,
}
CHAT: dict[str, Check] = SAMPLING | {
    "messages": messages,
    "max_completion_tokens": integer(0),
    "logprobs": flag,
    "top_logprobs": integer(0, 20),
    "response_format": response_format,
    "tools": tools,
    "tool_choice": tool_choice,
    "parallel_tool_calls": flag,
    "metadata": metadata,
}
COMPLETION: dict[str, Check] = SAMPLING | {
    "prompt": prompt,
    "echo": flag,
    "logprobs": integer(0, 5),
    "best_of": integer(0, 20),
    "suffix": lambda v: v == "",
}


def questions(v: Any) -> bool:
    return isinstance(v, list) and 1 <= len(v) <= 400 and all(is_object(q) and question(q) for q in v)


def question(q: dict[str, Any]) -> bool:
    lists = {"predicate": "", "choice": "choices", "score": "levels"}
    if q.get("type") not in lists or not text(q.get("instructions")):
        return False
    rows = q.get(lists[q["type"]], [])
    if q["type"] == "choice":
        values = [row.get("value") for row in rows]
        return 2 <= len(values) == len({repr(v) for v in values}) <= 255 and all(text(v) or flag(v) for v in values)
    return all(text(row.get("label")) for row in rows)


DECISION: dict[str, Check] = {"model": text, "input": items, "questions": questions}
RESPONSE: dict[str, Check] = {
    "model": text,
    "input": items,
    "instructions": text,
    "stream": flag,
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "max_output_tokens": integer(16),
    "metadata": metadata,
    "tools": lambda v: isinstance(v, list),
}
MESSAGE: dict[str, Check] = {
    "model": text,
    "messages": turns,
    "max_tokens": integer(1),
    "system": content,
    "stream": flag,
    "temperature": number(0, 1),
    "stop_sequences": lambda v: isinstance(v, list),
    "tools": lambda v: isinstance(v, list),
}


def check(body: dict[str, Any], table: dict[str, Check], *required: str) -> dict[str, Any]:
    """The fields that are given; null is not given.

    Raises:
        BadField: one of them is wrong, or missing.
    """
    given = {name: value for name, value in body.items() if value is not None or name in required}
    for name in required:
        if name not in given:
            raise BadField(name, f"{name} is required", code="missing_required_parameter")
    for name, is_good in table.items():
        if name in given and not is_good(given[name]):
            raise BadField(name, f"{name} has a wrong value")
    return given
