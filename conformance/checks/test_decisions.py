"""``POST /decisions``: probabilities of given answers instead of text."""

from __future__ import annotations

from typing import Any

import pytest

from ..client import OMIT, Api, Exchange, Json
from ..requirement import group, must
from ..schema import validate

pytestmark = group("decisions", "decisions")
CREATE = "https://developers.openai.com/api/reference/python/resources/decisions/methods/create"
TEXT = "It rained all day in Paris."
PREDICATE: Json = {"type": "predicate", "name": "rain", "instructions": "It rained."}
CHOICE: Json = {
    "type": "choice",
    "name": "city",
    "instructions": "Which city is it about?",
    "choices": [{"value": "Paris", "description": "The capital of France."}, {"value": "Rome"}],
}
SCORE: Json = {
    "type": "score",
    "name": "mood",
    "instructions": "How glad does it sound?",
    "levels": [{"label": "sad"}, {"label": "neutral"}, {"label": "glad"}],
}


def answers(api: Api, *questions: Json, **fields: Any) -> list[Json]:
    """The answers, each in the type of its question or a refusal, which any question may get."""
    body = api.decide(questions, **fields).offered(*fields).ok()
    validate("decision", body)
    found: list[Json] = body["answers"]
    assert len(found) == len(questions), f"expected {len(questions)} answers, got {len(found)}"
    for question, answer in zip(questions, found, strict=True):
        kinds = (question["type"], "refusal")
        assert answer["type"] in kinds, f"expected an answer of type {kinds[0]}, got {answer['type']!r}"
    return found


def check_probabilities(*values: float) -> None:
    """Each is one."""
    assert all(0 <= value <= 1 for value in values), f"expected probabilities from 0 to 1, got {values}"


@must("every type of question has its type of answer, in the questions' order, with their names", CREATE)
def test_types(api: Api) -> None:
    """Strictly typed; more than one question of a type."""
    questions = [SCORE, PREDICATE, {**CHOICE, "name": "first"}, {**PREDICATE, "name": "last"}]
    found = [answer.get("name") for answer in answers(api, *questions)]
    expected = [question["name"] for question in questions]
    assert found == expected, f"expected the names {expected}, got {found}"


@must("a question without a name has an answer without one", CREATE)
def test_unnamed(api: Api) -> None:
    """Null, or left out."""
    (answer,) = answers(api, {key: value for key, value in PREDICATE.items() if key != "name"})
    assert answer.get("name") is None, f"expected no name, got {answer['name']!r}"


@must("a predicate has a probability", CREATE)
def test_predicate(api: Api) -> None:
    """From 0 to 1."""
    (answer,) = answers(api, PREDICATE)
    if answer["type"] == "predicate":
        check_probabilities(answer["probability"])


@must("a choice is one of the given values, each of which has its probability", CREATE)
@pytest.mark.parametrize("values", [["Paris", "Rome", "none"], [True, False], ["true", True]], ids=str)
def test_choice(api: Api, values: list[str | bool]) -> None:
    """A string and a boolean of the same text are two values."""
    (answer,) = answers(api, {**CHOICE, "choices": [{"value": value} for value in values]})
    if answer["type"] != "choice":
        return
    found = sorted((str(type(row["value"])), row["value"]) for row in answer["probabilities"])
    expected = sorted((str(type(value)), value) for value in values)
    assert found == expected, f"expected the values {values}, got {[row['value'] for row in answer['probabilities']]}"
    chosen = (str(type(answer["choice"])), answer["choice"])
    assert chosen in expected, f"expected one of {values}, got {answer['choice']!r}"
    check_probabilities(answer["confidence"], *(row["probability"] for row in answer["probabilities"]))


@must("a score has a probability for each of the given levels", CREATE)
def test_score(api: Api) -> None:
    """With their labels; the score lies among the levels' values."""
    (answer,) = answers(api, SCORE)
    if answer["type"] != "score":
        return
    rows = sorted(answer["probabilities"], key=lambda row: row["value"])
    labels, expected = [row["label"] for row in rows], [level["label"] for level in SCORE["levels"]]
    assert labels == expected, f"expected the levels in their order {expected}, got {labels}"
    low, high = rows[0]["value"], rows[-1]["value"]
    assert low <= answer["score"] <= high, f"expected a score from {low} to {high}, got {answer['score']}"
    check_probabilities(answer["confidence"], *(row["probability"] for row in rows))


@must("usage adds up, and counts the input", CREATE)
def test_usage(api: Api) -> None:
    """More of it for a longer input."""
    short, long = (api.decide([PREDICATE], input=text).ok()["usage"] for text in (TEXT, TEXT * 20))
    for usage in (short, long):
        total = usage["input_tokens"] + usage["output_tokens"]
        assert usage["total_tokens"] == total, f"expected total_tokens {total}, got {usage['total_tokens']}"
    assert short["input_tokens"] < long["input_tokens"], f"expected more than {short['input_tokens']} input tokens"


@must("the input may be messages", CREATE + "#input")
@pytest.mark.parametrize("content", [TEXT, [{"type": "input_text", "text": TEXT}]], ids=["text", "parts"])
def test_messages(api: Api, content: Any) -> None:
    """Their contents text, or parts."""
    answers(api, PREDICATE, input=[{"role": "user", "content": content}])


@must("255 choices may be given", CREATE + "#questions")
def test_many_choices(api: Api) -> None:
    """The most there may be; fewer are an honest limit where the refusal names the questions."""
    values = [f"value {i}" for i in range(255)]
    found = api.decide([{**CHOICE, "choices": [{"value": value} for value in values]}]).offered("questions").ok()
    validate("decision", found)


@must("questions that cannot be asked are refused", CREATE + "#questions")
@pytest.mark.parametrize(
    "questions",
    [
        [],
        [PREDICATE] * 401,
        [{**PREDICATE, "type": "poem"}],
        [{"type": "predicate"}],
        [{**CHOICE, "choices": []}],
        [{**CHOICE, "choices": [{"value": "Paris"}]}],
        [{**CHOICE, "choices": [{"value": "Paris"}] * 2}],
        [{**CHOICE, "choices": [{"value": 5}, {"value": 6}]}],
        "all",
    ],
    ids=["none", "401", "type", "no instructions", "no choices", "one choice", "same choices", "numbers", "text"],
)
def test_bad_questions(api: Api, questions: Any) -> None:
    """1 to 400 questions; 2 to 255 choices, each of them unique."""
    refused(api.decide(questions))


@must("input, model and questions are required", CREATE)
@pytest.mark.parametrize("field", ["input", "model", "questions"])
def test_required(api: Api, field: str) -> None:
    """A server of one model may do without its name."""
    found = api.decide([PREDICATE], **{field: OMIT})
    if field != "model" or found.status != 200:
        refused(found)


def refused(found: Exchange) -> None:
    """With an error of OpenAI's shape."""
    found.refused(400, 422)
