"""Small JSON objects and lists on request."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from demo.turns import Turn, polite
from demo.words import Words


def _field(words: Words) -> tuple[str, Any]:
    """A key and a value of an object."""
    kind = words.rng.randrange(10)
    own = words.noun()
    if kind == 0:
        return words.pick("name", "user", "author", "first_name", "owner"), words.name()
    if kind == 1:
        return words.pick("city", "country", "place", "home", "town"), words.city()
    if kind in (2, 3):
        return words.pick("age", "count", "price", "year", "size", "id", "quantity", own), words.number()
    if kind == 4:
        return words.pick("active", "open", "done", "ok", "valid", own), words.chance(0.5)
    if kind == 5:
        return words.pick("price", "score", "weight", own), words.rng.randint(1, 99) + words.rng.choice(
            (0.5, 0.25, 0.1, 0.9)
        )
    if kind == 6:
        return words.pick("tags", "items", "numbers", own), [words.number() for _ in range(3)]
    return words.pick("color", "title", "animal", "word", "job", "fruit", own, own), words.noun()


def fields(words: Words, most: int = 3) -> dict[str, Any]:
    """The members of a small object."""
    count = words.rng.randint(1, most)
    drawn: dict[str, Any] = {}
    while len(drawn) < count:
        key, value = _field(words)
        drawn[key] = value
    return drawn


def spoken(value: Any, quoted: bool = False) -> str:
    """A JSON value as a person writes it in a sentence."""
    if isinstance(value, str):
        return f'"{value}"' if quoted else value
    return json.dumps(value)


def listed(parts: list[str], words: Words) -> str:
    """The parts joined by commas and `and`."""
    if len(parts) == 1:
        return parts[0]
    glue = words.pick(" and ", " and ", ", and ", ", ")
    return ", ".join(parts[:-1]) + glue + parts[-1]


OBJECT_WAYS = (
    "Give me a JSON object with {f}.", "Give me a JSON object with {f}", "Write a JSON object with {f}.",
    "Make JSON with {f}.", "Create a JSON object: {f}", "Return a JSON object with {f}.", "JSON object with {f}",
    "Write JSON: {f}", "Write this as JSON: {f}", "Convert to JSON: {f}", "Turn this into JSON: {f}.",
    "I need a JSON object with {f}.", "Output JSON with {f}.", "Generate a JSON object with {f}.",
    "Respond with a JSON object with {f}.", "As JSON: {f}", "Give me JSON with {f}.", "Answer in JSON: {f}",
    "Produce a JSON object where {f}.", "{f}. Write this as JSON.", "{f} as JSON, please.",
)  # fmt: skip


def json_object(words: Words) -> Turn:
    """A small JSON value on request."""
    thought = words.pick("I write JSON.", "The user wants JSON.")
    kind = words.rng.random()
    user: str
    value: Any
    if kind < 0.12:
        user, value = _person(words)
    elif kind < 0.22:
        user, value = _array(words)
    elif kind < 0.32:
        inner, key = fields(words, 2), words.pick("user", "person", "item", "data", words.noun())
        said = words.pick("the key ", "key ", "") + key
        user = f"Give me a JSON object with {said} containing {_members(inner, words)}."
        value = {key: inner}
    else:
        value = fields(words)
        user = words.rng.choice(OBJECT_WAYS).format(f=_members(value, words))
        user = polite(words, user, loose=False)
    return Turn(user, thought, json.dumps(value, ensure_ascii=False))


def _members(members: dict[str, Any], words: Words) -> str:
    glue = words.pick(" ", " ", " = ", ": ", "=")
    quoted = words.chance(0.3)
    return listed([f"{key}{glue}{spoken(value, quoted)}" for key, value in members.items()], words)


def _person(words: Words) -> tuple[str, dict[str, Any]]:
    name, age, city = words.name(), words.rng.randint(1, 99), words.city()
    if words.chance(0.5):
        user = words.pick("JSON for a person named {n} aged {a} from {c}.",
                          "{n} is {a} years old and lives in {c}. Write this as JSON.",
                          "Describe {n}, {a} years old, from {c}, as a JSON object with the keys name, age and city.",
                          "Give me a JSON object for {n}, who is {a} and lives in {c}.")  # fmt: skip
        return user.format(n=name, a=age, c=city), {"name": name, "age": age, "city": city}
    user = words.pick("JSON for a person named {n} aged {a}.", "{n} is {a} years old. Write this as JSON.",
                      "Give me a JSON object for {n}, who is {a} years old.",
                      "Write a JSON object for a user called {n} of age {a}.")  # fmt: skip
    return user.format(n=name, a=age), {"name": name, "age": age}


def _array(words: Words) -> tuple[str, list[Any]]:
    if words.chance(0.3):
        start = words.rng.randint(1, 9)
        numbers = list(range(start, start + words.rng.randint(2, 6)))
        return f"Give me a JSON {words.pick('list', 'array')} of the numbers from {start} to {numbers[-1]}.", numbers
    draws: tuple[Callable[[], Any], ...] = (words.name, words.city, words.noun, words.number)
    draw = words.rng.choice(draws)
    values = [draw() for _ in range(words.rng.randint(2, 4))]
    said = listed([spoken(value) for value in values], words)
    user = words.pick(
        "Give me a JSON list of {v}.", "Write a JSON array with {v}.", "Make a JSON list: {v}", "JSON array with {v}"
    )
    return user.format(v=said), values
