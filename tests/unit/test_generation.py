"""The core: engine outputs in, events out, in orders that an engine may choose but seldom does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem import SamplingParams
from tandem.engine import EngineOutput, EngineRequest, LogprobColumns, TokenLogprobs
from tandem.errors import NO_TOKEN_LEFT, EngineDeadError, RequestError, RequestFailedError
from tandem.events import (
    AnyEvent,
    ChoiceEnded,
    Content,
    PromptScored,
    ReasoningDelta,
    TextDelta,
    TokensSampled,
)
from tandem.generation.decoding import ChoiceDecoder, Choices, Reading
from tandem.generation.generation import Generation
from tests.unit.test_detokenizer import BYTE_LEVEL

END = BYTE_LEVEL.encode("<end>")[0]
END_TEXT = BYTE_LEVEL.token(END)
SCORED = LogprobColumns.of([TokenLogprobs(1, -1.0, 1, [], [])])


def requests(num_prompts: int = 1, **sampling: Any) -> list[EngineRequest]:
    """As admission makes them; choice 0 alone reports the prompt."""
    first = SamplingParams(**sampling)
    others = SamplingParams(**(sampling | {"prompt_logprobs": None}))
    return [
        EngineRequest(
            request_id=f"{prompt}-{index}",
            prompt_token_ids=[1, 2],
            sampling=others if index else first,
            max_tokens=9,
            seed=0,
            choice_index=index,
        )
        for prompt in range(num_prompts)
        for index in range(first.n)
    ]


def output(request_id: str, text: str, **fields: Any) -> EngineOutput:
    return EngineOutput(request_id, BYTE_LEVEL.encode(text), **fields)


def test_tokens_that_nobody_reads_are_not_decoded() -> None:
    asked = requests(n=2)
    choices = Choices(BYTE_LEVEL, asked, Reading(decodes=False))
    events, stopped = choices.take([output(r.request_id, "the fox", finish_reason="length") for r in asked])
    assert [type(event) for event in events] == [TokensSampled, ChoiceEnded] * 2 and not stopped


def told(events: Iterable[AnyEvent]) -> list[Any]:
    """Texts, ends and prompts, by choice."""
    found: list[Any] = []
    for event in events:
        match event:
            case TextDelta(choice, text):
                found.append((choice, text))
            case ChoiceEnded(choice, reason):
                found.append((choice, reason))
            case PromptScored(prompt):
                found.append(f"prompt {prompt}")
    return found


# ---------------------------------------------------------------------- outputs to events


def test_other_choices_wait_for_the_prompts_logprobs() -> None:
    choices = Choices(BYTE_LEVEL, requests(n=2, prompt_logprobs=0))
    assert choices.take([output("0-1", "x")]) == ([], [])
    assert choices.take([output("0-1", "y", finish_reason="length")]) == ([], [])
    events, _ = choices.take([output("0-0", "a", prompt_logprobs=SCORED)])
    assert told(events) == ["prompt 0", (1, "x"), (1, "y"), (1, "length"), (0, "a")]
    assert told(choices.take([output("0-0", "b")])[0]) == [(0, "b")]


def test_a_prompt_that_fails_unscored_holds_nobody_up() -> None:
    choices = Choices(BYTE_LEVEL, requests(n=2, prompt_logprobs=0))
    choices.take([output("0-1", "x")])
    events, _ = choices.take([EngineOutput("0-0", [], finish_reason="error", error="broken")])
    assert told(events) == [(1, "x"), (0, "error")]


def test_choices_are_numbered_through_all_prompts_and_counted() -> None:
    choices = Choices(BYTE_LEVEL, requests(2, n=2))
    events, _ = choices.take(
        [
            output("0-0", "a"),
            output("0-1", "bb", num_cached_tokens=9),
            output("1-1", "d", finish_reason="length"),
            output("1-0", "e", num_cached_tokens=1, finish_reason="length"),
        ]
    )
    assert told(events) == [(0, "a"), (1, "bb"), (3, "d"), (3, "length"), (2, "e"), (2, "length")]
    assert (choices.num_prompt_tokens, choices.num_output_tokens, choices.num_cached_tokens) == (4, 5, 1)


def test_a_stop_string_ends_a_choice_and_names_it_for_abort() -> None:
    choices = Choices(BYTE_LEVEL, requests(stop=["lo"]))
    events, stopped = choices.take([output("0-0", "hello you")])
    assert told(events) == [(0, "hel"), (0, "stop")] and stopped == ["0-0"]
    assert isinstance(events[0], TokensSampled) and BYTE_LEVEL.decode(events[0].token_ids) == "hello"
    assert choices.num_output_tokens == 5
    assert choices.take([output("0-0", "more")]) == ([], []), "it was on its way"


class Thinking:
    """All before the special token is reasoning: a parser as a model would have one."""

    def __init__(self, choice: int) -> None:
        self.is_thinking = True

    def push(self, text: str) -> Sequence[Content]:
        if text == END_TEXT:
            self.is_thinking = False
            return ()
        return (ReasoningDelta(0, text) if self.is_thinking else TextDelta(0, text),)

    def finish(self) -> Sequence[Content]:
        return ()


def test_stop_strings_see_content_only_and_special_tokens_reach_the_parser() -> None:
    decoder = ChoiceDecoder(BYTE_LEVEL, SamplingParams(stop=["o"]), 0, Reading(Thinking, frozenset([END_TEXT])))
    ids = [*BYTE_LEVEL.encode("so "), END, *BYTE_LEVEL.encode("yes, now")]
    events = decoder.decode(EngineOutput("r", ids))
    reasoning = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    content = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert (reasoning, content) == ("so ", "yes, n")
    assert decoder.num_reasoning_tokens == 4
    assert isinstance(events[-1], ChoiceEnded) and events[-1].stop_reason == "o"


class Shouting:
    """Whatever is in capitals is reasoning."""

    def push(self, text: str) -> Sequence[Content]:
        return (ReasoningDelta(0, text) if text.isupper() else TextDelta(0, text),)

    def finish(self) -> Sequence[Content]:
        return ()


def test_text_held_back_for_a_stop_string_keeps_its_place() -> None:
    decoder = ChoiceDecoder(BYTE_LEVEL, SamplingParams(stop=["abc"]), 0, Reading(lambda choice: Shouting()))
    events = decoder.decode(output("r", "xabXc"))
    assert [event.text for event in events[1:]] == ["xab", "X", "c"]  # type: ignore[union-attr]


@given(st.text(max_size=12), st.lists(st.integers(1, 4)), st.booleans())
def test_any_cut_of_the_tokens_tells_the_same(text: str, cuts: list[int], includes: bool) -> None:
    sampling = {"stop": ["ab", "b"], "include_stop_str_in_output": includes}
    text += "xaab"
    ids = BYTE_LEVEL.encode(text)

    def joined(steps: list[list[int]]) -> tuple[str, list[int], AnyEvent]:
        choices, events = Choices(BYTE_LEVEL, requests(**sampling)), []
        for step in steps:
            events += choices.take([EngineOutput("0-0", step)])[0]
        shown = "".join(event.text for event in events if isinstance(event, TextDelta))
        sampled = [i for event in events if isinstance(event, TokensSampled) for i in event.token_ids]
        return shown, sampled, events[-1]

    steps, rest = [], ids
    for size in cuts:
        steps.append(rest[:size])
        rest = rest[size:]
    assert joined([step for step in [*steps, rest] if step]) == joined([ids])


# ---------------------------------------------------------------------- a generation


class Scripted:
    """Stands for a client's stream: hands out what the script says, a step at a time, and raises its exceptions."""

    pause = 0.0  # before each

    def __init__(self, script: list[list[EngineOutput] | Exception]) -> None:
        self._script = script
        self._has_come = False
        self.aborted: list[Any] = []

    @property
    def finished(self) -> bool:
        return not self._script

    def listen(self, listener: Callable[[], None]) -> None:
        self._listener = listener
        asyncio.get_running_loop().call_later(self.pause, self._tell)

    def _tell(self) -> None:
        self._has_come = True
        self._listener()
        if self._script:
            asyncio.get_running_loop().call_later(self.pause, self._tell)

    def take(self) -> list[EngineOutput]:
        if not self._has_come:
            return []
        self._has_come = False
        step = self._script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    def abort(self, request_ids: Any = None) -> None:
        self.aborted.append(request_ids)


def generation(
    script: list[list[EngineOutput] | Exception], observed: list[AnyEvent] | None = None, **sampling: Any
) -> tuple[Generation, Scripted]:
    stream: Any = Scripted(script)
    observe = (lambda events: None) if observed is None else observed.extend
    return Generation(stream, Choices(BYTE_LEVEL, requests(**sampling)), observe), stream


async def read(of: Generation) -> list[AnyEvent]:
    return [event async for events in of for event in events]


def test_all_events_are_read_in_order() -> None:
    async def scenario() -> None:
        made, stream = generation([[output("0-0", "a")], [output("0-0", "b", finish_reason="length")]])
        assert told(await read(made)) == [(0, "a"), (0, "b"), (0, "length")]
        assert made.finished and stream.aborted[-1] is None

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        (EngineDeadError("gone"), EngineDeadError),
        ([EngineOutput("0-0", [], finish_reason="error", error="NaN")], RequestFailedError),
        ([output("0-1", "c"), EngineOutput("0-0", [], finish_reason="error", error="NaN")], RequestFailedError),
        ([EngineOutput("0-0", [], finish_reason="error", error=NO_TOKEN_LEFT)], RequestError),
        (ValueError("unforeseen"), ValueError),
    ],
)
def test_a_failure_ends_everything_after_what_came_before_it(ending: Any, kind: type[Exception]) -> None:
    async def scenario() -> None:
        made, stream = generation([[output("0-1", "a")], ending, [output("0-1", "b")]], n=2)
        seen: list[AnyEvent] = []
        with pytest.raises(kind):
            async for events in made:
                seen += events
        assert told(seen)[0] == (1, "a") and (1, "b") not in told(seen) and (0, "error") not in told(seen)
        assert stream.aborted[-1] is None

    asyncio.run(scenario())


def test_it_goes_on_whoever_reads() -> None:
    async def scenario() -> None:
        observed: list[AnyEvent] = []
        made, _ = generation([[output("0-0", "a")]] * 50 + [[output("0-0", "b", finish_reason="length")]], observed)
        ended: list[Exception | None] = []
        made.add_done_callback(ended.append)
        for _ in range(200):
            await asyncio.sleep(0)
        assert told(observed)[-1] == (0, "length") and ended == [None]
        assert not made.finished, "nobody has read it"
        assert len(told(await read(made))) == 52

    asyncio.run(scenario())


def test_a_reader_that_is_woken_gets_nothing_and_waits_on() -> None:
    async def scenario() -> None:
        made, _ = generation([[], [], [output("0-0", "b", finish_reason="length")]])
        made.wake()
        assert await made.next() == []
        assert told(await read(made)) == [(0, "b"), (0, "length")]

    asyncio.run(scenario())


def test_whoever_stops_early_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        for num_steps in range(4):
            made, stream = generation([[output("0-0", "a")]] * 99)
            for _ in range(num_steps):
                await made.next()
            made.abort()
            made.abort()
            await asyncio.sleep(0)
            assert stream.aborted and asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_what_came_together_with_a_failure_is_read_before_it() -> None:
    async def scenario() -> None:
        failed = EngineOutput("0-0", [], finish_reason="error", error="NaN")
        made, _ = generation([[output("0-0", "a"), failed]])
        assert told(await made.next()) == [(0, "a")]
        with pytest.raises(RequestFailedError):
            await made.next()

    asyncio.run(scenario())
