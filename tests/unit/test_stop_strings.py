"""Stop strings are found however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.text.stop_strings import StopStrings
from tests.growth import assert_linear

STOPS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple)


@given(st.text("abc", max_size=30), STOPS, st.booleans(), st.data())
def test_stop_strings_do_not_depend_on_how_the_text_was_cut(
    text: str, stops: tuple[str, ...], include: bool, data: st.DataObject
) -> None:
    matcher = StopStrings(stops, include)
    shown, rest = "", text
    while rest and matcher.found is None:
        size = data.draw(st.integers(1, len(rest)))
        shown, rest = shown + matcher.push(rest[:size]), rest[size:]
        visible = shown if not include or matcher.found is None else shown[: -len(matcher.found)]
        assert not any(stop in visible for stop in stops), "a stop string leaked"
    if matcher.found is None:
        assert shown + matcher.finish() == text
        assert not any(stop in text for stop in stops)
    else:
        # one character at a time shows which string is complete first
        first = next(n for n in range(len(text) + 1) if any(text[:n].endswith(stop) for stop in stops))
        assert matcher.found in stops
        longest = max((stop for stop in stops if text[:first].endswith(stop)), key=len)
        assert matcher.found == longest
        assert shown == (text[:first] if include else text[: first - len(longest)])


@pytest.mark.parametrize("unit", ["a", "ab", "x", "a" * 1000 + "c"])
@pytest.mark.parametrize(
    "stops", [("a" * 1023 + "b",), ("ab" * 511 + "c", "b" * 1024), tuple("a" * (960 + i) + "b" for i in range(64))]
)
def test_hostile_texts_take_linear_time(unit: str, stops: tuple[str, ...]) -> None:
    text = unit * (40_000 // len(unit))

    def push(size: int, length: int) -> None:
        matcher = StopStrings(stops, False)
        for start in range(0, size, length):
            matcher.push(text[start : start + length])

    assert_linear(lambda size: push(size, 4), len(text))
    assert_linear(lambda size: push(size, size), len(text))
