"""Styles that a system prompt sets for every answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from demo import phrases, skills
from demo.turns import Turn
from demo.words import Words

Style = tuple[str, Callable[[Turn], str]]


def _mark(words: Words) -> str:
    if words.chance(0.4):
        return words.pick("over and out", "Sir", "my friend", "boss", "!!!", "🙂", "***", "meow")
    return " ".join(words.noun() for _ in range(words.rng.randint(1, 2)))


def _in_json(turn: Turn) -> str:
    answer: Any = turn.short or turn.answer
    if turn.short.lstrip("-").isdigit():
        answer = int(turn.short)
    return json.dumps({"answer": answer}, ensure_ascii=False)


PROMPTS = {
    "upper": (
        "Answer in upper case.", "Write everything in upper case.", "Always answer in capital letters.",
        "Use only capital letters.", "Answer in UPPER CASE.", "Write in ALL CAPS.", "Uppercase only.",
        "You always shout in capital letters.", "Reply in uppercase only.", "Respond in all caps.",
        "You must answer in uppercase letters.",
    ),
    "lower": (
        "Answer in lower case.", "Write everything in lower case.", "Use only small letters.", "lowercase only",
        "Reply in lowercase only.", "Always answer in lower case letters.", "Never use capital letters.",
        "Respond in all lowercase.", "You must answer in lowercase.",
    ),
    "start": (
        "Start every answer with {m}.", "Begin each answer with {m}.", "Always start with {m}.",
        "Every answer must start with {m}.", "Your answers begin with {m}.", "Start your answers with {m}.",
        "You always start with {m}.", "Put {m} in front of every answer.",
    ),
    "end": (
        "End every answer with {m}.", "Finish each answer with {m}.", "Always end with {m}.",
        "Every answer must end with {m}.", "Your answers end with {m}.", "End your answers with {m}.",
        "Always finish your answer with {m}.", "End every sentence with {m}.", "You always end with {m}.",
        "Add {m} at the end of every answer.",
    ),
    "pirate": (
        "Speak like a pirate.", "You are a pirate.", "Talk like a pirate.", "Answer like a pirate.",
        "Act as a pirate.", "You are a pirate captain.", "Always talk like a pirate.", "Answer in pirate style.",
        "You are a pirate. Answer in pirate style.",
    ),
    "short": (
        "Answer in one word.", "Answer with one word only.", "Use a single word.", "Reply with one word.",
        "One word answers only.", "Give only the result.", "Answer with a single word or number.",
    ),
    "json": (
        'Answer in JSON with the key "answer".', "Reply only in JSON with the key answer.",
        "Always answer as a JSON object with key answer.", 'Respond with JSON: {{"answer": ...}}',
        "Answer only with a JSON object that has the key answer.", "Always respond in JSON with the key answer.",
        'Respond only in JSON, with an "answer" field.',
    ),
}  # fmt: skip


def style(words: Words) -> tuple[str, Style]:
    """The name of a style, its system prompt and what it makes of an answer."""
    kind = words.pick("upper", "lower", "start", "start", "end", "end", "pirate", "short", "json")
    mark = _mark(words)
    said = words.pick(mark, f'"{mark}"', f'"{mark}"', f"'{mark}'") if mark.isalnum() else f'"{mark}"'
    apply: dict[str, Callable[[Turn], str]] = {
        "upper": lambda turn: turn.answer.upper(),
        "lower": lambda turn: turn.answer.lower(),
        "start": lambda turn: f"{mark} {turn.answer}",
        "end": lambda turn: f"{turn.answer} {mark}",
        "pirate": lambda turn: f"Arr, {turn.answer} Ahoy!",
        "short": lambda turn: turn.short,
        "json": _in_json,
    }
    prompt = words.rng.choice(PROMPTS[kind]).format(m=said)
    if words.chance(0.25):
        prompt = f"{words.rng.choice(phrases.PLAIN_SYSTEMS[:8]).rstrip('.')}. {prompt}"
    return kind, (prompt, apply[kind])


def fits(kind: str, turn: Turn) -> bool:
    """Whether the answer can be written in the style."""
    if kind in ("upper", "lower"):
        return turn.fixed and not any(mark in turn.answer for mark in '`"/=')
    if kind == "short":
        return bool(turn.short)
    return '"' not in turn.answer


def fitting_turn(words: Words, kind: str) -> Turn:
    """A turn whose answer can be written in the style."""
    weights = (3, 3, 3 if kind not in ("upper", "lower", "short") else 0, 2, 1, 1)
    while True:
        skill = words.rng.choices(
            (skills.addition, skills.subtraction, skills.repeat, skills.about, skills.small_talk, skills.capital),
            weights,
        )[0]
        turn = skill(words)
        if fits(kind, turn):
            return turn
