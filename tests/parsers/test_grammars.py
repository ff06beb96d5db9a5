"""Grammars accept what their format writes, nothing else, and only what its parser reads."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import llguidance
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

import tandem
from tandem.errors import RequestError
from tandem.text.parsers.parser import Tool
from tandem.text.parsers.registry import tool_format
from tests.parsers.drawn import TOOLS, Call, calls, content, fed, parsed_calls
from tests.parsers.writers import GRAMMAR_WRITERS, dumps, strings

BY_NAME = pytest.mark.parametrize("name", GRAMMAR_WRITERS)
BUNDLED = json.loads((Path(tandem.__file__).parent / "bundled" / "tokenizer.json").read_text(encoding="utf-8"))


class Vocabulary:
    """The bundled tokenizer, with a format's markers as special tokens or with none."""

    def __init__(self, markers: frozenset[str]) -> None:
        kept = [token for token in BUNDLED["added_tokens"] if token["content"] == "<|endoftext|>"]
        free = kept[0]["id"] + 1
        self._ids = {marker: free + number for number, marker in enumerate(sorted(markers))}
        added = [{**kept[0], "id": number, "content": marker} for marker, number in self._ids.items()]
        self.tokenizer = llguidance.LLTokenizer(json.dumps({**BUNDLED, "added_tokens": kept + added}))

    def token(self, marker: str) -> str:
        return f"<[{self._ids[marker]}]>" if marker in self._ids else json.dumps(marker, ensure_ascii=False)

    def is_blank(self, number: int) -> bool:
        return not self.tokenizer.decode_bytes([number]).strip()

    def closes(self, number: int) -> bool:
        """Whether a string, an object or a tag may end with the token."""
        return self.tokenizer.decode_bytes([number])[:1] in (b'"', b"'", b"}", b"]", b")", b"<")

    def accepts(self, grammar: str, text: str) -> bool:
        matcher = llguidance.LLMatcher(self.tokenizer, grammar)
        ids = self.tokenizer.tokenize_str(text)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@cache
def vocabularies(name: str) -> list[Vocabulary]:
    markers = tool_format(name).markers
    return [Vocabulary(frozenset()), Vocabulary(markers)] if markers else [Vocabulary(frozenset())]


def is_tame(name: str, call: Call) -> bool:
    """No string holds a marker, which would be encoded as its token, or a control character, which llguidance does
    not let a model write."""
    text = dumps(call.arguments)
    return not any(marker in text for marker in tool_format(name).markers) and not any(
        mark in text for mark in ("\\u00", "\\b", "\\f", "\x7f")
    )


@BY_NAME
@given(st.data())
def test_a_grammar_accepts_what_is_written(name: str, data: st.DataObject) -> None:
    tame = calls(strings=strings(name)).filter(lambda call: is_tame(name, call))
    for number, vocabulary in enumerate(vocabularies(name)):
        drawn = data.draw(st.lists(tame, min_size=1, max_size=3))
        parallel = len(drawn) > 1 or data.draw(st.booleans())
        grammar = tool_format(name).grammar(TOOLS, parallel, vocabulary.token)
        assert not llguidance.LLMatcher.validate_grammar(grammar, vocabulary.tokenizer)
        text = GRAMMAR_WRITERS[name](drawn, number > 0)
        assert vocabulary.accepts(grammar, text)


@BY_NAME
@given(st.data())
def test_a_grammar_refuses_what_breaks_a_schema(name: str, data: st.DataObject) -> None:
    wrong = [
        [Call("other", {"text": "a"})],
        [Call("look", {"count": 1})],
        [Call("look", {"text": "a", "count": "many"})],
        [Call("wait_for", {"ratio": [1]})],
        [],
    ]
    vocabulary = data.draw(st.sampled_from(vocabularies(name)))
    grammar = tool_format(name).grammar(TOOLS, True, vocabulary.token)
    right, text = [Call("look", {"text": "a", "count": 1})], data.draw(st.sampled_from(wrong))
    special = vocabulary is not vocabularies(name)[0]
    assert vocabulary.accepts(grammar, GRAMMAR_WRITERS[name](right, special))
    assert not vocabulary.accepts(grammar, GRAMMAR_WRITERS[name](text, special))
    assert not vocabulary.accepts(grammar, f"so: {GRAMMAR_WRITERS[name](right, special)}")


@BY_NAME
def test_without_parallel_calls_there_is_one(name: str) -> None:
    one = [Call("look", {"text": "a"})]
    for number, vocabulary in enumerate(vocabularies(name)):
        grammar = tool_format(name).grammar(TOOLS, False, vocabulary.token)
        assert vocabulary.accepts(grammar, GRAMMAR_WRITERS[name](one, number > 0))
        assert not vocabulary.accepts(grammar, GRAMMAR_WRITERS[name](one * 2, number > 0))


def allowed_by(matcher: llguidance.LLMatcher) -> list[int]:
    return [number for number, value in enumerate(matcher.compute_logit_bias()) if value]


@BY_NAME
@settings(phases=[Phase.generate])  # a shorter walk is another one
@given(st.data())
def test_what_a_grammar_accepts_is_read(name: str, data: st.DataObject) -> None:
    """A walk through the grammar: at each step one of the tokens that it allows."""
    vocabulary = data.draw(st.sampled_from(vocabularies(name)))
    grammar = tool_format(name).grammar(TOOLS, data.draw(st.booleans()), vocabulary.token)
    matcher = llguidance.LLMatcher(vocabulary.tokenizer, grammar)
    random = data.draw(st.randoms(use_true_random=False))
    ids: list[int] = []
    while not matcher.is_stopped() and len(ids) < 150:
        allowed = allowed_by(matcher)
        if vocabulary.tokenizer.eos_token in allowed:
            break
        if len(ids) > 40:  # a walk at random finds no end of strings, nor of white space
            shown = [number for number in allowed if not vocabulary.is_blank(number)]
            allowed = [number for number in shown if vocabulary.closes(number)] or shown or allowed
        ids.append(random.choice(allowed))
        assert matcher.consume_token(ids[-1])
    assume(matcher.is_accepting())
    text = b"".join(vocabulary.tokenizer.decode_bytes([number]).removeprefix(b"\xff") for number in ids)
    try:
        whole = text.decode()
    except UnicodeDecodeError:
        return
    events = fed(tool_format(name).parser(0, TOOLS), [whole])
    assert parsed_calls(events)
    assert not content(events)


@BY_NAME
def test_parameters_may_be_anything(name: str) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {
            "mode": {"enum": ["on", "off"]},
            "flag": {"type": "boolean"},
            "part": {"$ref": "#/$defs/part"},
            "either": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["flag"],
        "$defs": {"part": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}},
    }
    tools = (Tool(name="set", parameters=schema),)
    call = [Call("set", {"mode": "on", "flag": True, "part": {"n": 1}, "either": None})]
    for number, vocabulary in enumerate(vocabularies(name)):
        grammar = tool_format(name).grammar(tools, True, vocabulary.token)
        text = GRAMMAR_WRITERS[name](call, number > 0)
        text = text.replace("flag=true", "flag=True")
        assert vocabulary.accepts(grammar, text)
        assert not vocabulary.accepts(grammar, text.replace("on", "in", 1) if "on" in text[:40] else "")
        assert parsed_calls(fed(tool_format(name).parser(0, tools), [text])) == call


@BY_NAME
def test_there_is_no_grammar_of_no_tools(name: str) -> None:
    with pytest.raises(RequestError) as raised:
        tool_format(name).grammar((), True, repr)
    assert raised.value.param == "tool_choice"
