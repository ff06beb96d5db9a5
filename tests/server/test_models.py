"""``/v1/models``, ``/version``, ``/ping``, the API's description, request ids, CORS and HEAD."""

from __future__ import annotations

import httpx
import pytest
from openai.types import Model

import tandem
from tests.server.conftest import CONTEXT, MODEL
from tests.server.process import ServerProcess


@pytest.fixture(scope="module")
def http(server: ServerProcess) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=10)


def test_models(http: httpx.Client) -> None:
    listed = http.get("/v1/models").json()
    assert listed["object"] == "list" and [model["id"] for model in listed["data"]] == [MODEL, "alias"]
    for model in listed["data"]:
        Model.model_validate(model, strict=True)
        assert None not in model.values() and model["max_model_len"] == CONTEXT
        assert http.get(f"/v1/models/{model['id']}").json() == model
    assert http.get("/v1/models/org%2Ftiny").json()["id"] == MODEL
    missing = http.get("/v1/models/other")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"


def test_an_alias_answers_under_its_name(http: httpx.Client) -> None:
    body = {"prompt": "a", "max_tokens": 1}
    assert http.post("/v1/completions", json=body | {"model": "alias"}).json()["model"] == "alias"
    assert http.post("/v1/completions", json=body).json()["model"] == MODEL


def test_probes(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "healthy"}
    assert http.get("/ping").status_code == http.post("/ping").status_code == 200
    assert http.get("/version").json() == {"version": tandem.__version__}
    for path in ("/health", "/v1/models", "/metrics"):
        answer = http.head(path)
        assert answer.status_code == 200 and answer.content == b""


def test_the_description_of_the_api(http: httpx.Client) -> None:
    assert http.get("/docs").status_code == 200
    api = http.get("/openapi.json").json()
    schema = api["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/ChatRequest"}
    request = api["components"]["schemas"]["ChatRequest"]
    assert request["required"] == ["messages"]
    assert {"temperature", "top_k", "logit_bias", "stream_options"} <= set(request["properties"])
    known = set(api["components"]["schemas"])
    text = str(api)
    assert all(part.partition("'")[0] in known for part in text.split("#/components/schemas/")[1:])


def test_request_ids(http: httpx.Client) -> None:
    assert http.get("/version", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for odd in ("", "a b", "x" * 129):
        given = http.get("/version", headers={"x-request-id": odd}).headers["x-request-id"]
        assert given != odd and len(given) == 32
    body = {"prompt": "a", "max_tokens": 1, "request_id": "same"}
    answers = [http.post("/v1/completions", json=body).json()["id"] for _ in range(2)]
    assert answers == ["cmpl-same", "cmpl-same"]


def test_cors(http: httpx.Client) -> None:
    asked = {
        "origin": "http://page",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    answer = http.options("/v1/chat/completions", headers=asked)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] in ("*", "http://page")
    refused = http.post("/v1/chat/completions", headers={"origin": "http://page"})
    assert refused.status_code == 415 and refused.headers["access-control-allow-origin"] == "*"


def test_one_connection_serves_many_requests(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
    assert answer.headers.get("connection", "keep-alive") == "keep-alive"
