"""A model for the stub server: every character is a token, and chances follow from the prompt."""

from __future__ import annotations

import hashlib
import json
import math
import random
from dataclasses import dataclass, field
from typing import Any

from tests.conformance.stub.state import wrong

ALPHABET = "abcdefghijklmnopqrstuvwxyz ABCDEFGH0123456789é東🎉\n,."
LENGTH = 40  # tokens until an answer ends by itself
SUPPORTED = {
    "type",
    "properties",
    "required",
    "additionalProperties",
    "enum",
    "const",
    "items",
    "minItems",
    "maxItems",
}
SUPPORTED |= {"anyOf", "$ref", "$defs", "description", "title", "strict", "name"}


class SchemaError(ValueError):
    """A schema that cannot be followed."""


@dataclass
class Token:
    """A sampled token and the likeliest ones, best first, with log-probabilities."""

    text: str
    logprob: float
    top: list[tuple[str, float]]


@dataclass
class Answer:
    """One choice."""

    tokens: list[Token] = field(default_factory=list)
    finish: str = "stop"
    text: str = ""
    calls: list[dict[str, str]] = field(default_factory=list)  # name, arguments


def chances(prompt: str, position: int) -> list[tuple[str, float]]:
    """The tokens that may follow, best first; two prompts or places have nothing in common."""
    seed = hashlib.sha256(f"{position} {prompt}".encode()).digest()
    characters = random.Random(seed).sample(ALPHABET, 30)
    weights = [0.6**i for i in range(30)]
    return [(c, math.log(w / sum(weights))) for c, w in zip(characters, weights, strict=True)]


def generate(
    prompt: str,
    limit: int,
    stops: list[str],
    rng: random.Random | None,
    temperature: float = 1.0,
    bias: dict[str, float] | None = None,
    frequency: float = 0.0,
    presence: float = 0.0,
) -> Answer:
    """One answer; greedy without ``rng``."""
    answer = Answer(finish="length")
    counts: dict[str, int] = {}
    for position in range(min(limit, 10 * LENGTH)):
        if position >= LENGTH and not bias:
            answer.finish = "stop"
            break
        options = chances(prompt, position)
        score = {c: logprob for c, logprob in options}
        for c, value in (bias or {}).items():
            score[c] = score.get(c, -30.0) + value
        for c, count in counts.items():
            if c in score:
                score[c] -= frequency * count + presence
        if rng is None or temperature == 0:
            best = max(score, key=lambda c: score[c])
        else:
            highest = max(score.values())
            weights = [math.exp((value - highest) / temperature) for value in score.values()]
            best = rng.choices(list(score), weights)[0]
        counts[best] = counts.get(best, 0) + 1
        answer.tokens.append(Token(best, dict(options).get(best, -30.0), options[:20]))
        answer.text += best
        if found := [stop for stop in stops if stop in answer.text]:
            cut = min(answer.text.find(stop) for stop in found)
            answer.text, answer.finish = answer.text[:cut], "stop"
            break
    return answer


def spell(text: str, limit: int) -> Answer:
    """An answer whose text is given, as a grammar gives it."""
    shown = text[:limit]
    tokens = [Token(c, -0.1, [(c, -0.1)]) for c in shown]
    return Answer(tokens, "stop" if len(text) <= limit else "length", shown)


def value_of(schema: Any, rng: random.Random, root: Any = None, depth: int = 0) -> Any:
    """Some value that fits a schema."""
    root = schema if root is None else root
    if not isinstance(schema, dict) or depth > 50:
        raise SchemaError("the schema is not one that can be followed")
    if (unknown := set(schema) - SUPPORTED) and not wrong("keywords ignored"):
        raise SchemaError(f"{min(unknown)} is not supported")
    if "$ref" in schema:
        place = root
        for part in schema["$ref"].removeprefix("#").strip("/").split("/"):
            if part and part not in place:
                raise SchemaError("a $ref leads nowhere")
            place = place[part] if part else place
        return value_of(place, rng, root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if "anyOf" in schema:
        return value_of(rng.choice(schema["anyOf"]), rng, root, depth + 1)
    kind = schema.get("type")
    match rng.choice(kind) if isinstance(kind, list) else kind:
        case "object":
            properties = schema.get("properties", {})
            if not isinstance(properties, dict):
                raise SchemaError("properties must be an object")
            return {name: value_of(s, rng, root, depth + 1) for name, s in properties.items()}
        case "array":
            number = rng.randint(schema.get("minItems", 0), schema.get("maxItems", 2))
            return [value_of(schema["items"], rng, root, depth + 1) for _ in range(number)]
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
        case "string":
            return rng.choice(["a", "some text", ""])
        case "integer" | "number":
            return rng.randint(0, 9)
    raise SchemaError("type is not one of JSON's")


def json_of(schema: Any, rng: random.Random) -> str:
    """The same as JSON."""
    return json.dumps(value_of(schema, rng), ensure_ascii=False)
