"""Every tool format, whatever the text and however it is cut."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.events import ToolCallArguments, ToolCallBegun, ToolCallEnded
from tandem.text.parsers.json_text import MAX_DEPTH, JsonScanner
from tandem.text.parsers.parser import Tool
from tandem.text.parsers.pythonic import PythonScanner
from tandem.text.parsers.registry import tool_format
from tandem.text.parsers.tagged_calls import types_of, written_as_json
from tests.growth import assert_linear
from tests.parsers.drawn import (
    JSON,
    PLAIN,
    TEXTS,
    TOOLS,
    Call,
    calls,
    content,
    failures,
    fed,
    joined,
    parsed_calls,
    raw_calls,
    splits,
)
from tests.parsers.hostile import attacks
from tests.parsers.writers import (
    CASE_IDS,
    CASES,
    WRITERS,
    Writer,
    dumps,
    kimi_k2,
    passes_on_verbatim,
    strings,
    text_may_precede,
)

BY_CASE = pytest.mark.parametrize(("name", "write"), CASES, ids=CASE_IDS)
BY_NAME = pytest.mark.parametrize("name", WRITERS)


@BY_NAME
@given(st.data())
def test_any_split_of_any_text_gives_the_same(name: str, data: st.DataObject) -> None:
    drawn = data.draw(st.lists(calls(), max_size=2))
    written = data.draw(st.sampled_from(WRITERS[name]))(drawn) if drawn else ""
    cut = data.draw(st.integers(0, len(written)))
    text = data.draw(TEXTS) + written[:cut] + data.draw(TEXTS) + written[cut:]
    tools = data.draw(st.sampled_from([(), TOOLS]))
    if not text:
        return
    whole = joined(fed(tool_format(name).parser(0, tools), [text]))
    assert joined(fed(tool_format(name).parser(0, tools), data.draw(splits(text)))) == whole
    assert joined(fed(tool_format(name).parser(0, tools), text)) == whole


@BY_CASE
@given(st.data())
def test_what_was_written_is_what_was_called(name: str, write: Writer, data: st.DataObject) -> None:
    drawn = data.draw(st.lists(calls(strings=strings(name)), min_size=1, max_size=3))
    before = data.draw(PLAIN) if text_may_precede(name, write) else ""
    events = fed(tool_format(name).parser(0, TOOLS), data.draw(splits(before + write(drawn))))
    assert parsed_calls(events) == drawn
    assert content(events) == (before if before.strip() else "")
    assert failures(events) == 0
    if passes_on_verbatim(name):
        assert [text for _, text in raw_calls(events)] == [dumps(call.arguments) for call in drawn]


@BY_CASE
@given(st.data())
def test_calls_of_unknown_functions_come_back_as_text(name: str, write: Writer, data: st.DataObject) -> None:
    drawn = data.draw(st.lists(calls(strings=strings(name)), min_size=1, max_size=3))
    text = (data.draw(PLAIN) if text_may_precede(name, write) else "") + write(drawn)
    events = fed(tool_format(name).parser(0, (Tool(name="nobody"),)), data.draw(splits(text)))
    assert not raw_calls(events)
    assert failures(events) >= 1
    assert _without_ends(name, content(events)) == _without_ends(name, text)
    if all(isinstance(value, int | float) for call in drawn for value in call.arguments.values()):
        assert failures(events) <= len(drawn)


def _without_ends(name: str, text: str) -> str:
    """Harmony's markers are never text where they stand for themselves."""
    return re.sub(r"<\|(end|call|return|start|channel|message|constrain)\|>", "", text) if name == "openai" else text


@BY_CASE
@given(st.data())
def test_a_call_that_breaks_off_is_text_or_ends_where_it_is(name: str, write: Writer, data: st.DataObject) -> None:
    drawn = data.draw(st.lists(calls(strings=strings(name)), min_size=1, max_size=2))
    before = "So: " if text_may_precede(name, write) else ""
    text = before + write(drawn)
    text = text[: data.draw(st.integers(len(before), len(text)))]
    whole = raw_calls(fed(tool_format(name).parser(0, TOOLS), [before + write(drawn)]))
    events = fed(tool_format(name).parser(0, TOOLS), data.draw(splits(text)))
    found = raw_calls(events)
    assert found[:-1] == whole[: max(0, len(found) - 1)]
    if found:
        assert found[-1][0] == whole[len(found) - 1][0]
        if passes_on_verbatim(name):
            assert whole[len(found) - 1][1].startswith(found[-1][1])
    rest = content(events).removeprefix(before)
    assert text.endswith(rest)
    assert failures(events) <= 1
    if failures(events):
        assert rest


@BY_NAME
@given(st.data())
def test_nothing_is_invented(name: str, data: st.DataObject) -> None:
    written = data.draw(st.sampled_from(WRITERS[name]))([data.draw(calls())])
    cut = data.draw(st.integers(0, len(written)))
    text = data.draw(TEXTS) + written[:cut] + data.draw(TEXTS) + written[cut:]
    shown = content(fed(tool_format(name).parser(0, TOOLS), [text or " "]))
    rest = iter(text or " ")
    assert all(char in rest for char in shown), "shown text is a part of what came, in its order"


@BY_NAME
def test_text_is_held_back_only_where_a_marker_may_begin(name: str) -> None:
    parser = tool_format(name).parser(0, TOOLS)
    for char in "a b, c.\nd  é!":
        assert content(parser.push(char)) == char
    parser = tool_format(name).parser(0, TOOLS)
    written = (WRITERS[name][-2] if name == "granite" else WRITERS[name][-1])([Call("look", {"text": "a"})])
    events = fed(parser, ["\n", written, "\n"])
    assert parsed_calls(events) == [Call("look", {"text": "a"})]
    assert not content(events), "whitespace around calls is dropped"


@BY_NAME
def test_arguments_are_passed_on_while_they_come(name: str) -> None:
    parser = tool_format(name).parser(0, TOOLS)
    text = WRITERS[name][0]([Call("look", {"text": "abcdefgh"})])
    inside = text.index("abcdefgh")
    assert raw_calls([*parser.push(text[:inside]), ToolCallEnded(0, 0)])[0][0] == "look"
    for char in "abcdefgh":
        assert parser.push(char) == [ToolCallArguments(0, 0, char)]


@BY_NAME
def test_ids_are_unique_and_of_the_family(name: str) -> None:
    shape = {"kimi_k2": r"functions\.look:[0-9]+", "mistral": r"[A-Za-z0-9]{9}"}.get(name, r"call_[0-9a-f]{24}")
    text = WRITERS[name][0]([Call("look", {"text": "a"})] * 3)
    events = fed(tool_format(name).parser(0, TOOLS), [text])
    ids = [event.call_id for event in events if isinstance(event, ToolCallBegun)]
    assert len(set(ids)) == 3
    assert all(re.fullmatch(shape, made) for made in ids)


def test_kimi_keeps_the_models_own_ids_but_no_id_twice() -> None:
    text = kimi_k2([Call("look", {"text": "a"})] * 2).replace("look:0", "look:7").replace("look:1", "look:7")
    events = fed(tool_format("kimi_k2").parser(0, TOOLS), [text])
    ids = [event.call_id for event in events if isinstance(event, ToolCallBegun)]
    assert ids == ["functions.look:7", "functions.look:1"]


@BY_NAME
@given(st.data())
@settings(max_examples=10)
def test_hostile_texts_take_linear_time(name: str, data: st.DataObject) -> None:
    stem, again = data.draw(st.sampled_from(attacks(tool_format(name))))
    text = (stem + again * (100_000 // len(again) + 1))[:100_000]
    tools = data.draw(st.sampled_from([(), TOOLS]))
    assert_linear(lambda size: fed(tool_format(name).parser(0, tools), [text[:size]]), 100_000)
    assert_linear(lambda size: fed(tool_format(name).parser(0, tools), text[:size]), 10_000)


def test_megabytes_take_linear_time() -> None:
    for text in ('<tool_call>{"arguments": {"a": "' + "a" * 1_000_000, "<tool_cal" * 110_000, "<tool_call>" * 90_000):
        assert_linear(lambda size, text=text: fed(tool_format("hermes").parser(0, TOOLS), [text[:size]]), len(text))


@given(st.data())
def test_arguments_may_stand_before_the_name(data: st.DataObject) -> None:
    call = data.draw(calls())
    written = dumps(call.arguments)
    text = f'<tool_call>{{"id": 7, "arguments": {written}, "name": {dumps(call.name)}}}</tool_call>'
    assert raw_calls(fed(tool_format("hermes").parser(0, TOOLS), data.draw(splits(text)))) == [(call.name, written)]
    events = fed(tool_format("hermes").parser(0, (Tool(name="nobody"),)), data.draw(splits(text)))
    assert (content(events), failures(events)) == (text, 1)


def test_the_depth_of_arguments_is_limited() -> None:
    for depth in (MAX_DEPTH, MAX_DEPTH + 1):
        value = f'{{"text": {"[" * (depth - 1)}{"]" * (depth - 1)}}}'
        text = f'<tool_call>{{"name": "look", "arguments": {value}}}</tool_call>'
        events = fed(tool_format("hermes").parser(0, TOOLS), [text])
        assert (raw_calls(events) == [("look", value)]) is (depth == MAX_DEPTH)
        assert bool(content(events)) is (depth > MAX_DEPTH)


def test_json_that_is_none_ends_a_call() -> None:
    text = '<tool_call>{"name": "look", "arguments": {"text": tru!}}</tool_call>'
    events = fed(tool_format("hermes").parser(0, TOOLS), text)
    assert raw_calls(events) == [("look", '{"text": tru')]
    assert content(events) == "!}}</tool_call>"


@given(JSON, st.data())
def test_values_are_typed_by_the_schema(value: Any, data: st.DataObject) -> None:
    text = value if isinstance(value, str) else dumps(value)
    assert json.loads(written_as_json(text, frozenset({"string"}))) == text
    if not isinstance(value, str):
        assert json.loads(written_as_json(f"\n{text} ", frozenset())) == value
    assert written_as_json("True", frozenset({"boolean"})) == "true"
    assert written_as_json("None", frozenset({"string", "null"})) == "null"
    assert written_as_json("007", frozenset({"integer"})) == '"007"'


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"enum": ["a", 1]}, {"string", "number"}),
        ({"const": True}, {"boolean"}),
        (
            {"oneOf": [{"type": "integer"}, {"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "null"}}},
            {"integer", "null"},
        ),
        ({"$ref": "#"}, set()),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, set()),
        ({"type": 3, "enum": {}, "anyOf": "x"}, set()),
        (True, set()),
        ({}, set()),
    ],
)
def test_types_are_read_off_schemas(schema: Any, types: set[str]) -> None:
    assert types_of(schema, schema) == types


@given(st.text("0123456789.eE+-[]{}:,\"' \\ntrufalsx", max_size=12), st.data())
def test_the_json_scanner_is_jsons(text: str, data: st.DataObject) -> None:
    text = f"[{text}"
    scanner, at = JsonScanner(), 0
    for piece in data.draw(splits(text)):
        end = scanner.feed(piece, 0)
        at += end
        if end < len(piece) or scanner.done:
            break
    try:
        expected = json.JSONDecoder().raw_decode(text)[1]
    except json.JSONDecodeError:
        expected = None
    if expected is None or "Infinity" in text or "NaN" in text:
        assert not scanner.done
    else:
        assert (scanner.done, at) == (True, expected)


PYTHON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e300, 1e300) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(PYTHON, st.data())
def test_the_python_scanner_is_pythons(value: Any, data: st.DataObject) -> None:
    text = repr(value)
    scanner, out = PythonScanner(), ""
    for piece in data.draw(splits(f"{text},")):
        scanner.feed(piece, 0)
        out += scanner.written(piece)
    assert scanner.done and json.loads(out) == value


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("(1, 'a', (True,),)", [1, "a", [True]]),
        ("{\"a\": null, 'b': [false,],}", {"a": None, "b": [False]}),
        (r"'\x41\u00e9\U0001f642\ud83d\ude42\q\'\"\/'", "Aé🙂🙂\\q'\"/"),
        ('"it\'s\n"', "it's\n"),
    ],
)
def test_python_literals(literal: str, value: Any) -> None:
    text = f"[look(text={literal})]"
    for pieces in ([text], [*text]):
        assert parsed_calls(fed(tool_format("pythonic").parser(0, TOOLS), pieces)) == [Call("look", {"text": value})]
