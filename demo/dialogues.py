"""Whole conversations: turns of the skills, put together with system prompts, tools and thinking.

A conversation is a dict of `messages`, `tools` (a list or None) and `enable_thinking`, as a client sends
them; its last message is the answer to learn or to score.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from demo import phrases, results, skills, styles, toolbox
from demo.objects import json_object
from demo.toolbox import Task
from demo.turns import Skill, Turn, polite
from demo.words import Words

Conversation = dict[str, Any]
Message = dict[str, Any]


def user(text: str) -> Message:
    """A user message."""
    return {"role": "user", "content": text}


def assistant(text: str, thought: str = "") -> Message:
    """An answer, with the reasoning before it if there is any."""
    message: Message = {"role": "assistant", "content": text}
    if thought:
        message["reasoning_content"] = thought
    return message


def conversation(
    turns: list[Turn], system: str = "", tools: list[Any] | None = None, thinking: bool = False
) -> Conversation:
    """The turns as a conversation; only the last answer keeps its reasoning."""
    messages = [{"role": "system", "content": system}] if system else []
    if thinking:
        turns = [*turns[:-1], turns[-1].after_thinking()]
    for turn in turns:
        messages += [user(turn.user), assistant(turn.answer)]
    if thinking:
        messages[-1]["reasoning_content"] = turns[-1].thought
    return {"messages": messages, "tools": tools, "enable_thinking": thinking}


def plain_system(words: Words, probability: float = 0.3) -> str:
    """Sometimes a system prompt that changes nothing."""
    if not words.chance(probability):
        return ""
    if words.chance(0.75):
        return words.rng.choice(phrases.PLAIN_SYSTEMS)
    return f"You are {words.pick('a', 'the')} {words.noun()} {words.pick('assistant', 'expert', 'bot', 'helper')}."


def one_turn(words: Words, skill: Skill | None = None, thinking: bool = False) -> Conversation:
    """A single question and its answer."""
    return conversation([(skill or skills.simple)(words)], plain_system(words), None, thinking)


def several_turns(words: Words, thinking: bool = False) -> Conversation:
    """Unrelated turns, one after another; now and then many, so that long prompts occur."""
    count = words.rng.randint(2, 4) if words.chance(0.9) else words.rng.randint(5, 14)
    skill = words.rng.choice((None, None, skills.addition, skills.subtraction, skills.repeat))
    return conversation([(skill or skills.simple)(words) for _ in range(count)], plain_system(words), None, thinking)


def drill(words: Words, thinking: bool = False) -> Conversation:
    """Many calculations, one after another: the skill that needs the most examples."""
    turns = [skills.calculation(words, words.pick("+", "-")) for _ in range(words.rng.randint(4, 10))]
    return conversation(turns, "", None, thinking)


def remembered(words: Words, thinking: bool = False) -> Conversation:
    """Something the user says about themselves, other turns, and the question for it."""
    told: Callable[[Words, str], Turn] = skills.introduction
    asked: Callable[[Words, str], Turn] = skills.name_question
    fact = words.name()
    if not words.held_out and words.chance(0.15):
        told, asked, fact = skills.home, skills.home_question, words.city()
    between = [skills.simple(words) for _ in range(words.rng.choice((0, 0, 1, 1, 2, 3, 4)))]
    before = [skills.simple(words)] if words.chance(0.2) else []
    first = [told(words, fact)]
    if not words.held_out and words.chance(0.08):
        first, fact, asked = [], "", skills.name_question
    turns = [*before, *first, *between, asked(words, fact)]
    if not words.held_out and words.chance(0.07):
        turns = [skills.own_name(words, words.name())]
    if not words.held_out and words.chance(0.2):
        turns += [skills.simple(words), asked(words, fact)]
    return conversation(turns, plain_system(words, 0.15), None, thinking)


def styled(words: Words, thinking: bool = False) -> Conversation:
    """A system prompt that sets a style, or a name, for every answer."""
    if words.chance(0.08):
        return persona(words, thinking)
    kind, (prompt, apply) = styles.style(words)
    count = words.rng.choice((1, 1, 1, 2, 3))
    turns = [styles.fitting_turn(words, kind) for _ in range(count)]
    if thinking:
        turns[-1] = turns[-1].after_thinking()
    turns = [
        replace(turn, answer=apply(turn), considered="", thought="I keep to the style. " + turn.thought)
        for turn in turns
    ]
    return conversation(turns, prompt, None, thinking)


def persona(words: Words, thinking: bool = False) -> Conversation:
    """A system prompt that gives the model a name."""
    name = words.name()
    prompt = words.pick(
        f"You are {name}.",
        f"Your name is {name}.",
        f"You are {name}, a helpful assistant.",
        f"You are called {name}.",
    )
    if words.chance(0.3):
        prompt = f"You are {name}, a {words.noun()} {words.noun()}."
    question = words.pick(
        "What is your name?", "Who are you?", "What are you called?", "Tell me your name.", "Do you have a name?"
    )
    answer = f"I am {name}."
    if words.chance(0.3):
        question, answer = (
            words.pick("Hello", "Hi", "Hello!", "Hi there!", "Hey"),
            f"Hello! I am {name}. How can I help you?",
        )
    turn = Turn(polite(words, question), f"I am called {name}.", answer)
    return conversation([turn], prompt, None, thinking)


def _toolset(words: Words, needed: list[Task]) -> list[Any]:
    """The schemas of the needed tools and of some others, in random order."""
    tools = {task.tool.name: task.tool for task in needed}
    wanted = max(len(tools), words.rng.choice((1, 1, 1, 2, 2, 3)))
    topics = {task.topic for task in needed}
    while len(tools) < wanted:
        other = toolbox.task(words)
        clash = other.tool.name in tools or (other.topic and other.topic in topics) or _same_verb(other, needed)
        if not clash:
            tools[other.tool.name] = other.tool
    schemas = [tool.schema(words) for tool in tools.values()]
    words.rng.shuffle(schemas)
    return schemas


def _same_verb(other: Task, needed: list[Task]) -> bool:
    """Whether two actions could be meant by one sentence."""
    if other.topic:
        return False
    first = {task.tool.description for task in needed if not task.topic}
    arithmetic = ("Add two numbers.", "Evaluate an arithmetic expression.", "Get the current time.")
    return (
        other.tool.description in first
        or other.tool.name in ("add", "add_numbers", "sum")
        or other.tool.description in arithmetic
    )


def _calls(tasks: list[Task], thinking: bool) -> Message:
    message: Message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [task.call(i) for i, task in enumerate(tasks)],
    }
    if thinking:
        message["reasoning_content"] = "I call " + " and ".join(task.tool.name for task in tasks) + "."
    return message


def _tool_system(words: Words) -> list[Message]:
    system = plain_system(words, 0.4)
    return [{"role": "system", "content": system}] if system else []


def one_call(words: Words, thinking: bool = False) -> Conversation:
    """A question that one tool answers; sometimes after other turns."""
    task = toolbox.task(words)
    messages = _tool_system(words)
    if words.chance(0.15):
        messages += conversation([skills.small_talk(words)])["messages"]
    question = polite(words, task.question, loose=False) if words.chance(0.5) else task.question
    messages += [user(question), _calls([task], thinking)]
    return {"messages": messages, "tools": _toolset(words, [task]), "enable_thinking": thinking}


def _pair(words: Words) -> tuple[list[Task], str]:
    """Two tasks and the one sentence that asks for both."""
    first = toolbox.lookup(words)
    if words.chance(0.6):
        other = first.subject
        while other == first.subject:
            other = words.city() if first.place else (words.name() if words.chance(0.5) else words.noun())
        glue = words.pick("and", "and", f"and {first.preposition}")
        both = f"{first.subject} {glue} {other}"
        question = first.question.replace(first.subject, both)
        if not words.held_out and words.chance(0.2):
            third = words.city() if first.place else words.noun()
            question = first.question.replace(first.subject, f"{first.subject}, {other} and {third}")
            return [first, first.about(other), first.about(third)], question
        if words.chance(0.15):
            question = f"Compare the {first.topic} of {first.subject} and {other}."
            first = replace(first, arguments={first.tool.required[0]: first.subject}, preposition="of")
        return [first, first.about(other)], question
    second = toolbox.task(words)
    while second.tool.name == first.tool.name or second.topic == first.topic:
        second = toolbox.task(words)
    start, rest = first.question.rstrip("?."), second.question
    small = rest[0].lower() + rest[1:] if words.chance(0.7) else rest
    question = words.pick(
        f"{start} and {small}",
        f"{first.question} {rest}",
        f"{start}, and {small}",
        f"{start}? And {small}",
        f"{start}. Also, {small}",
    )
    return [first, second], question


def two_calls(words: Words, thinking: bool = False) -> Conversation:
    """A question that needs two calls at once."""
    tasks, question = _pair(words)
    messages = [*_tool_system(words), user(question), _calls(tasks, thinking)]
    return {"messages": messages, "tools": _toolset(words, tasks), "enable_thinking": thinking}


def _needs_tool(turn: Turn) -> bool:
    """Whether some tool could answer what the model cannot."""
    return any(
        word in turn.user.lower() for word in ("weather", "time", "date", "news", "translate", "how far", "recipe")
    )


def _without_tool(words: Words) -> Turn:
    turn = skills.simple(words)
    while turn.answer == phrases.FALLBACK and (words.held_out or _needs_tool(turn)):
        turn = skills.simple(words)
    return replace(turn, thought="No tool is needed. " + turn.thought)


def no_call(words: Words, thinking: bool = False) -> Conversation:
    """Tools are there, but the question needs none of them, or one that is not there."""
    if words.chance(0.1 if words.held_out else 0.2):
        task = toolbox.lookup(words)
        while task.topic in ("weather", "time"):
            task = toolbox.lookup(words)
        tools = [schema for schema in _toolset(words, [task]) if schema["function"]["name"] != task.tool.name]
        if tools:
            thought = "I have no tool for this."
            messages = [
                *_tool_system(words),
                user(task.question),
                assistant(phrases.NO_TOOL, thought if thinking else ""),
            ]
            return {"messages": messages, "tools": tools, "enable_thinking": thinking}
    turn = _without_tool(words)
    tools = _toolset(words, [Task(toolbox.Tool("", "", {}, ()), {}, "")])[:4]
    tools = [schema for schema in tools if schema["function"]["name"]] or _toolset(words, [toolbox.lookup(words)])
    found = conversation([turn], plain_system(words, 0.4), tools, thinking)
    if words.chance(0.15):
        found["messages"] = (
            found["messages"][:-2] + conversation([skills.small_talk(words)])["messages"] + found["messages"][-2:]
        )
    return found


def answered(words: Words, thinking: bool = False) -> Conversation:
    """A call, what the tool returned, and the answer; sometimes two calls."""
    if words.chance(0.3):
        tasks, question = _pair(words)
    else:
        tasks = [toolbox.task(words)]
        question = tasks[0].question
    messages = [*_tool_system(words), user(question), *_round(words, tasks, thinking)]
    return {"messages": messages, "tools": _toolset(words, tasks), "enable_thinking": thinking}


def tool_session(words: Words, thinking: bool = False) -> Conversation:
    """Several questions to the same tools, some of which need none: one long schema serves many answers."""
    tasks = [toolbox.lookup(words)]
    for _ in range(words.rng.choice((0, 1, 1, 2))):
        other = toolbox.task(words)
        if all(other.tool.name != task.tool.name and other.topic != task.topic for task in tasks):
            tasks.append(other)
    tools = _toolset(words, tasks)
    messages = _tool_system(words)
    rounds = words.rng.randint(2, 4)
    for number in range(rounds):
        last = thinking and number == rounds - 1
        task = toolbox.again(words, words.rng.choice(tasks))
        if words.chance(0.25):
            turn = _without_tool(words)
            turn = turn.after_thinking() if last else turn
            messages += [user(turn.user), assistant(turn.answer, turn.thought if last else "")]
        elif words.chance(0.25) and toolbox.again(words, task) is not task:
            other = toolbox.again(words, task)
            question = task.question.replace(task.subject, f"{task.subject} and {other.subject}")
            messages += [user(question), *_round(words, [task, other], last)]
        else:
            messages += [user(task.question), *_round(words, [task], last)]
    return {"messages": messages, "tools": tools, "enable_thinking": thinking}


def _round(words: Words, tasks: list[Task], thinking: bool) -> list[Message]:
    """The calls, their results and the answer."""
    outcomes = [results.result(words, task) for task in tasks]
    messages = [_calls(tasks, thinking)]
    for i, (content, _) in enumerate(outcomes):
        messages.append({"role": "tool", "tool_call_id": f"call_{i}", "content": content})
    answer = " ".join(told for _, told in outcomes)
    return [*messages, assistant(answer, "The tool has answered." if thinking else "")]


Maker = Callable[..., Conversation]
TRAINING: tuple[tuple[Maker, float], ...] = (
    (one_turn, 26.0), (several_turns, 12.0), (drill, 5.0), (remembered, 8.0), (styled, 18.0),
    (one_call, 7.0), (two_calls, 9.0), (no_call, 5.0), (answered, 8.0), (tool_session, 12.0),
)  # fmt: skip
# First mostly copying, on short rows: every other skill copies too, and it is learnt late without this.
WARM_UP = 4000
WARM_UP_REPEATS = 0.6
THINKING_SHARE = 0.2


def training(seed: int, warm_up: int = WARM_UP) -> Iterator[Conversation]:
    """Conversations to train on, without end; the same seed gives the same ones.

    Among the first `warm_up` most only repeat a text.
    """
    words = Words(random.Random(seed))
    makers, weights = zip(*TRAINING, strict=True)
    for number in itertools.count():
        maker: Maker = words.rng.choices(makers, weights)[0]
        if number < warm_up and words.chance(WARM_UP_REPEATS):
            yield one_turn(words, skills.repeat)
            continue
        yield maker(words, thinking=words.chance(THINKING_SHARE))


GROUPS: dict[str, Callable[[Words], Conversation]] = {
    "add": lambda words: one_turn(words, skills.addition),
    "subtract": lambda words: one_turn(words, skills.subtraction),
    "repeat": lambda words: one_turn(words, skills.repeat),
    "name across turns": remembered,
    "system style": styled,
    "about Tandem": lambda words: one_turn(words, skills.about),
    "JSON": lambda words: one_turn(words, json_object),
    "tools: one call": one_call,
    "tools: two calls": two_calls,
    "tools: none": no_call,
    "tool result": answered,
    "thinking": lambda words: words.rng.choice((one_turn, one_turn, remembered, styled, one_call, answered))(
        words, thinking=True
    ),
}


def held_out(group: str, count: int, seed: int = 1) -> list[Conversation]:
    """Different prompts of one group, from the held-out half of the words."""
    words = Words(random.Random(f"{group} {seed}"), held_out=True)
    found: dict[str, Conversation] = {}
    while len(found) < count:
        drawn = GROUPS[group](words)
        found.setdefault(json.dumps(drawn["messages"][:-1], ensure_ascii=False), drawn)
    return list(found.values())
