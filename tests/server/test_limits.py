"""Whatever a request may have many of has a limit, and one more is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from server.routes.openai.chat import PARSER as CHAT
from server.routes.openai.completions import PARSER as COMPLETIONS
from server.routes.tokens import TOKENIZE
from server.routes.vendors.token_generation import PARSER as TOKENS
from server.schemas.bodies import BODIES
from server.schemas.openai.items import Item
from server.schemas.openai.responses import ResponsesRequest
from server.schemas.parse import BodyParser
from server.schemas.vendors.messages import MessagesRequest
from server.schemas.vendors.ollama import OllamaChat, Options
from tandem.errors import RequestError
from tandem.structured_outputs import MAX_BYTES
from tests.server.process import ServerProcess

# lists without a limit in their type, and what limits them
ELSEWHERE = {
    "CompletionRequest.prompt": "MAX_PROMPTS, and the context",
    "CompletionRequest.prompt[]": "the context",
    "ChatRequest.guided_choice": "MAX_BYTES",
    "CompletionRequest.guided_choice": "MAX_BYTES",
    "StructuredOutputsParams.choice": "MAX_BYTES",
    "StructuralTagFormat.structures": "MAX_BYTES",
    "StructuralTagFormat.triggers": "MAX_BYTES",
    "InputJson.data": "the context",
}
HI = {"role": "user", "content": "hi"}
FUNCTION = {"name": "f"}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "a", "type": "function", "function": FUNCTION | {"arguments": "{}"}}
TEXT = {"type": "text", "text": "a"}
OVER = {"stop_token_ids": [1] * 1025}
CLAUDE = {"model": "m", "max_tokens": 1, "messages": [HI]}


def unlimited(kind: inspect.Type, place: str, seen: set[type]) -> Iterator[str]:
    """Places of lists and of dictionaries with typed values that may have any number of entries.

    JSON that is not ours to know, a schema or a tool's arguments, is limited by the size of the body and its depth.
    """
    match kind:
        case inspect.Metadata():
            yield from unlimited(kind.type, place, seen)
        case inspect.UnionType():
            for one in kind.types:
                yield from unlimited(one, place, seen)
        case inspect.StructType() if kind.cls not in seen:
            seen.add(kind.cls)
            for field in kind.fields:
                yield from unlimited(field.type, f"{kind.cls.__name__}.{field.encode_name}", seen)
        case inspect.ListType() if not isinstance(kind.item_type, inspect.AnyType):
            if kind.max_length is None:
                yield place
            yield from unlimited(kind.item_type, f"{place}[]", seen)
        case inspect.DictType() if not isinstance(kind.value_type, inspect.AnyType):
            if kind.max_length is None:
                yield place
            yield from unlimited(kind.value_type, f"{place}{{}}", seen)


def test_every_list_has_a_limit() -> None:
    seen: set[type] = set()
    kinds = inspect.multi_type_info([*BODIES, Item, Options])
    assert {place for kind in kinds for place in unlimited(kind, "", seen)} == set(ELSEWHERE)


@pytest.mark.parametrize(
    ("parser", "body", "field"),
    [
        (CHAT, {"messages": [HI] * (2**16 + 1)}, "messages"),
        (TOKENIZE, {"messages": [HI] * (2**16 + 1)}, "messages"),
        (CHAT, {"messages": [HI | {"content": [TEXT] * (2**16 + 1)}]}, "messages[0].content"),
        (CHAT, {"messages": [HI], "tools": [TOOL] * 1025}, "tools"),
        (CHAT, {"messages": [HI], "documents": [{}] * 1025}, "documents"),
        (CHAT, {"messages": [HI, {"role": "assistant", "tool_calls": [CALL] * 1025}]}, "messages[1].tool_calls"),
        (CHAT, {"messages": [HI], "chat_template_kwargs": {f"a{i}": 1 for i in range(65)}}, "chat_template_kwargs"),
        *(
            (parser, valid | {field: value}, field)
            for parser, valid in ((CHAT, {"messages": [HI]}), (COMPLETIONS, {"prompt": "a"}))
            for field, value in (
                ("logit_bias", {str(i): 0 for i in range(4097)}),
                ("stop", ["a"] * 5),
                ("stop_token_ids", [1] * 1025),
                ("allowed_token_ids", [1] * (2**20 + 1)),
                ("bad_words", ["a"] * 1025),
                ("metadata", {f"a{i}": "b" for i in range(17)}),
            )
            if field in parser.struct.__struct_fields__
        ),
        (COMPLETIONS, {"prompt": ["a"] * 2049}, "prompt"),
        (BodyParser(ResponsesRequest), {"input": [HI] * 4097}, "input"),
        (BodyParser(ResponsesRequest), {"input": "a", "tools": [{"type": "function", "name": "f"}] * 1025}, "tools"),
        (BodyParser(MessagesRequest), CLAUDE | {"messages": [HI] * (2**16 + 1)}, "messages"),
        (BodyParser(MessagesRequest), CLAUDE | {"system": [TEXT] * (2**16 + 1)}, "system"),
        (BodyParser(MessagesRequest), CLAUDE | {"stop_sequences": ["a"] * 65}, "stop_sequences"),
        (BodyParser(MessagesRequest), CLAUDE | {"tools": [{"name": "f", "input_schema": {}}] * 1025}, "tools"),
        (BodyParser(OllamaChat), {"model": "m", "messages": [HI] * (2**16 + 1)}, "messages"),
        (TOKENS, {"token_ids": [1] * (2**20 + 1), "sampling_params": {}}, "token_ids"),
        (TOKENS, {"token_ids": [1], "sampling_params": OVER}, "sampling_params.stop_token_ids"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_one_more_is_refused_by_name(parser: BodyParser[Any], body: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        parser.parse(msgspec.json.encode(body))
    assert caught.value.param == field


FORM = {"structures": [{"begin": "<f>", "schema": {}, "end": "</f>"}], "triggers": ["<f"]}
MANY = ["a" * 1024 + str(i) for i in range(MAX_BYTES // 1024)]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": MANY}}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_choice": MANY}, "guided_choice"),
        ({"structured_outputs": {"choice": MANY}}, "structured_outputs"),
        ({"guided_json": {"enum": MANY}}, "guided_json"),
        ({"guided_regex": "|".join(MANY)}, "guided_regex"),
        ({"guided_grammar": "start: " + " | ".join(f'"{word}"' for word in MANY)}, "guided_grammar"),
        ({"response_format": {"type": "structural_tag"} | FORM | {"triggers": MANY}}, "response_format"),
        ({"response_format": SCHEMA}, "response_format"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_forms_are_limited_together(server: ServerProcess, fields: dict[str, Any], param: str) -> None:
    answer = server.post("/v1/chat/completions", {"messages": [HI], "max_tokens": 1} | fields)
    assert answer.status_code == 400 and answer.json()["error"]["param"].startswith(param), answer.text[:500]
    assert str(MAX_BYTES) in answer.json()["error"]["message"]
