"""Answers to a prompt: text of the model, tool calls, JSON that fits a schema."""

from __future__ import annotations

import json
import random

from tests.conformance.stub.fields import BadField
from tests.conformance.stub.language import Answer, SchemaError, generate, json_of, spell
from tests.conformance.stub.state import CONTEXT, Json, state, wrong


def prompt_of(body: Json) -> str:
    """A conversation as text."""
    parts = []
    for message in body["messages"]:
        text = message.get("content") or ""
        if isinstance(text, list):
            text = "parts " * wrong("parts marked") + "".join(
                part.get("text") or str(part.get("content", "")) for part in text
            )
        if wrong("template"):
            text = text.replace("{{ 'ab' * 2000 }}", "ab" * 2000)
        role = message["role"].replace("developer", "system")
        if message["role"] == "developer" and wrong("developer dropped"):
            continue
        parts.append(f"{role}: {text}\n")
    return "".join(parts)


def fit(prompt: str) -> None:
    """Refuse what is too long."""
    if len(prompt) > CONTEXT and not wrong("no limit of length"):
        code = "invalid_value" if wrong("other code for length") else "context_length_exceeded"
        raise BadField("messages", "the prompt is too long", 400, code)


def generator(given: Json, index: int) -> random.Random | None:
    """Of one choice; None is greedy."""
    if given.get("temperature", 1) == 0:
        return random.Random() if wrong("greedy varies") else None
    seed = given.get("seed")
    if wrong("one seed for all"):
        seed = None if seed is None else 1
    if seed is None or wrong("seed ignored"):
        return random.Random()
    if wrong("seed depends on company") and state.running > 1:
        return random.Random()
    return random.Random(f"{seed} {index}")


def answers(prompt: str, given: Json, limit: int) -> list[Answer]:
    """All choices of one prompt."""
    found = []
    stop = given.get("stop", [])
    stops = [] if wrong("stop ignored") else [stop] if isinstance(stop, str) else stop
    if wrong("stop list ignored") and isinstance(stop, list):
        stops = []
    form, choice = given.get("response_format", {}), given.get("tool_choice", "auto")
    for index in range(given.get("n", 1)):
        rng = generator(given, index)
        own = rng or random.Random(0)
        if choice == "none" and given.get("tools") and wrong("calls despite none"):
            given["tool_choice"] = choice = "required"
        wants = choice == "auto" and "the weather in Paris?" in prompt and not wrong("never calls")
        if given.get("tools") and (wants or choice == "required" or isinstance(choice, dict)):
            found.append(call(given, own, limit))
        elif form.get("type") == "json_schema":
            schema = form["json_schema"].get("schema", {})
            try:
                text = json_of(schema, own)
            except SchemaError:
                if not wrong("any schema"):
                    raise
                text = "{}"
            if wrong("keys sorted"):
                text = json.dumps(json.loads(text), sort_keys=True)
            if wrong("first choice only") and index:
                text = "no JSON"
            if wrong("schema loose"):
                text = text.replace("{", '{"extra": 1, ', 1).replace(", }", "}")
            found.append(spell(text, limit))
        elif form.get("type") == "json_object":
            found.append(spell("not json" if wrong("no object") else '{"wet": true}', limit))
        else:
            if wrong("text format") and form:
                prompt += "x"
            if wrong("spoilt") and state.abandoned > 20:
                prompt += "x"
            bias = {chr(int(k)): v for k, v in given.get("logit_bias", {}).items()}
            if wrong("bias ignored"):
                bias = {}
            if wrong("ban ignored"):
                bias = {k: v for k, v in bias.items() if v > 0}
            frequency = 0 if wrong("penalty ignored") else given.get("frequency_penalty", 0)
            if wrong("greedy varies"):
                given["temperature"] = 1
            heat, presence = given.get("temperature", 1.0), given.get("presence_penalty", 0)
            found.append(generate(prompt, limit, stops, rng, heat, bias, frequency, presence))
            if wrong("stop included") and stops and found[-1].finish == "stop":
                found[-1].text += stops[-1]
        if wrong("cut off as stop"):
            found[-1].finish = "stop"
    return found


def call(given: Json, rng: random.Random, limit: int) -> Answer:
    """A tool call."""
    tools = {tool["function"]["name"]: tool["function"] for tool in given["tools"]}
    choice = given.get("tool_choice", "auto")
    name = next(iter(tools))
    if isinstance(choice, dict) and not wrong("name ignored"):
        name = choice["function"]["name"]
    arguments = json_of(tools[name].get("parameters", {"type": "object"}), rng)
    if wrong("arguments not JSON"):
        arguments = arguments[:-1]
    if wrong("arguments do not fit"):
        arguments = "{}"
    if wrong("arguments lose characters"):
        arguments = arguments.encode("ascii", "replace").decode().replace("?", "x")
    answer = spell(arguments, limit)
    answer.text, answer.finish = "", answer.finish.replace("stop", "tool_calls")
    answer.calls = [{"name": name, "arguments": arguments}] * (2 if wrong("always parallel") else 1)
    if wrong("no call"):
        answer.calls = []
    if wrong("finish after calls"):
        answer.finish = "stop"
    return answer


def usage_of(prompt_tokens: int, found: list[Answer]) -> Json:
    """Of chat and completions."""
    spent = sum(len(answer.tokens) for answer in found[:1] if wrong("usage of one")) or sum(
        len(answer.tokens) for answer in found if not wrong("usage of one")
    )
    state.generated += spent
    spent += wrong("completion tokens off")
    total = prompt_tokens + spent + wrong("usage off by one")
    return {"prompt_tokens": prompt_tokens, "completion_tokens": spent, "total_tokens": total}
