"""The description at ``/openapi.json`` is complete and true: every answer is one that it has."""

from __future__ import annotations

from typing import Any

import httpx
import jsonschema
import pytest

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
