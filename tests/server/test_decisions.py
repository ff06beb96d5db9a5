"""Probabilities of given tokens: scores of items, and decisions in two formats."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.decisions.questions import Option, Question, _text
from tests.server.process import ServerProcess, connect, eventually
from tests.tiny import TEMPLATE

SCORING, SYSTEM_ONE, DECISIONS = "/generative_scoring", "/v1/systemone", "/v1/decisions"
TEAM: Any = {"type": "choice", "instructions": "Which team?", "criteria": {"billing": "payments", "shipping": None}}
TONE: Any = {"type": "score", "instructions": {"how": "upset"}, "criteria": ["calm", {"a": 1}, "furious"]}
URGENT: Any = {"type": "noul", "instructions": "Is it urgent?"}
PICK: Any = {"type": "choice", "instructions": "Who?", "choices": [{"value": "true"}, {"value": True}]}
RATE: Any = {
    "type": "score",
    "name": "how bad",
    "instructions": "How bad?",
    "levels": [{"label": "a"}, {"label": "b"}],
}
HOLDS: Any = {"type": "predicate", "name": "it holds", "instructions": "It is broken."}
ids = st.lists(st.integers(0, 319), min_size=1, max_size=8)


def ask(server: ServerProcess, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = server.post(path, body)
    assert answer.status_code == 200, answer.text
    whole: dict[str, Any] = answer.json()
    return whole


def logprobs(server: ServerProcess, path: str, body: dict[str, Any], labels: list[int]) -> list[float]:
    """Of labels at the first token of the answer to an ordinary request."""
    common = {"max_tokens": 1, "temperature": 0, "return_tokens_as_token_ids": True, "logprob_token_ids": labels}
    (choice,) = ask(server, path, body | common)["choices"]
    if "messages" in body:
        found = {top["token"]: top["logprob"] for top in choice["logprobs"]["content"][0]["top_logprobs"]}
    else:
        (found,) = choice["logprobs"]["top_logprobs"]
    return [found[f"token_id:{label}"] for label in labels]


def softmax(values: list[float]) -> list[float]:
    total = sum(map(math.exp, values))
    return [math.exp(value) / total for value in values]


# ---------------------------------------------------------------------- scoring


@given(
    query=ids,
    items=st.lists(ids, min_size=1, max_size=3),
    labels=st.lists(st.integers(0, 319), min_size=1, max_size=4, unique=True),
    among_labels=st.booleans(),
    item_first=st.booleans(),
)
@settings(max_examples=10)
def test_a_score_is_the_first_labels_probability(
    server: ServerProcess,
    query: list[int],
    items: list[list[int]],
    labels: list[int],
    among_labels: bool,
    item_first: bool,
) -> None:
    body = {"query": query, "items": items, "label_token_ids": labels, "item_first": item_first}
    found = ask(server, SCORING, body | {"apply_softmax": among_labels})
    for i, (item, scored) in enumerate(zip(items, found["data"], strict=True)):
        prompt = item + query if item_first else query + item
        values = logprobs(server, "/v1/completions", {"prompt": prompt}, labels)
        expected = softmax(values)[0] if among_labels else math.exp(values[0])
        assert scored == {"index": i, "object": "score", "score": pytest.approx(expected, abs=0.01)}
    num_tokens = sum(len(query) + len(item) for item in items)
    assert found["usage"]["prompt_tokens"] == num_tokens and found["usage"]["completion_tokens"] == len(items)


def test_texts_are_scored_as_their_tokens(server: ServerProcess) -> None:
    query, items = "the quick brown fox", ["jumps over", "東京"]
    tokens = [server.post("/tokenize", {"prompt": text}).json()["tokens"] for text in (query, *items)]
    for extra in ({}, {"item_first": True}, {"add_special_tokens": False}):
        common = {"label_token_ids": [260, 65], "cache_salt": "own", "request_id": "mine"} | extra
        ours = ask(server, SCORING, {"query": query, "items": items} | common)
        theirs = ask(server, SCORING, {"query": tokens[0], "items": tokens[1:]} | common)
        assert ours["id"] == "generative-scoring-mine" and ours["object"] == "list"
        assert [x["score"] for x in ours["data"]] == pytest.approx([x["score"] for x in theirs["data"]], abs=0.01)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"items": ["a", [1]]}, r"items[1]"),
        ({"items": [[1], [999_999]]}, r"items[1]"),
        ({"items": ["a", "fox " * 9000]}, r"items[1]"),
        ({"items": [[1], []], "query": []}, r"items[1]"),
        ({"items": [[5] * 4096]}, r"items[0]"),
        ({"query": "fox " * 90_000}, "query"),
        ({"label_token_ids": [7, 7]}, "label_token_ids"),
        ({"label_token_ids": [999_999]}, "label_token_ids"),
        ({"stream": True}, "stream"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(server: ServerProcess, change: dict[str, Any], param: str) -> None:
    answer = server.post(SCORING, {"query": [3], "items": [[1]], "label_token_ids": [7]} | change)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


# ---------------------------------------------------------------------- decisions


def test_a_decision_is_read_at_the_first_token_of_an_answer(server: ServerProcess) -> None:
    state = {"ticket": "charged twice"}
    found = ask(server, SYSTEM_ONE, {"state": state, "questions": {"team": TEAM, "tone": TONE}})
    assert found["object"] == "structured_decision" and found["id"].startswith("decision-")
    assert set(found) == {"id", "object", "created", "model", "answers", "usage", "diagnostics"}
    options = {
        "team": ("choice", "Which team?", (Option("billing", "payments"), Option("shipping")), "AB"),
        "tone": ("score", '{"how":"upset"}', (Option("calm"), Option('{"a":1}'), Option("furious")), "012"),
    }
    for name, (kind, asked, listed, labels) in options.items():
        answer, told = found["answers"][name], found["diagnostics"][name]
        question = _text(Question(kind, asked, listed, ""))  # type: ignore[arg-type]
        messages = [{"role": "user", "content": f'{{"ticket":"charged twice"}}\n\n{question}'}]
        label_ids = [server.post("/tokenize", {"prompt": label}).json()["tokens"][0] for label in labels]
        values = logprobs(server, "/v1/chat/completions", {"messages": messages}, label_ids)
        shares = softmax(values)
        assert list(answer["probabilities"].values()) == pytest.approx(shares, abs=0.01)
        assert told["label_mass"] == pytest.approx(sum(map(math.exp, values)), rel=0.05)
        assert answer["confidence"] == pytest.approx(math.exp(max(values)), rel=0.05)
        if kind == "score":
            assert answer["score"] == pytest.approx(shares[1] + 2 * shares[2], abs=0.02)
            assert answer["legend"] == {"0": "calm", "1": {"a": 1}, "2": "furious"}
        else:
            assert answer["choice"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert found["usage"]["output_tokens"] == 2


def test_both_spellings_of_yes_count(bundled: ServerProcess) -> None:
    """Of the bundled model's tokens ``yes`` is none, but ``Yes`` and both spellings of no are."""
    found = ask(bundled, SYSTEM_ONE, {"state": "2 + 2 = 4", "questions": {"true": URGENT}})["answers"]["true"]
    assert found["type"] == "noul" and found["noul"] == found["probabilities"]["yes"]
    assert sum(found["probabilities"].values()) == pytest.approx(1)


def test_the_sdk_asks_decisions(bundled: ServerProcess) -> None:
    client = openai.OpenAI(base_url=bundled.url + "/v1", api_key="none", max_retries=0)
    asked = [HOLDS, PICK, RATE]
    made = client.decisions.create(model="org/tiny", input="It arrived broken.", questions=asked)
    holds, pick, rate = made.answers
    assert holds.type == "predicate" and holds.name == "it holds" and 0 <= holds.probability <= 1
    assert pick.type == "choice" and pick.name is None and pick.choice in ("true", True)
    assert [(type(p.value), p.value) for p in pick.probabilities] == [(str, "true"), (bool, True)]
    assert rate.type == "score" and rate.score == pytest.approx(rate.probabilities[1].probability)
    assert [(p.value, p.label) for p in rate.probabilities] == [(0, "a"), (1, "b")]
    assert made.usage.total_tokens == made.usage.input_tokens + 3 and made.model == "org/tiny"


def test_an_input_may_be_a_conversation(server: ServerProcess) -> None:
    text = "It arrived broken."
    plain = ask(server, DECISIONS, {"input": text, "questions": [PICK]})
    for content in (text, [{"type": "input_text", "text": text, "prompt_cache_breakpoint": {"mode": "explicit"}}]):
        items = [{"role": "user", "content": content}]
        assert ask(server, DECISIONS, {"input": items, "questions": [PICK]})["answers"] == plain["answers"]
    items = [
        {"role": "developer", "content": "Be strict."},
        {"role": "user", "content": [{"type": "input_json", "data": {"order": 7}}]},
        {"type": "function_call", "call_id": "c", "name": "look_up", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "broken"},
        {"role": "assistant", "content": "I see.", "phase": "final_answer"},
    ]
    assert ask(server, DECISIONS, {"input": items, "questions": [PICK]})["answers"] != plain["answers"]


def test_questions_share_what_they_are_about(bundled: ServerProcess) -> None:
    state = " ".join(f"word{i}" for i in range(200))
    usage = ask(bundled, DECISIONS, {"input": state, "questions": [PICK] * 5})["usage"]
    assert usage["input_tokens_details"]["cached_tokens"] > 0.6 * usage["input_tokens"]


CRITERIA = "questions.q.criteria"


@pytest.mark.parametrize(
    ("question", "param"),
    [
        (URGENT, "questions.q"),  # neither yes nor Yes is one of the tiny model's tokens
        (TEAM | {"criteria": {}}, CRITERIA),
        (TEAM | {"criteria": {str(i): None for i in range(27)}}, CRITERIA),
        (TEAM | {"criteria": ["a", "b"]}, CRITERIA),
        (TONE | {"criteria": ["one"]}, CRITERIA),
        (TONE | {"criteria": ["one"] * 11}, CRITERIA),
        (URGENT | {"criteria": {"maybe": "x"}}, CRITERIA),
        (TEAM | {"labels": ["x"]}, "questions[...].labels"),
        (TEAM | {"type": "box"}, "questions[...].type"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(server: ServerProcess, question: Any, param: str) -> None:
    answer = server.post(SYSTEM_ONE, {"state": "x", "questions": {"q": question}})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param.replace("[...]", "")


def test_a_predicate_needs_no_word_for_yes(server: ServerProcess) -> None:
    """Where yes and no are several tokens, letters stand for them."""
    answer = server.post("/v1/decisions", {"input": "x", "questions": [HOLDS, HOLDS]}).json()["answers"]
    assert 0 < answer[0]["probability"] < 1 and answer[0]["probability"] == pytest.approx(answer[1]["probability"])


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"questions": [PICK] * 401}, "questions"),
        ({"questions": [PICK, PICK | {"choices": [{"value": "a"}] * 2}]}, "questions[1].choices"),
        ({"questions": [PICK | {"choices": [{"value": str(i)} for i in range(27)]}]}, "questions[0].choices"),
        ({"questions": [RATE | {"levels": [{"label": "a"}]}]}, "questions[0].levels"),
        ({"questions": [{"type": "box", "instructions": "x"}]}, "questions[0].type"),
        ({"input": []}, "input"),
        ({"input": "fox " * 5000}, "input"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0]",
        ),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"id": "item_1"}]}, "input[0].id"),
        ({"prompt_cache_options": {"mode": "explicit"}}, "prompt_cache_options"),
        ({"stream": True}, "stream"),
    ],
)
def test_a_decision_that_cannot_be_made_is_refused(server: ServerProcess, change: dict[str, Any], param: str) -> None:
    answer = server.post(DECISIONS, {"input": "x", "questions": [PICK]} | change)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(param)


@pytest.fixture(scope="module")
def thinking(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose template lets answers begin with thoughts, unless told otherwise; for few prompt tokens."""
    template = tmp_path_factory.mktemp("template") / "template.jinja"
    begun = "{% if enable_thinking %}<think>\n{% endif %}{% if false %}</think>{% endif %}"
    template.write_text(TEMPLATE.replace("assistant\n{% endif %}", "assistant\n" + begun + "{% endif %}"))
    limits = ("--max-num-queued-tokens", "1000", "--max-num-queued-reqs", "50")
    with ServerProcess(model_dir, "--chat-template", str(template), *limits) as running:
        yield running


def test_an_answer_must_not_begin_with_thoughts(thinking: ServerProcess) -> None:
    body = {"state": "x", "questions": {"team": TEAM}}
    assert thinking.post(SYSTEM_ONE, body).status_code == 200
    refused = thinking.post(SYSTEM_ONE, body | {"chat_template_kwargs": {"enable_thinking": True}})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "chat_template_kwargs"


def test_prompts_of_all_questions_are_limited_together(thinking: ServerProcess) -> None:
    body = {"input": "fox " * 100, "questions": [PICK] * 40}
    refused = thinking.post(DECISIONS, body)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "input"
    refused = thinking.post(DECISIONS, body | {"questions": [PICK] * 60})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "questions"
    assert thinking.post(DECISIONS, body | {"questions": [PICK]}).status_code == 200


def test_clients_that_leave_take_their_reads_along(server: ServerProcess) -> None:
    bodies: list[tuple[str, Any]] = [
        (SCORING, {"query": "the", "items": ["fox " * 500] * 100, "label_token_ids": [5]}),
        (SYSTEM_ONE, {"state": "fox " * 500, "questions": {str(i): TEAM for i in range(64)}}),
        (DECISIONS, {"input": "fox " * 500, "questions": [PICK] * 200}),
    ]
    for path, body in bodies:
        connect(server, path, body).close()
    eventually(server.is_idle, 20)
    for path, body in bodies:
        small = {"items": ["a"]} if path == SCORING else {}
        assert server.post(path, body | small).status_code == 200
