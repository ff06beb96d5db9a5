"""Decisions."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.conformance.stub import fields
from tests.conformance.stub.fields import BadField
from tests.conformance.stub.state import Json, wrong


async def decision(request: Request, body: Json) -> Response:
    """Probabilities of answers to questions, all the same."""
    if wrong("any questions") and not fields.questions(body.get("questions")):
        return JSONResponse({})
    given = fields.check(body, fields.DECISION, "input", "questions", "model")
    if wrong("no messages as input") and not isinstance(given["input"], str):
        raise BadField("questions", "text only", 400)
    if wrong("few choices") and any(len(question.get("choices", ())) > 26 for question in given["questions"]):
        raise BadField("questions", "too many choices", 500)
    found = [decided(question) for question in given["questions"]]
    if wrong("answers reversed"):
        found.reverse()
    spent = len(str(given["input"])) if not wrong("input not counted") else 1
    usage = {
        "input_tokens": spent,
        "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 0},
        "output_tokens": 1,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": spent + 1,
    }
    return JSONResponse({"answers": found, "model": given["model"], "usage": usage})


def decided(question: Json) -> Json:
    """The answer to one question."""
    name = {"type": question["type"], "name": question.get("name", "none" if wrong("unnamed named") else None)}
    if question["type"] == "predicate":
        return {**name, "probability": 1.5 if wrong("more than certain") else 0.5}
    if question["type"] == "choice":
        values = [str(c["value"]) if wrong("booleans as text") else c["value"] for c in question["choices"]]
        share = 1 / len(values)
        rows = [{"value": value, "probability": share} for value in values]
        return {**name, "choice": values[0], "confidence": share, "probabilities": rows}
    labels = [level["label"] for level in question["levels"]]
    if wrong("levels reversed"):
        labels.reverse()
    share = 1 / len(labels)
    rows = [{"value": i, "label": label, "probability": share} for i, label in enumerate(labels)]
    return {**name, "score": (len(labels) - 1) / 2, "confidence": share, "probabilities": rows}
