"""The description at ``/openapi.json`` is complete and true: every answer is one that it has."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import routes
from server.middleware.gate import OPEN_PATHS
from server.schemas.bodies import BODIES, body_schemas
from server.schemas.openai.items import Item, read_items
from server.schemas.openai.responses import InputTokensRequest
from server.schemas.parse import BodyParser
from server.schemas.tokens import TokenizeRequest
from server.schemas.unsupported import refuse_unsupported
from tandem.errors import RequestError
from tests.server.process import ServerProcess

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXT: dict[str, Any] = {"prompt": "hi", "max_tokens": 2}
CHOICE = {"type": "choice", "instructions": "Who?"}
IDS: dict[str, Any] = {"token_ids": [5, 6], "sampling_params": {"max_tokens": 2}}
INPUT: dict[str, Any] = {"input": "hi", "max_output_tokens": 2}


@pytest.fixture(scope="module")
def document(server: ServerProcess) -> dict[str, Any]:
    return httpx.get(server.url + "/openapi.json").json()


def demand(document: dict[str, Any], path: str, answer: httpx.Response) -> None:
    """The status, the media type and the form of an answer are in the document."""
    operation = document["paths"][path][answer.request.method.lower()]
    described = operation["responses"][str(answer.status_code)]["content"]
    kind = answer.headers["content-type"].split(";")[0]
    assert kind in described, (path, kind)
    if kind == "application/json":
        schema = described[kind]["schema"]
        assert schema, f"{path} says nothing of {answer.status_code}"
        jsonschema.validate(answer.json(), {**schema, "components": document["components"]})


def test_every_route_says_what_it_answers(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            responses = operation["responses"]
            assert "422" not in responses and "503" in responses, (method, path)
            assert all(media["schema"] or kind != "application/json"
                       for response in responses.values()
                       for kind, media in response["content"].items()), (method, path)  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", CHAT | {"stream": True}),
        ("/v1/chat/completions", CHAT | {"model": "no"}),
        ("/v1/completions", TEXT),
        ("/v1/completions", TEXT | {"temperature": 9}),
        ("/v1/messages", {"model": "org/tiny", **CHAT}),
        ("/v1/messages", CHAT),
        ("/v1/messages", {"model": "org/tiny", **CHAT, "thread": {"type": "create"}}),
        ("/v1/messages/count_tokens", {"model": "org/tiny", "messages": CHAT["messages"]}),
        ("/v1/responses", INPUT),
        ("/v1/responses", INPUT | {"stream": True}),
        ("/v1/responses", {"input": 5}),
        ("/v1/responses/input_tokens", {"input": "hi"}),
        ("/v1/conversations", {}),
        ("/generative_scoring", {"query": "hi", "items": ["a"], "label_token_ids": [5, 6]}),
        ("/v1/systemone", {"state": "x", "questions": {"a": CHOICE | {"criteria": {"fox": None, "dog": None}}}}),
        ("/v1/decisions", {"input": "x", "questions": [CHOICE | {"choices": [{"value": "fox"}, {"value": "dog"}]}]}),
        ("/inference/v1/generate", IDS),
        ("/inference/v1/generate", IDS | {"stream": True}),
        ("/invocations", CHAT),
        ("/invocations", TEXT | {"stream": True}),
        ("/tokenize", {"prompt": "hi"}),
        ("/detokenize", {"tokens": [65]}),
        ("/ping", {}),
    ],
)
def test_answers_are_as_described(
    server: ServerProcess, document: dict[str, Any], path: str, body: dict[str, Any]
) -> None:
    demand(document, path, server.post(path, body))
    if path != "/ping":
        demand(document, path, httpx.post(server.url + path, content=b"{}", headers={"content-type": "text/plain"}))


def test_files_and_batches_are_as_described(server: ServerProcess, document: dict[str, Any]) -> None:
    line = (
        b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "hi", "max_tokens": 1}}'
    )
    with httpx.Client(base_url=server.url) as client:
        file = client.post("/v1/files", files={"file": ("a.jsonl", line)}, data={"purpose": "batch"})
        demand(document, "/v1/files", file)
        demand(document, "/v1/files", client.post("/v1/files", data={"purpose": "batch"}))
        asked = {"input_file_id": file.json()["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
        batch = client.post("/v1/batches", json=asked)
        demand(document, "/v1/batches", batch)
        for method, path in (
            ("GET", "/v1/files"),
            ("GET", "/v1/files/{file_id}"),
            ("GET", "/v1/files/{file_id}/content"),
            ("GET", "/v1/batches"),
            ("GET", "/v1/batches/{batch_id}"),
            ("POST", "/v1/batches/{batch_id}/cancel"),
            ("DELETE", "/v1/files/{file_id}"),
        ):
            url = path.replace("{file_id}", file.json()["id"]).replace("{batch_id}", batch.json()["id"])
            demand(document, path, client.request(method, url))
            demand(document, path, client.request(method, f"{url[:-9]}{url[-8:]}"))


def test_what_is_kept_is_as_described(server: ServerProcess, document: dict[str, Any]) -> None:
    response = server.post("/v1/responses", INPUT).json()["id"]
    conversation = server.post("/v1/conversations", {"items": [{"role": "user", "content": "hi"}]}).json()["id"]
    items, one = "/v1/conversations/{conversation_id}/items", "/v1/conversations/{conversation_id}"
    item = httpx.get(f"{server.url}/v1/conversations/{conversation}/items").json()["data"][0]["id"]
    found = [
        ("GET", "/v1/responses/{response_id}"),
        ("GET", "/v1/responses/{response_id}/input_items"),
        ("POST", "/v1/responses/{response_id}/cancel"),
        ("DELETE", "/v1/responses/{response_id}"),
        ("GET", one),
        ("GET", items),
        ("GET", items + "/{item_id}"),
        ("DELETE", items + "/{item_id}"),
        ("DELETE", one),
        *(("GET", path) for path in ("/v1/models", "/health", "/ping", "/version", "/load", "/metrics")),
    ]
    with httpx.Client(base_url=server.url) as client:
        for method, path in found:
            names = {"{response_id}": response, "{conversation_id}": conversation, "{item_id}": item}
            for _ in range(2):  # the second time some are gone
                url = path
                for name, value in names.items():
                    url = url.replace(name, value)
                demand(document, path, client.request(method, url))
        demand(document, "/v1/models/{model}", client.get("/v1/models/org/tiny"))
        demand(document, "/v1/models/{model}", client.get("/v1/models/none"))


def test_refused_fields_are_described_as_the_parsers_refuse_them() -> None:
    modules = [
        importlib.import_module(found.name) for found in pkgutil.walk_packages(routes.__path__, "server.routes.")
    ]
    parsers = [value for module in modules for value in vars(module).values() if isinstance(value, BodyParser)]
    assert {parser.struct for parser in parsers} == BODIES.keys()
    for parser in parsers:
        properties = body_schemas()[parser.struct.__name__]["properties"]
        for name in parser.refused:
            for value in properties[name]["enum"]:
                refuse_unsupported(name, msgspec.Raw(msgspec.json.encode(value)), BODIES[parser.struct])
            with pytest.raises(RequestError):
                refuse_unsupported(name, msgspec.Raw(b'"something else"'), BODIES[parser.struct])


@pytest.mark.parametrize(
    ("name", "value"), [("early_stopping", 0), ("return_prompt_text", 0.0), ("stream_interval", True)]
)
def test_true_is_no_number_in_what_is_refused(server: ServerProcess, name: str, value: object) -> None:
    answer = server.post("/v1/completions", TEXT | {name: value})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == name


@given(
    item=st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["message", "reasoning", "function_call", "item_reference", "image", None]),
            "role": st.sampled_from(["user", "assistant", "wizard", None]),
            "content": st.sampled_from(["hi", [], [{"type": "input_text", "text": "hi"}], 5, None]),
            "summary": st.sampled_from([None, [], [{"type": "summary_text", "text": "hm"}], [{"text": "hm"}], "hm"]),
            "id": st.sampled_from(["item_1", "", None]),
        },
    )
)
def test_items_are_described_as_they_are_read(item: dict[str, Any]) -> None:
    described = is_described("Item", item)
    try:
        read_items([item], "input")
    except RequestError:
        assert not described
    else:
        assert described


def tagged_alone(kind: Any, place: str, seen: set[type]) -> Iterator[str]:
    """Where a tagged struct stands without another to choose from: there msgspec does not ask for the tag."""
    match kind:
        case msgspec.inspect.Metadata():
            yield from tagged_alone(kind.type, place, seen)
        case msgspec.inspect.ListType(item_type=inner) | msgspec.inspect.DictType(value_type=inner):
            yield from tagged_alone(inner, place, seen)
        case msgspec.inspect.UnionType():
            structs = [form for form in kind.types if isinstance(form, msgspec.inspect.StructType)]
            for form in kind.types:
                yield from fields_alone(form, seen) if len(structs) > 1 else tagged_alone(form, place, seen)
        case msgspec.inspect.StructType():
            yield from [place] if kind.tag is not None else []
            yield from fields_alone(kind, seen)


def fields_alone(kind: Any, seen: set[type]) -> Iterator[str]:
    if isinstance(kind, msgspec.inspect.StructType) and kind.cls not in seen:
        seen.add(kind.cls)
        for field in kind.fields:
            yield from tagged_alone(field.type, f"{kind.cls.__name__}.{field.name}", seen)
    elif not isinstance(kind, msgspec.inspect.StructType):
        yield from tagged_alone(kind, "", seen)


def test_a_type_is_required_where_it_is_described_so() -> None:
    seen: set[type] = set()
    for kind in msgspec.inspect.multi_type_info([*BODIES, Item]):
        assert list(tagged_alone(kind, "", seen)) == []


CALL = {"function": {"name": "f"}}
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "function", "wizard"])},
    optional={
        "content": st.sampled_from(["", "hi", [], [{"type": "text", "text": "hi"}], 5, None]),
        "tool_call_id": st.sampled_from(["call_1", None]),
        "tool_calls": st.sampled_from([[], [CALL], None]),
        "function_call": st.sampled_from([CALL["function"], None]),
        "refusal": st.sampled_from(["no", None]),
    },
)


@given(
    body=st.fixed_dictionaries(
        {},
        optional={
            "prompt": st.sampled_from(["hi", None]),
            "messages": st.none() | st.lists(MESSAGES, max_size=2),
        },
    )
)
def test_messages_are_described_as_they_are_taken(body: dict[str, Any]) -> None:
    assert is_described("TokenizeRequest", body) == is_taken(TokenizeRequest, body)


@given(
    body=st.fixed_dictionaries(
        {},
        optional={
            "input": st.sampled_from(["", "hi", [], [{"role": "user", "content": "hi"}], [5], None]),
            "previous_response_id": st.sampled_from(["resp_1", None]),
            "conversation": st.sampled_from(["conv_1", {"id": "conv_1"}, None]),
        },
    )
)
def test_inputs_are_described_as_they_are_taken(body: dict[str, Any]) -> None:
    assert is_described("InputTokensRequest", body) == is_taken(InputTokensRequest, body)


def is_described(name: str, body: dict[str, Any]) -> bool:
    schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": body_schemas()}}
    return bool(jsonschema.Draft202012Validator(schema).is_valid(body))


def is_taken(struct: Any, body: dict[str, Any]) -> bool:
    try:
        msgspec.convert(body, struct).check()
    except (RequestError, msgspec.ValidationError):
        return False
    return True


def test_open_routes_are_those_that_need_no_key(document: dict[str, Any]) -> None:
    operations = {
        (path, method): fields for path, found in document["paths"].items() for method, fields in found.items()
    }
    said = {path for (path, _), operation in operations.items() if operation.get("security") == []}
    assert said == OPEN_PATHS & document["paths"].keys()
    assert all("401" not in operations[key]["responses"] for key in operations if key[0] in said)


def test_links_lead_to_what_was_made(server: ServerProcess, document: dict[str, Any]) -> None:
    made = server.post("/v1/conversations", {}).json()["id"]
    links = document["paths"]["/v1/conversations"]["post"]["responses"]["200"]["links"]
    gets = {found["get"]["operationId"]: path for path, found in document["paths"].items() if "get" in found}
    followed = [gets[name] for name in links if name in gets]
    assert followed
    for path in followed:
        assert httpx.get(server.url + path.replace("{conversation_id}", made)).status_code == 200


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/ping", "GET, POST"),
        ("/v1/responses/resp_x", "DELETE, GET"),
        ("/v1/responses/input_tokens", "POST"),
        ("/v1/conversations/conv_x", "DELETE, GET, POST"),
        ("/v1/completions", "POST"),
    ],
)
def test_a_method_that_is_not_there_gets_all_that_are(server: ServerProcess, path: str, methods: str) -> None:
    answer = httpx.put(server.url + path)
    assert answer.status_code == 405 and answer.headers["allow"] == methods
