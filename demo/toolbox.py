"""Tools that never existed, questions that need them, and what they answer.

Two kinds: a lookup (the price of something, the weather in a place) and an action (set a timer). Both are
drawn from patterns, so that the model learns to read a schema rather than to know a tool.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from demo.words import Words


@dataclass(frozen=True)
class Tool:
    """A function as a client describes it. `properties` maps a parameter to its JSON schema."""

    name: str
    description: str
    properties: dict[str, dict[str, Any]]
    required: tuple[str, ...]

    def schema(self, words: Words) -> dict[str, Any]:
        """The tool in OpenAI's format, with the small differences between clients."""
        parameters: dict[str, Any] = {"type": "object", "properties": self.properties}
        if self.required or words.chance(0.5):
            parameters["required"] = list(self.required)
        if words.chance(0.1):
            parameters["additionalProperties"] = False
        function: dict[str, Any] = {"name": self.name}
        if self.description:
            function["description"] = self.description
        function["parameters"] = parameters
        if words.chance(0.05):
            function["strict"] = True
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Task:
    """A question, the call that it needs, and what is needed to speak of its result.

    `topic` and `subject` are those of a lookup, and `preposition` stands between them in the question; an action
    has an empty topic. `place` says that the subject is a place.
    """

    tool: Tool
    arguments: dict[str, Any]
    question: str
    topic: str = ""
    subject: str = ""
    place: bool = False
    preposition: str = "of"

    def call(self, number: int = 0) -> dict[str, Any]:
        """The call as it stands in an assistant message."""
        function = {"name": self.tool.name, "arguments": self.arguments}
        return {"id": f"call_{number}", "type": "function", "function": function}

    def about(self, subject: str) -> Task:
        """The same lookup for another subject."""
        first = self.tool.required[0]
        return replace(self, arguments={**self.arguments, first: subject}, subject=subject)


PLACE_KEYS = ("city", "location", "place", "town", "destination")
THING_KEYS = ("item", "product", "name", "id", "symbol", "title", "query", "key")
PERSON_KEYS = ("name", "person", "user", "customer", "employee")
WAYS = (
    "What is the {t} {p} {s}?", "What is the {t} {p} {s}?", "What's the {t} {p} {s}?", "Tell me the {t} {p} {s}.",
    "{t} {p} {s}?", "Get the {t} {p} {s}.", "Can you check the {t} {p} {s}?", "Check the {t} {p} {s}.",
    "I need the {t} {p} {s}.", "{t} {p} {s}", "How is the {t} {p} {s}?", "Do you know the {t} {p} {s}?",
    "Find the {t} {p} {s}.", "Look up the {t} {p} {s}.", "Show me the {t} {p} {s}.",
    "What is the current {t} {p} {s}?", "Please give me the {t} {p} {s}.", "Could you find the {t} {p} {s}?",
    "what is the {t} {p} {s}", "What about the {t} {p} {s}?", "Give me the {t} {p} {s}.",
)  # fmt: skip
WEATHER_WAYS = (
    "How is the weather in {s}?", "What's the weather like in {s}?", "Weather in {s}?", "Is it raining in {s}?",
    "Is it cold in {s}?", "Will it rain in {s}?", "Is it sunny in {s}?", "How warm is it in {s}?",
    "What is the weather like in {s} today?", "What's the weather in {s}?", "What is the weather in {s} right now?",
    "Do I need an umbrella in {s}?",
)  # fmt: skip
TIME_WAYS = (
    "What time is it in {s}?",
    "Tell me the time in {s}.",
    "What is the time in {s}?",
    "What's the time in {s} now?",
)


def lookup(words: Words) -> Task:
    """A task that asks a tool for the topic of a subject."""
    topic = words.pick("weather", "time", "price") if not words.held_out and words.chance(0.25) else words.topic()
    kind = "place" if topic in ("weather", "time") else words.pick("place", "place", "place", "thing", "person")
    key, subject = _subject(words, kind)
    name = _lookup_name(words, topic)
    description = words.pick(
        f"Get the {topic} {'in' if kind == 'place' else 'of'} a {key}.", f"Returns the {topic}.",
        f"Look up the {topic} for a {key}", f"Get {topic}", f"Get the current {topic}.",
        f"Find the {topic} of the given {key}.", f"{topic.capitalize()} by {key}.", "",
        f"Get the current {topic} in a given {key}", f"Get the current {topic} for a given {key}.",
        f"This tool returns the {topic}.", f"Useful to find the {topic} of a {key}.",
    )  # fmt: skip
    properties: dict[str, dict[str, Any]] = {key: {"type": "string"}}
    if words.chance(0.3):
        properties[key]["description"] = words.pick(
            f"The {key}",
            f"{key} name",
            f"Name of the {key}",
            f"The {key}, e.g. {_subject(words, kind)[1]}",
            f"The {key} to look up",
            "City and country" if kind == "place" else f"A {key}",
        )
    question, preposition = _lookup_question(words, topic, subject, kind == "place")
    arguments: dict[str, Any] = {key: subject}
    required = [key]
    if words.chance(0.12):
        option, schema, value, said = _option(words)
        properties[option] = schema
        if words.chance(0.5):
            question = question.rstrip("?.") + said + question[len(question.rstrip("?.")) :]
            arguments[option] = value
            if words.chance(0.3):
                required.append(option)
    tool = Tool(name, description, properties, tuple(required))
    return Task(tool, arguments, question, topic, subject, kind == "place", preposition)


def again(words: Words, task: Task) -> Task:
    """The same lookup asked anew, of another subject and without options; an action stays as it is."""
    if not task.topic or len(task.tool.required) != 1:
        return task
    key = task.tool.required[0]
    subject = words.city() if task.place else (words.name() if key in PERSON_KEYS else words.noun())
    question, preposition = _lookup_question(words, task.topic, subject, task.place)
    return Task(task.tool, {key: subject}, question, task.topic, subject, task.place, preposition)


def _subject(words: Words, kind: str) -> tuple[str, str]:
    """A parameter's name and a value. Names that say nothing of the value make the model read the schema."""
    key, subject = _fitting_subject(words, kind)
    return (words.noun() if not words.held_out and words.chance(0.35) else key), subject


def _fitting_subject(words: Words, kind: str) -> tuple[str, str]:
    if kind == "place":
        city = words.city()
        if not words.held_out and words.chance(0.06):
            city += words.pick(
                ", CA", ", France", ", NY", ", UK", ", Germany", f", {words.invented(1, 3).capitalize()}"
            )
        return words.rng.choice(PLACE_KEYS), city
    if kind == "person":
        return words.rng.choice(PERSON_KEYS), words.name()
    return words.rng.choice(THING_KEYS), words.noun()


def _lookup_name(words: Words, topic: str) -> str:
    snake = topic.replace(" ", "_")
    return words.pick(f"get_{snake}", f"get_{snake}", f"get_{snake}", snake, f"find_{snake}", f"lookup_{snake}",
                      f"check_{snake}", f"get_current_{snake}", f"fetch_{snake}")  # fmt: skip


def _lookup_question(words: Words, topic: str, subject: str, place: bool) -> tuple[str, str]:
    """The question, and the preposition between topic and subject."""
    if topic == "weather" and words.chance(0.7):
        return words.rng.choice(WEATHER_WAYS).format(s=subject), "in"
    if topic == "time" and words.chance(0.7):
        return words.rng.choice(TIME_WAYS).format(s=subject), "in"
    preposition = words.pick("in", "in", "for", "of") if place else words.pick("of", "for")
    question = words.rng.choice(WAYS).format(t=topic, p=preposition, s=subject)
    return question[0].upper() + question[1:] if words.chance(0.6) else question, preposition


def _option(words: Words) -> tuple[str, dict[str, Any], Any, str]:
    """An optional parameter: its name, its schema, a value and how the question mentions it."""
    kind = words.rng.randrange(3)
    if kind == 0:
        units = words.rng.choice((["celsius", "fahrenheit"], ["C", "F"], ["metric", "imperial"], ["km", "miles"]))
        unit = words.rng.choice(units)
        return "unit", {"type": "string", "enum": units}, unit, f" in {unit}"
    if kind == 1:
        day = words.pick("today", "tomorrow", "Monday", "Friday", "Sunday", "next week", "2026-05-01")
        return (
            words.pick("date", "day", "when"),
            {"type": "string"},
            day,
            words.pick(f" for {day}", f" on {day}", f" {day}"),
        )
    days = words.rng.randint(2, 14)
    return "days", {"type": "integer"}, days, f" for {days} days"


ROOMS = ("kitchen", "bedroom", "living room", "office", "bathroom", "garage", "garden", "hall")
LANGUAGES = ("French", "German", "Spanish", "Italian", "Polish", "Japanese", "Dutch", "Greek")
CURRENCIES = ("EUR", "USD", "GBP", "JPY", "CHF", "SEK")
CLOCK = ("7:00", "06:30", "8 am", "18:45", "noon", "9:15", "5 pm", "22:00")

ACTIONS: tuple[tuple[tuple[str, ...], str, dict[str, str], tuple[str, ...]], ...] = (
    (("set_timer", "start_timer", "timer"), "Start a timer.", {"minutes": "integer"},
     ("Set a timer for {minutes} minutes.", "Start a timer of {minutes} minutes",
      "Timer for {minutes} minutes, please.")),
    (("set_alarm", "alarm"), "Set an alarm.", {"time": "clock"},
     ("Wake me up at {time}.", "Set an alarm for {time}.")),
    (("send_email", "email"), "Send an email.", {"to": "name", "subject": "text"},
     ("Send an email to {to} with the subject {subject}", 'Write an email to {to} with subject "{subject}".')),
    (("send_message", "message", "text"), "Send a message to a person.", {"to": "name", "text": "text"},
     ('Send "{text}" to {to}.', 'Send {to} the message "{text}".', 'Tell {to} "{text}".', "Message {to}: {text}")),
    (("search", "web_search", "search_web", "google"), "Search the web.", {"query": "text"},
     ("Search for {query}", "Search the web for {query}", 'Search "{query}".', "Google {query}",
      "Find information about {query}")),
    (("translate", "translate_text"), "Translate a text.", {"text": "text", "language": "language"},
     ('Translate "{text}" into {language}.', 'Translate "{text}" to {language}.', 'What is "{text}" in {language}?')),
    (("calculate", "calculator", "evaluate"), "Evaluate an arithmetic expression.", {"expression": "expression"},
     ("What is {expression}?", "Calculate {expression}.", "Compute {expression}", "How much is {expression}?")),
    (("add", "add_numbers", "sum"), "Add two numbers.", {"a": "integer", "b": "integer"},
     ("Add {a} and {b}.", "What is {a} plus {b}?", "What is {a} + {b}?", "Sum of {a} and {b}?")),
    (("turn_on_light", "light_on"), "Turn on the light in a room.", {"room": "room"},
     ("Turn on the light in the {room}.", "Switch on the {room} light.", "Light on in the {room}, please.")),
    (("set_light", "switch_light"), "Switch a light.", {"room": "room", "on": "switch"},
     ("Turn the light in the {room} {on}.",)),
    (("play_music", "play_song", "play"), "Play a song.", {"song": "text"},
     ("Play {song}", 'Play the song "{song}".')),
    (("convert_currency", "convert"), "Convert money.", {"amount": "integer", "from": "currency", "to": "currency"},
     ("Convert {amount} {from} to {to}.", "How much is {amount} {from} in {to}?",
      "What are {amount} {from} in {to}?")),
    (("book_table", "reserve_table"), "Book a table.", {"restaurant": "place", "people": "integer"},
     ("Book a table for {people} at {restaurant}.", "Reserve a table at {restaurant} for {people} people.")),
    (("set_temperature", "thermostat"), "Set the temperature of a room.", {"room": "room", "degrees": "number"},
     ("Set the {room} to {degrees} degrees.", "Make the {room} {degrees} degrees warm.")),
    (("random_number", "roll"), "Draw a random number.", {"min": "integer", "max": "integer"},
     ("Give me a random number from {min} to {max}.", "Pick a number between {min} and {max}.")),
    (("add_to_cart", "add_item", "order"), "Put an item into the cart.", {"item": "noun", "quantity": "integer"},
     ("Add {quantity} {item} to my cart.", "Order {quantity} {item}.", "I want {quantity} {item}.")),
    (("create_note", "note", "save_note"), "Save a note.", {"text": "text"},
     ("Note: {text}", 'Save the note "{text}".')),
    (("book_flight", "find_flight"), "Find a flight.", {"from": "place", "to": "place"},
     ("Find a flight from {from} to {to}.", "Book a flight from {from} to {to}.",
      "I want to fly from {from} to {to}.")),
    (("get_time", "current_time", "now"), "Get the current time.", {},
     ("What time is it?", "Tell me the time.", "What is the time?")),
    (("get_date", "today"), "Get the date of today.", {}, ("What is today's date?", "What day is it?",
                                                           "Which date is today?")),
)  # fmt: skip
VERBS = (
    "open", "close", "create", "delete", "update", "paint", "move", "start", "stop", "book", "print", "lock", "send",
    "buy", "sell", "clean", "check", "count", "build", "scan", "rename", "archive", "share", "wash", "repair",
    "cancel", "order", "rent",
)  # fmt: skip


def action(words: Words) -> Task:
    """A task that asks a tool to do something."""
    if words.held_out or words.chance(0.55):
        return _invented_action(words)
    names, description, kinds, ways = words.rng.choice(ACTIONS)
    arguments = {key: _value(words, kind) for key, kind in kinds.items()}
    said = {key: ("on" if value else "off") if kinds[key] == "switch" else value for key, value in arguments.items()}
    properties = {key: _schema(kind) for key, kind in kinds.items()}
    tool = Tool(words.rng.choice(names), description if words.chance(0.85) else "", properties, tuple(kinds))
    return Task(tool, arguments, words.rng.choice(ways).format(**said))


def _invented_action(words: Words) -> Task:
    verb, noun = words.rng.choice(VERBS), words.noun()
    kinds: dict[str, str] = {}
    for _ in range(words.rng.choice((0, 1, 1, 2))):
        key, kind = words.rng.choice((("color", "color"), ("count", "integer"), ("size", "size"), ("owner", "name"),
                                      ("city", "place"),
                                      ("urgent", "boolean"), ("label", "noun"), ("price", "number"),
                                      ("amount", "integer"),
                                      ("title", "noun"), (words.noun(), "noun")))  # fmt: skip
        kinds[key] = kind
    arguments = {key: _value(words, kind) for key, kind in kinds.items()}
    name = f"{verb}_{noun}"
    description = words.pick(
        f"{verb.capitalize()} a {noun}.", f"{verb.capitalize()} the {noun}", f"{verb.capitalize()}s a {noun}.", ""
    )
    tool = Tool(name, description, {key: _schema(kind) for key, kind in kinds.items()}, tuple(kinds))
    glue = words.pick(" ", " ", " ", " = ", ": ")
    parts = [
        f"{key}{glue}{json.dumps(value) if not isinstance(value, str) else value}" for key, value in arguments.items()
    ]
    question = words.pick(f"{verb.capitalize()} the {noun}", f"Please {verb} the {noun}",
                          f"{verb.capitalize()} a {noun}", f"Can you {verb} the {noun}", f"I want to {verb} a {noun}",
                          f"{verb} {noun}", f"Use {name}",
                          f"Call {name}")  # fmt: skip
    if parts:
        question += words.pick(" with ", " with ", ", ", ": ") + (
            ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]
        )
    elif words.chance(0.7):
        question += "?" if question.startswith("Can") else "."
    return Task(tool, arguments, question)


def _value(words: Words, kind: str) -> Any:
    draws: dict[str, Callable[[], Any]] = {
        "integer": lambda: words.rng.randint(1, 120),
        "number": lambda: words.rng.randint(1, 40) + words.rng.choice((0.5, 0.25, 0.1)),
        "boolean": lambda: words.chance(0.5),
        "switch": lambda: words.chance(0.5),
        "clock": lambda: words.rng.choice(CLOCK),
        "name": words.name,
        "place": words.city,
        "noun": words.noun,
        "room": lambda: words.rng.choice(ROOMS),
        "text": lambda: words.text(5).replace('"', "").replace("'", ""),
        "language": lambda: words.rng.choice(LANGUAGES),
        "currency": lambda: words.rng.choice(CURRENCIES),
        "color": lambda: words.pick("red", "blue", "green", "black", "white"),
        "size": lambda: words.pick("small", "medium", "large"),
        "expression": lambda: _expression(words),
    }
    return draws[kind]()


def _expression(words: Words) -> str:
    return f"{words.rng.randint(2, 999)} {words.pick('*', '+', '-', '/')} {words.rng.randint(2, 999)}"


def _schema(kind: str) -> dict[str, Any]:
    if kind == "size":
        return {"type": "string", "enum": ["small", "medium", "large"]}
    return {
        "type": {"integer": "integer", "number": "number", "boolean": "boolean", "switch": "boolean"}.get(
            kind, "string"
        )
    }


def task(words: Words) -> Task:
    """A lookup or an action."""
    return lookup(words) if words.chance(0.55) else action(words)
