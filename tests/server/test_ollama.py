"""Ollama's routes: what local tools send and read."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

import tandem
from server.dialects.dialect import Answer
from server.dialects.ollama import OllamaChatDialect
from server.routes.vendors.ollama import CHAT_PARSER, GENERATE_PARSER
from server.schemas.vendors.ollama import CHAT_REFUSALS, GENERATE_REFUSALS, OPTION_REFUSALS, OllamaChat, Options
from tandem.events import ChoiceEnded, TextDelta, ToolCallArguments, ToolCallBegun, ToolCallEnded
from tests.server.conftest import MODEL
from tests.server.process import ServerProcess, connect, eventually

DEMO = "tandem-demo"
CHAT, GENERATE = "/api/chat", "/api/generate"
JSON = {"content-type": "application/json"}
ON = "--enable-ollama-api"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
OSLO: Any = [{"role": "user", "content": "How is the weather in Oslo?"}]
SUM: Any = [{"role": "user", "content": "What is 17 plus 25?"}]
CALL: Any = {"function": {"index": 0, "name": "get_weather", "arguments": {"city": "Oslo"}}}
SCHEMA: Any = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
DURATIONS = {"total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}
COUNTS = {"prompt_eval_count", "eval_count"}
HEAD = {"model", "created_at", "done"}


@pytest.fixture(scope="module")
def demo() -> Iterator[ServerProcess]:
    with ServerProcess("", ON) as running:
        yield running


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"messages": SUM}),
    "seeded": (CHAT, {"messages": SUM, "options": {"seed": 3, "temperature": 1.0, "top_k": 20, "num_ctx": 2048}}),
    "limited": (CHAT, {"messages": SUM, "options": {"temperature": 0, "num_predict": 5}}),
    "stopped": (CHAT, {"messages": SUM, "options": {"temperature": 0, "stop": ["="]}}),
    "tool": (CHAT, {"messages": OSLO, "tools": [WEATHER]}),
    "result": (CHAT, {"messages": [
        *OSLO, {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_name": "get_weather", "content": '{"temperature": 21}'},
    ], "tools": [WEATHER]}),
    "thinking": (CHAT, {"messages": SUM, "think": True}),
    "not thinking": (CHAT, {"messages": SUM, "think": False, "keep_alive": "5m"}),
    "schema": (CHAT, {"messages": SUM, "format": SCHEMA}),
    "json": (CHAT, {"messages": SUM, "format": "json", "options": {"num_predict": 40, "temperature": 0}}),
    "begun": (CHAT, {"messages": [*SUM, {"role": "assistant", "content": "17 + 25 ="}]}),
    "generate": (GENERATE, {"prompt": "What is 17 plus 25?", "keep_alive": -1}),
    "system": (GENERATE, {"prompt": "What is 17 plus 25?", "system": "Answer in upper case."}),
    "raw": (GENERATE, {"prompt": "<|im_start|>user\nWhat is", "raw": True, "options": {"num_predict": 9, "seed": 1}}),
    "thought": (GENERATE, {"prompt": "What is 17 plus 25?", "think": "high"}),
}  # fmt: skip


def asked(server: ServerProcess, variant: str, **fields: Any) -> httpx.Response:
    path, body = VARIANTS[variant]
    return server.post(path, {"model": DEMO, "options": {"temperature": 0}} | body | fields)


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.text.endswith("\n")
    return [json.loads(line) for line in answer.text[:-1].split("\n")]


def checked(record: dict[str, Any]) -> dict[str, Any]:
    """A record of the API's shape; returns its part of the answer."""
    part = {"message"} if "message" in record else {"response", "thinking"} & set(record)
    last = {"done_reason"} | DURATIONS | COUNTS if record["done"] else set()
    assert set(record) == HEAD | part | last, record
    assert record["model"] == DEMO and record["created_at"].endswith("Z")
    datetime.fromisoformat(record["created_at"])
    if record["done"]:
        assert record["done_reason"] in ("stop", "length")
        assert all(isinstance(record[name], int) and record[name] >= 0 for name in DURATIONS | COUNTS)
        assert record["total_duration"] >= record["prompt_eval_duration"] + record["eval_duration"] > 0
        assert record["eval_count"] > 0 and record["prompt_eval_count"] > 0
    if "response" in record:
        return {"content": record["response"], "thinking": record.get("thinking", "")}
    message: dict[str, Any] = record["message"]
    assert message["role"] == "assistant" and isinstance(message["content"], str)
    assert set(message) <= {"role", "content", "thinking", "tool_calls"}
    for call in message.get("tool_calls", []):
        assert set(call) == {"function"} and set(call["function"]) == {"index", "name", "arguments"}
        assert isinstance(call["function"]["arguments"], dict)
    return message


def told(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What records add up to, without what differs between two answers to one request."""
    parts = [checked(record) for record in records]
    last = {name: records[-1][name] for name in ("done_reason", *COUNTS)}
    calls = [call for part in parts for call in part.get("tool_calls", [])]
    texts = {name: "".join(part.get(name, "") for part in parts) for name in ("content", "thinking")}
    return texts | {"tool_calls": calls} | last


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stream_says_what_a_whole_answer_says(demo: ServerProcess, variant: str) -> None:
    whole = asked(demo, variant, stream=False)
    assert whole.status_code == 200, whole.text
    assert whole.headers["content-type"] == "application/json"
    records = lines(asked(demo, variant))  # a stream is the default
    assert [record["done"] for record in records] == [False] * (len(records) - 1) + [True]
    assert told(records) == told([whole.json()])
    assert told(lines(asked(demo, variant, stream=True))) == told([whole.json()])


def test_variants_do_what_their_names_say(demo: ServerProcess) -> None:
    answers = {variant: told([asked(demo, variant, stream=False).json()]) for variant in VARIANTS}
    assert "42" in answers["chat"]["content"] and answers["chat"]["done_reason"] == "stop"
    assert answers["limited"]["eval_count"] == 5 and answers["limited"]["done_reason"] == "length"
    text = answers["chat"]["content"]
    assert answers["stopped"]["content"] == text[: text.index("=")]
    assert answers["tool"]["tool_calls"] == [CALL] and answers["tool"]["done_reason"] == "stop"
    assert "21" in answers["result"]["content"]
    assert answers["thinking"]["thinking"] and answers["thought"]["thinking"]
    assert not answers["not thinking"]["thinking"]
    assert isinstance(json.loads(answers["schema"]["content"])["sum"], int)
    assert answers["json"]["content"].startswith("{")
    assert answers["generate"]["content"] == text and answers["system"]["content"] != text
    assert answers["begun"]["content"].strip().startswith("37") or "42" in answers["begun"]["content"]
    assert answers["raw"]["eval_count"] == 9


def test_the_same_as_other_routes(demo: ServerProcess) -> None:
    body = {"model": DEMO, "temperature": 0, "messages": SUM}
    other = demo.post("/v1/chat/completions", body).json()
    answer = told([asked(demo, "chat", stream=False).json()])
    assert answer["content"] == other["choices"][0]["message"]["content"]
    assert answer["prompt_eval_count"] == other["usage"]["prompt_tokens"]
    raw = {"model": DEMO, "prompt": "17 +", "seed": 3, "temperature": 1.5, "frequency_penalty": 1.0, "max_tokens": 9}
    options = {"seed": 3, "temperature": 1.5, "frequency_penalty": 1.0, "num_predict": 9}
    fields = {"prompt": "17 +", "options": options, "stream": False}
    text = demo.post("/v1/completions", raw).json()["choices"][0]["text"]
    assert asked(demo, "raw", **fields).json()["response"] == text


@pytest.fixture(scope="module")
def reference() -> Iterator[ServerProcess]:
    with ServerProcess("", ON, "--backend", "reference") as running:
        yield running


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_backends_say_the_same(demo: ServerProcess, reference: ServerProcess, variant: str) -> None:
    ours, theirs = (told([asked(server, variant, stream=False).json()]) for server in (demo, reference))
    assert ours == theirs


def test_an_empty_request_asks_whether_the_model_is_loaded(demo: ServerProcess) -> None:
    for path, part in ((CHAT, {"message": {"role": "assistant", "content": ""}}), (GENERATE, {"response": ""})):
        answer = demo.post(path, {"model": DEMO}).json()
        assert answer.pop("created_at") and answer == {"model": DEMO, "done": True, "done_reason": "load"} | part
    eventually(demo.is_idle)


def test_lists(demo: ServerProcess) -> None:
    (model,) = httpx.get(demo.url + "/api/tags").json()["models"]
    assert set(model) == {"name", "model", "modified_at", "size", "digest", "details"}
    assert model["name"] == model["model"] == DEMO and model["size"] > 0
    assert re.fullmatch("[0-9a-f]{64}", model["digest"])
    details = {"parent_model", "format", "family", "families", "parameter_size", "quantization_level"}
    assert set(model["details"]) == details and model["details"]["family"] == "llama"
    (loaded,) = httpx.get(demo.url + "/api/ps").json()["models"]
    assert loaded["digest"] == model["digest"] and loaded["size_vram"] == 0 and loaded["context_length"] == 2048
    assert httpx.get(demo.url + "/api/version").json() == {"version": tandem.__version__}


def test_show(demo: ServerProcess) -> None:
    shown = demo.post("/api/show", {"model": DEMO}).json()
    assert shown["capabilities"] == ["completion", "tools", "thinking"] and "im_start" in shown["template"]
    assert shown["model_info"]["general.architecture"] == "llama"
    assert shown["model_info"]["llama.context_length"] == 2048
    assert demo.post("/api/show", {"name": DEMO}).json() == shown


def test_calls_are_told_of_when_they_are_complete() -> None:
    counts = SimpleNamespace(num_prompt_tokens=1, num_output_tokens=9)
    job = SimpleNamespace(requests=[SimpleNamespace(arrival_time=time.monotonic())])
    context: Any = SimpleNamespace(common={"model": DEMO}, counts=counts, job=job, response_role="assistant")
    events = [
        ToolCallBegun(0, 0, "call_a", "f"), ToolCallArguments(0, 0, '{"a": '), ToolCallArguments(0, 0, "1}"),
        ToolCallEnded(0, 0), TextDelta(0, "and"), ToolCallBegun(0, 1, "call_b", "g"), ToolCallArguments(0, 1, '{"b"'),
        ChoiceEnded(0, "length"),
    ]  # fmt: skip
    dialect = OllamaChatDialect(context, OllamaChat(model=DEMO))
    text = b"".join(dialect.events([event]) for event in events) + dialect.end()
    messages = [json.loads(line)["message"] for line in text.splitlines()]
    first = {"function": {"index": 0, "name": "f", "arguments": {"a": 1}}}
    second = {"function": {"index": 1, "name": "g", "arguments": {}}}
    empty = {"role": "assistant", "content": ""}
    assert messages == [
        empty | {"tool_calls": [first]}, empty | {"content": "and"}, empty | {"tool_calls": [second]}, empty,
    ]  # fmt: skip
    answer = Answer(1)
    answer.add(events)
    whole = json.loads(dialect.whole(answer))
    assert whole["message"] == empty | {"content": "and", "tool_calls": [first, second]}
    assert whole["done_reason"] == "length"


# ---------------------------------------------------------------------- errors


def refused(answer: httpx.Response, status: int, named: str = "") -> str:
    assert answer.status_code == status, answer.text[:300]
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    message: str = answer.json()["error"]
    assert named in message and "\n" not in message and len(message) < 5000, message
    return message


LONG, BIG = "x" * 100_000, 10**30
WRONG: dict[str, list[Any]] = {
    "model": [None, 1, "", LONG],
    "stream": ["yes", 1],
    "format": [1, "yaml", [], {"type": "made_up"}],
    "think": [1, "much", []],
    "keep_alive": [[], {}, LONG],
    "options": [1, [], {"temperature": "warm"}, {"num_predict": 1.5}, {"num_predict": BIG}, {"num_ctx": 9999},
                {"repeat_last_n": 64}, {"made_up": 1}, {"seed": 1.5}, {"top_p": 2}, {"stop": [""]},
                {"num_predict": 99_999}],
    "messages": [1, {}, [1], [{"content": "a"}], [{"role": "king", "content": "a"}], [{"role": "user", "content": 1}],
                 [{"role": "user", "content": "a", "images": ["aGk="]}], [{"role": "user", "content": "a", "b": 1}],
                 [{"role": "user", "content": "a", "tool_calls": [CALL]}],
                 [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}],
                 [{"role": "user", "content": "word " * 3000}]],
    "tools": [1, {}, [1], [{}], [WEATHER, WEATHER], [{**WEATHER, "type": "made_up"}]],
    "prompt": [1, [], "word " * 3000],
    "system": [1, []],
    "raw": ["yes", 1],
    "suffix": [1, [], "x"],
}  # fmt: skip
CASES = [
    pytest.param(path, field, value, id=f"{path}-{field}-{str(value)[:40]}")
    for path, parser in ((CHAT, CHAT_PARSER), (GENERATE, GENERATE_PARSER))
    for field in parser.struct.__struct_encode_fields__
    for value in WRONG[field]
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("path", "field", "value"), CASES)
def test_a_wrong_value_is_refused_by_name(
    demo: ServerProcess, path: str, field: str, value: Any, stream: bool
) -> None:
    body = {"model": DEMO, "stream": stream} | ({"messages": SUM} if path == CHAT else {"prompt": "a"})
    message = refused(demo.post(path, body | {field: value}), 400, field)
    if field == "options" and isinstance(value, dict):
        assert f"options.{next(iter(value))}" in message


@pytest.mark.parametrize("path", [CHAT, GENERATE])
def test_what_cannot_be_honoured_is_refused_by_name(demo: ServerProcess, path: str) -> None:
    body = {"model": DEMO, "stream": False} | ({"messages": SUM} if path == CHAT else {"prompt": "a"})
    for name, (_, neutral) in (CHAT_REFUSALS if path == CHAT else GENERATE_REFUSALS).items():
        refused(demo.post(path, body | {name: [7]}), 400, name)
        for value in (None, *neutral):
            assert demo.post(path, body | {name: value}).status_code == 200
    for name, (_, neutral) in OPTION_REFUSALS.items():
        refused(demo.post(path, body | {"options": {name: 7}}), 400, f"options.{name}")
        limit = {"num_predict": 1}
        for value in (None, *neutral):
            assert demo.post(path, body | {"options": limit | {name: value}}).status_code == 200
    nulls = dict.fromkeys(Options.__struct_fields__)
    assert demo.post(path, body | {"options": nulls}).status_code == 200


def test_raw_leaves_the_template_out(demo: ServerProcess) -> None:
    body = {"model": DEMO, "prompt": "a", "raw": True}
    refused(demo.post(GENERATE, body | {"system": "b"}), 400, "system")
    refused(demo.post(GENERATE, body | {"think": True}), 400, "think")
    full = demo.post(GENERATE, body | {"prompt": "The sum of 1 and", "stream": False}).json()
    assert full["prompt_eval_count"] + full["eval_count"] <= 2048


def test_unknown_fields_are_ignored_and_named(demo: ServerProcess) -> None:
    answer = demo.post(CHAT, {"model": DEMO, "messages": SUM, "stream": False, "made_up": 1})
    assert answer.headers["x-tandem-ignored-fields"] == "made_up"


def test_other_errors_are_of_the_same_shape(demo: ServerProcess) -> None:
    refused(demo.post(CHAT, {"model": "llama3", "messages": SUM}), 404, "llama3")
    refused(demo.post("/api/show", {"model": "llama3"}), 404, "llama3")
    refused(demo.post("/api/show", {}), 400, "model")
    refused(demo.post("/api/pull", {"model": "llama3"}), 404, "/api/pull")
    refused(httpx.get(demo.url + CHAT), 405)
    refused(httpx.post(demo.url + CHAT, content="{}", headers={"content-type": "text/plain"}), 415)
    refused(httpx.post(demo.url + CHAT, content=b'{"a": "' + b"x" * 2**25 + b'"}', headers=JSON), 413)


@pytest.mark.parametrize("path", [CHAT, GENERATE, "/api/show"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"a": NaN}', b'{"a": ' * 50_000 + b"1" + b"}" * 50_000])
def test_broken_json(demo: ServerProcess, path: str, body: bytes) -> None:
    refused(httpx.post(demo.url + path, content=body, headers=JSON), 400)


def test_there_are_no_such_routes_unless_asked_for(server: ServerProcess) -> None:
    for path in (CHAT, GENERATE, "/api/show"):
        refused(server.post(path, {"model": MODEL}), 404)
    for path in ("/api/tags", "/api/ps", "/api/version"):
        refused(httpx.get(server.url + path), 404)


def test_keys_capacity_and_errors_in_mid_stream(model_dir: Path) -> None:
    options = ("--served-model-name", MODEL, "--api-key", "k", "--max-num-queued-reqs", "1", ON)
    with ServerProcess(model_dir, *options) as server:
        for path in (CHAT, GENERATE, "/api/show", "/api/tags", "/api/ps", "/api/version"):
            refused(server.post(path, {}), 401)
        key = {"authorization": "Bearer k"}
        for _ in range(2):
            assert server.post(CHAT, {"model": MODEL}, headers=key).json()["done_reason"] == "load"
        body = {"model": MODEL, "prompt": "hi", "format": {"type": "string", "minLength": 3500}}
        with httpx.stream("POST", server.url + GENERATE, json=body, headers=key, timeout=60) as answer:
            parts = answer.iter_text()
            text = next(parts)
            full = server.post(CHAT, {"model": MODEL, "messages": SUM}, headers=key)
            refused(full, 429, "full")
            assert full.headers["retry-after"]
            server.worker.send_signal(signal.SIGKILL)
            text += "".join(parts)
        *before, last = [json.loads(line) for line in text.splitlines()]
        assert before[0]["done"] is False and set(last) == {"error"} and "SIGKILL" in last["error"]


def test_a_client_that_leaves_frees_everything(demo: ServerProcess) -> None:
    long = {"model": DEMO, "prompt": "hi", "format": {"type": "string", "minLength": 1800}}
    for stream in (True, False):
        with connect(demo, GENERATE, long | {"stream": stream}):
            eventually(lambda: demo.load()["num_requests_running"] == 1)
        eventually(demo.is_idle)
