"""Answers of a form that the client asks for: every route, streamed and whole, beside each other, under attack."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.process import ServerProcess, events

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASK: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "the quick"}]},
    TEXT: {"prompt": "the quick"},
}
LIMIT = {"max_tokens": 300}


def text_of(path: str, choice: dict[str, Any]) -> str:
    return str(choice["message"]["content"] if path == CHAT else choice["text"])


def ask(server: ServerProcess, path: str, **fields: Any) -> dict[str, Any]:
    answer = server.post(path, ASK[path] | LIMIT | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(server: ServerProcess, path: str, **fields: Any) -> tuple[str, str]:
    *chunks, done = events(server.post(path, ASK[path] | LIMIT | {"stream": True} | fields).text)
    assert done == "[DONE]"
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    texts = [c["delta"].get("content", "") if path == CHAT else c["text"] for c in choices]
    return "".join(texts), choices[-1]["finish_reason"]


names = st.text("abc_ü", min_size=1, max_size=4)
leaves = st.sampled_from(
    [
        ({"type": "integer", "minimum": 0, "maximum": 99}, lambda x: type(x) is int and 0 <= x <= 99),
        ({"type": "boolean"}, lambda x: type(x) is bool),
        ({"enum": ["red", 'gr"een', 3]}, lambda x: x in ("red", 'gr"een', 3)),
        ({"type": "string", "maxLength": 5}, lambda x: isinstance(x, str) and len(x) <= 5),
        ({"type": "string", "pattern": "^[0-9]{2}$"}, lambda x: re.fullmatch("[0-9]{2}", x)),
        ({"type": "null"}, lambda x: x is None),
        ({"$ref": "#/$defs/flag"}, lambda x: type(x) is bool),
    ]
)


def grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    arrays = st.tuples(inner, st.integers(0, 2)).map(
        lambda drawn: (
            {"type": "array", "items": drawn[0][0], "minItems": drawn[1], "maxItems": drawn[1] + 1},
            lambda x: isinstance(x, list) and drawn[1] <= len(x) <= drawn[1] + 1 and all(map(drawn[0][1], x)),
        )
    )
    objects = st.dictionaries(names, inner, min_size=1, max_size=3).map(
        lambda drawn: (
            {
                "type": "object",
                "properties": {name: schema for name, (schema, _) in drawn.items()},
                "required": sorted(drawn),
                "additionalProperties": False,
            },
            lambda x: isinstance(x, dict) and set(x) == set(drawn) and all(f(x[n]) for n, (_, f) in drawn.items()),
        )
    )
    return arrays | objects


schemas = st.recursive(leaves, grown, max_leaves=5)


@pytest.mark.parametrize("path", [CHAT, TEXT])
@settings(max_examples=20)
@given(drawn=schemas, seed=st.integers(0, 99))
def test_json_follows_its_schema(server: ServerProcess, path: str, drawn: Any, seed: int) -> None:
    schema, is_right = drawn
    schema = schema | {"$defs": {"flag": {"type": "boolean"}}}
    form = {"type": "json_schema", "json_schema": {"name": "drawn", "schema": schema, "strict": True}}
    fields = {"response_format": form, "seed": seed, "temperature": 1.2}
    [choice] = ask(server, path, **fields)["choices"]
    text = text_of(path, choice)
    if choice["finish_reason"] == "stop":
        assert is_right(json.loads(text)), (schema, text)
    else:
        assert choice["finish_reason"] == "length"
    assert streamed(server, path, **fields) == (text, choice["finish_reason"])


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"structured_outputs": {"regex": "a{2}[bc]+/x"}}, "a{2}[bc]+/x"),
        ({"guided_regex": r"\d{3}-\d{2}"}, r"\d{3}-\d{2}"),
        ({"guided_choice": ["dog", "the \"fox\"", "naïve"]}, 'dog|the "fox"|naïve'),
        ({"guided_grammar": 'root ::= "x" ("y" | "z"){1,4}'}, "x[yz]{1,4}"),
        ({"guided_grammar": 'start: "x" (A | "z") \nA: /[0-9]{2}/'}, "x([0-9]{2}|z)"),
        ({"structured_outputs": {"json": {"const": [1]}, "disable_any_whitespace": True}}, r"\[1\]"),
        ({"guided_json": '{"type": "integer", "minimum": 10, "maximum": 99}'}, r"\d\d"),
    ],
    ids=str,
)  # fmt: skip
def test_other_forms(server: ServerProcess, path: str, fields: dict[str, Any], pattern: str) -> None:
    for choice in ask(server, path, n=3, seed=5, temperature=1.5, **fields)["choices"]:
        assert choice["finish_reason"] == "stop" and re.fullmatch(pattern, text_of(path, choice))


def test_an_answer_that_is_cut_off_says_so(server: ServerProcess) -> None:
    fields = {"response_format": {"type": "json_object"}, "max_tokens": 3, "guided_json": None}
    [choice] = ask(server, CHAT, **fields)["choices"]
    assert choice["finish_reason"] == "length" and choice["message"]["content"].startswith("{")


def test_tags_in_free_text(server: ServerProcess) -> None:
    schema = {
        "type": "object",
        "properties": {"x": {"type": "integer"}},
        "required": ["x"],
        "additionalProperties": False,
    }
    form = {
        "type": "structural_tag",
        "structures": [{"begin": "<f=g>", "schema": schema, "end": "</f>"}],
        "triggers": ["<f="],
    }
    for seed in range(4):
        [choice] = ask(server, CHAT, response_format=form, seed=seed, logit_bias={"30": 8.0}, temperature=1.5)[
            "choices"
        ]
        for inside in re.findall(r"<f=(.*?)</f>", choice["message"]["content"], re.DOTALL):
            assert set(json.loads(inside.removeprefix("g>"))) == {"x"}


def test_forms_do_not_meet_in_a_batch(server: ServerProcess) -> None:
    """Each of many answers at once follows its own form, those without one no form at all."""

    def one(number: int) -> tuple[int, str, str]:
        word = f"{number:03d}" * 4
        fields = {"guided_choice": [word]} if number % 3 else {"max_tokens": 8}
        [choice] = ask(server, TEXT, seed=number, **fields)["choices"]
        return number, word, choice["text"]

    alone = {number: one(number)[2] for number in range(0, 48, 3)}
    with ThreadPoolExecutor(24) as pool:
        for number, word, text in pool.map(one, range(48)):
            assert text == (word if number % 3 else alone[number])


def test_hostile_grammars_stop_nobody(server: ServerProcess) -> None:
    chained = "start: r0\n" + "".join(f'r{i}: "a" r{i + 1} | "b"\n' for i in range(20_000)) + 'r20000: "z"'
    nested: Any = {"type": "string"}
    for i in range(60):
        nested = {"type": "object", "properties": {f"p{i}": nested}, "required": [f"p{i}"]}
    hostile: list[dict[str, Any]] = [
        {"guided_grammar": chained},
        {"guided_regex": "(a+)+b"},
        {"guided_regex": "(.*a){50}[0-9]{1,1000}"},
        {"guided_regex": "((a{1,100}b){1,100}c){1,100}"},
        {"guided_json": nested},
        {"guided_json": {"enum": [f"{i}" * 40 for i in range(8000)]}},
        {"guided_grammar": 'start: e\ne: e e | "a" | e e e | ""'},
        {"guided_json": {"anyOf": [{"type": "string", "pattern": f"^(x|y){{{i},90}}$"} for i in range(60)]}},
    ]
    worker = server.worker.pid
    with ThreadPoolExecutor(len(hostile) + 1) as pool:
        waiting = [pool.submit(server.post, TEXT, ASK[TEXT] | {"max_tokens": 30} | fields) for fields in hostile]
        slowest = 0.0
        while not all(future.done() for future in waiting):
            began = time.monotonic()
            assert httpx.get(server.url + "/health", timeout=10).status_code == 200
            slowest = max(slowest, time.monotonic() - began)
        assert {future.result().status_code for future in waiting} <= {200, 400}
    assert slowest < 1.5 and server.worker.pid == worker
    assert ask(server, TEXT, max_tokens=2)["usage"]["completion_tokens"] == 2


@pytest.mark.slow
def test_ten_thousand_schemas_take_bounded_memory(server: ServerProcess) -> None:
    """In the front process, the engine's and those that try grammars; the first half fills what is kept of them."""

    def one(number: int) -> int:
        schema = {"type": "object", "properties": {f"p{number}": {"type": "string"}}, "required": [f"p{number}"]}
        return server.post(TEXT, ASK[TEXT] | {"max_tokens": 1, "guided_json": schema}).status_code

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(one, range(5000))) == {200}
        front = psutil.Process(server.process.pid)
        before = {process: process.memory_info().rss for process in (front, *front.children(recursive=True))}
        assert set(pool.map(one, range(5000, 10_000))) == {200}
    after = {process: process.memory_info().rss for process in (front, *front.children(recursive=True))}
    assert set(after) == set(before)
    growth = {process.pid: (after[process] - before[process]) >> 20 for process in after}
    assert max(growth.values()) < 64, growth


def test_logprobs_and_stop_strings_go_with_a_form(server: ServerProcess) -> None:
    [choice] = ask(server, CHAT, guided_regex="abc[0-9]{5}", logprobs=True, top_logprobs=2, stop="c")["choices"]
    assert choice["message"]["content"] == "ab" and choice["stop_reason"] == "c"
    [choice] = ask(server, CHAT, guided_regex="abc[0-9]{5}", logprobs=True)["choices"]
    shown = b"".join(bytes(entry["bytes"] or ()) for entry in choice["logprobs"]["content"])
    assert shown.decode() == choice["message"]["content"]
