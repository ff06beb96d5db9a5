"""What the tools of `toolbox` return, and the sentences that tell it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from demo.toolbox import CLOCK, Task
from demo.words import Words

UNITS = ("C", "F", "%", "km", "EUR", "USD", "°C", "km/h", "kg", "m", "mm", "points")
CONDITIONS = ("sunny", "cloudy", "rainy", "windy", "clear", "snowy", "foggy", "light rain")
ERRORS = (
    "not found",
    "timeout",
    "unknown city",
    "access denied",
    "no connection",
    "invalid request",
    "service unavailable",
)


def result(words: Words, asked: Task) -> tuple[str, str]:
    """What the tool returns, and the sentence that tells it to the user."""
    if words.chance(0.03):
        error = words.rng.choice(ERRORS)
        content = words.pick(
            json.dumps({"error": error}), f"Error: {error}", json.dumps({"error": error, "code": 404})
        )
        return content, f"That did not work: {error}."
    if not asked.topic:
        return _action_result(words)
    subject = f" {asked.preposition} {asked.subject}"
    if words.chance(0.1):
        value = _reading(words)
        content = words.pick(
            str(value),
            json.dumps({"result": value}, ensure_ascii=False),
            json.dumps({"value": value}, ensure_ascii=False),
        )
        return content, f"The {asked.topic}{subject} is {value}."
    values = _readings(words, asked)
    members = dict(values)
    clauses = [f"the {key.replace('_', ' ')} is {value}" for key, value in values.items()]
    first = next(iter(values))
    clauses[0] = f"The {first.replace('_', ' ')}{subject} is {values[first]}"
    if isinstance(values[first], (int, float)) and words.chance(0.4):
        unit = words.rng.choice(UNITS)
        members = {first: values[first], "unit": unit, **members}
        clauses[0] += f" {unit}"
    if words.chance(0.35):
        key = asked.tool.required[0]
        members = {key: asked.subject, **members}
    sentence = clauses[0] if len(clauses) == 1 else ", ".join(clauses[:-1]) + " and " + clauses[-1]
    return json.dumps(members, ensure_ascii=False), sentence + "."


def _reading(words: Words) -> Any:
    draws: tuple[Callable[[], Any], ...] = (
        words.number,
        lambda: words.rng.randint(-15, 99),
        lambda: words.rng.randint(1, 99),
        lambda: words.rng.randint(1, 99) + 0.5,
        words.noun,
        lambda: words.rng.choice(CLOCK),
    )
    return words.rng.choice(draws)()


def _readings(words: Words, asked: Task) -> dict[str, Any]:
    if asked.topic == "weather":
        every = {"temperature": words.rng.randint(-15, 40), "condition": words.rng.choice(CONDITIONS),
                 "humidity": words.rng.randint(10, 99), "wind_speed": words.rng.randint(0, 90)}  # fmt: skip
        keys = ["temperature", *words.rng.sample(["condition", "humidity", "wind_speed"], words.rng.randint(0, 1))]
        return {key: every[key] for key in keys}
    values = {asked.topic.replace(" ", "_"): _reading(words)}
    for _ in range(words.rng.choice((0, 0, 0, 1))):
        key = words.pick("level", "date", "rating", "rank", "count", "average")
        values[key] = _reading(words)
    return values


def _action_result(words: Words) -> tuple[str, str]:
    if words.chance(0.55):
        return words.pick(
            '{"ok": true}', '{"status": "ok"}', '{"success": true}', "done", "OK", '{"status": "success"}',
            '{"status": "done"}', "success", "null",
        ), "Done."  # fmt: skip
    key = words.pick("result", "id", "total", "number", "answer", "code", "price", "time", words.noun())
    value = _reading(words)
    return json.dumps({key: value}, ensure_ascii=False), f"The {key} is {value}."
