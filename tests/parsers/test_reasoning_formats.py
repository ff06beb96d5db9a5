"""Every reasoning format, whatever the text and however it is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.text.parsers.registry import reasoning_format, reasoning_format_names
from tests.growth import assert_linear
from tests.parsers.drawn import FRAGMENTS, TEXTS, content, fed, joined, reasoning, splits

BY_NAME = pytest.mark.parametrize("name", reasoning_format_names())
THINK = ["qwen3", "deepseek_r1", "deepseek_v3", "glm45", "kimi_k2", "minimax_m2", "step3"]
ALWAYS = {"deepseek_r1", "minimax_m2", "step3"}
# Texts that no format takes for a marker, with no newline at either end.
PLAIN = st.text("abc é🙂.,!?0\n<", max_size=20).map(lambda text: text.strip("\n "))


def begin_and_end(name: str) -> tuple[str, str]:
    form = reasoning_format(name)
    return form.begin, form.end + ("<|start|>assistant<|channel|>final<|message|>" if name == "openai" else "")


@BY_NAME
@given(st.data())
def test_any_split_of_any_text_gives_the_same(name: str, data: st.DataObject) -> None:
    begin, end = begin_and_end(name)
    text = "".join(data.draw(st.permutations([data.draw(TEXTS), begin, data.draw(TEXTS), end, data.draw(TEXTS)])))
    tail = data.draw(st.sampled_from(["", "assistant\n", f"{begin}\n", f"{begin}\n\n{end}\n\n"]))
    form = reasoning_format(name)
    whole = joined(fed(form.parser(0, tail), [text]))
    assert joined(fed(form.parser(0, tail), data.draw(splits(text)))) == whole
    assert joined(fed(form.parser(0, tail), text)) == whole


@BY_NAME
@given(thought=PLAIN, answer=PLAIN, data=st.data())
def test_thoughts_and_answer_are_told_apart(name: str, thought: str, answer: str, data: st.DataObject) -> None:
    begin, end = begin_and_end(name)
    gap = "" if name == "openai" else data.draw(st.sampled_from(["", "\n", "\n\n"]))
    prompted = data.draw(st.booleans()) and name != "granite"
    text = f"{'' if prompted else begin}{gap}{thought}{gap}{end}{gap}{answer}"
    parser = reasoning_format(name).parser(0, f"assistant\n{begin}" if prompted else "assistant\n")
    events = fed(parser, data.draw(splits(text)))
    assert (reasoning(events), content(events)) == (thought, answer)


@BY_NAME
@given(thought=PLAIN)
def test_thoughts_that_never_end_are_thoughts(name: str, thought: str) -> None:
    form = reasoning_format(name)
    for tail in ("", "\n\n"):
        events = fed(form.parser(0, ""), f"{form.begin}{thought or 'a'}{tail}")
        assert (reasoning(events), content(events)) == ((thought or "a") + tail, "")


@BY_NAME
def test_the_prompt_may_have_begun_the_thoughts_or_ended_them(name: str) -> None:
    form = reasoning_format(name)
    begin, end = begin_and_end(name)
    assert form.is_thinking(f"<|im_start|>assistant\n{begin}{'' if name == 'openai' else chr(10)}") is True
    assert form.is_thinking(f"{begin}\n\n{end}{'' if name == 'openai' else chr(10) * 2}") is False
    assert form.is_thinking(f"What does {begin} mean?<|im_end|>") is (True if name in ALWAYS else None)
    events = fed(form.parser(0, f"{begin}{end}"), "Just so.")
    assert (reasoning(events), content(events)) == ("", "Just so.")
    events = fed(form.parser(0, ""), "Just so.")
    assert content(events) == ("" if name in ALWAYS else "Just so.")


@pytest.mark.parametrize("name", THINK)
def test_a_marker_behind_text_is_text(name: str) -> None:
    text = "Write <think> so, </think> and\n\n"
    events = fed(reasoning_format(name).parser(0, "<think>\n\n</think>\n\n"), text)
    assert content(events) == text and not reasoning(events)


@BY_NAME
def test_text_is_held_back_only_where_a_marker_may_begin(name: str) -> None:
    form = reasoning_format(name)
    begin, end = begin_and_end(name)
    parser = form.parser(0, "")
    fed_so_far = [*parser.push(begin + "a")]
    for char in "bc d.":
        assert reasoning(parser.push(char)) == char
    fed_so_far += parser.push(end + "a")
    assert content(fed_so_far) == "a"
    for char in "bc d.\ne":
        assert content(parser.push(char)) == char


@BY_NAME
def test_hostile_texts_take_linear_time(name: str) -> None:
    form = reasoning_format(name)
    begin, end = begin_and_end(name)
    for again in [*FRAGMENTS, begin, begin[:-1], end[:-1], form.end, "\n"]:
        text = (begin + again * (100_000 // len(again)))[:100_000]
        assert_linear(lambda size, text=text: fed(form.parser(0, ""), [text[:size]]), 100_000)
        assert_linear(lambda size, text=text: fed(form.parser(0, ""), text[:size]), 10_000)
