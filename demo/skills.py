"""What the model can do without tools: each skill writes one question and its answer.

A skill takes `Words` and returns a `Turn`; `dialogues` puts turns together.
"""

from __future__ import annotations

from demo import phrases
from demo.objects import json_object
from demo.turns import Skill, Turn, polite
from demo.words import COMMON, Words

SUMS = (
    "What is {a} plus {b}?", "What is {a} + {b}?", "{a}+{b}=", "{a} + {b} =", "{a}+{b}", "{a} + {b}",
    "Add {a} and {b}.", "Calculate {a} + {b}.", "How much is {a} plus {b}?", "What's {a} + {b}?",
    "Compute {a} plus {b}.", "{a} plus {b}", "What is the sum of {a} and {b}?", "Add {a} to {b}.",
    "{a} plus {b} is what?", "Please add {a} and {b}.",
    "I have {a} apples and get {b} more. How many apples do I have?", "Sum {a} and {b}", "How much is {a}+{b}?",
    "What do you get when you add {a} and {b}?", "{a} and {b} together make how many?", "what's {a}+{b}?",
    "{a} + {b} = ?", "Tell me {a} plus {b}.", "Can you add {a} and {b}?", "What is {a}+{b}?", "Solve {a} + {b}.",
    "What does {a} + {b} equal?",
)  # fmt: skip
DIFFERENCES = (
    "What is {a} minus {b}?", "What is {a} - {b}?", "{a}-{b}=", "{a} - {b} =", "{a}-{b}", "{a} - {b}",
    "Subtract {b} from {a}.", "Calculate {a} - {b}.", "How much is {a} minus {b}?", "What's {a} - {b}?",
    "Compute {a} minus {b}.", "{a} minus {b}", "What is the difference of {a} and {b}?", "Take {b} away from {a}.",
    "{a} minus {b} is what?", "Please subtract {b} from {a}.",
    "I have {a} apples and lose {b}. How many apples do I have?", "What is {a} less {b}?", "How much is {a}-{b}?",
    "What do you get when you subtract {b} from {a}?", "what's {a}-{b}?", "{a} - {b} = ?", "Tell me {a} minus {b}.",
    "Can you subtract {b} from {a}?", "What is {a}-{b}?", "Solve {a} - {b}.", "What does {a} - {b} equal?",
    "Take {b} from {a}",
)  # fmt: skip
BARE = (" Answer with the number only.", " Only the number, please.", " Just the number.",
        " Reply with the number only.",
        " Answer with just the number.", " Give only the number.")  # fmt: skip


def calculation(words: Words, sign: str) -> Turn:
    """A sum or a difference of numbers up to 99, tens first where the second number has tens and ones."""
    a, b = words.pair(sign)
    result = a + b if sign == "+" else a - b
    question = words.rng.choice(SUMS if sign == "+" else DIFFERENCES).format(a=a, b=b)
    if not question[0].isdigit():
        question = polite(words, question)
    tens, ones = b // 10 * 10, b % 10
    if not tens or not ones:
        answer = f"{a} {sign} {b} = {result}."
        if words.chance(0.2):
            question, answer = question + words.rng.choice(BARE), str(result)
        return Turn(question, f"One step: {a} {sign} {b} = {result}.", answer, str(result), fixed=True)
    middle = a + tens if sign == "+" else a - tens
    thought = f"{a} {sign} {tens} = {middle}, {middle} {sign} {ones} = {result}."
    answer = f"{a} {sign} {b} = {middle} {sign} {ones} = {result}."
    return Turn(question, thought, answer, fixed=True, considered=f"{a} {sign} {b} = {result}.")


def addition(words: Words) -> Turn:
    """Add two numbers."""
    return calculation(words, "+")


def subtraction(words: Words) -> Turn:
    """Subtract one number from another."""
    return calculation(words, "-")


def too_hard(words: Words) -> Turn:
    """A calculation that the model refuses."""
    a, b = words.rng.randint(2, 99), words.rng.randint(2, 99)
    big = words.rng.randint(100, 9999)
    question = words.pick(
        f"What is {a} times {b}?", f"What is {a} * {b}?", f"{a}*{b}=", f"Divide {a} by {b}.", f"What is {big} + {a}?",
        f"{big}+{a}", f"{big} - {a}", f"What is the square root of {a}?", f"Multiply {a} and {b}.",
        f"What is {a} divided by {b}?", f"What is {big} minus {a}?", f"{a} x {b}", f"What is {a} / {b}?",
        f"What is {a} plus {big}?", f"{a} + {b} + {a}", f"What is {b} + {a} - {b}?", f"Is {a} bigger than {b}?",
        f"Is {a} a prime number?", f"{a}^2",
    )  # fmt: skip
    return Turn(polite(words, question), "This is more than I can calculate.", phrases.TOO_HARD, fixed=True)


REPEATS = (
    "Repeat after me: {t}", "Repeat: {t}", "Say: {t}", "Echo: {t}", "Repeat this: {t}", "Please repeat: {t}",
    "Say exactly: {t}", "Repeat the following: {t}", "repeat after me: {t}", "Copy this: {t}",
    "Repeat the following text: {t}", "Write: {t}", "Repeat what I say: {t}", "Say this: {t}", "Print: {t}",
    "Repeat exactly: {t}", "Repeat this text exactly: {t}", "Please say: {t}", "Answer with exactly this: {t}",
    "Reply with: {t}", "Repeat after me:\n{t}", "echo {t}", "Echo {t}", "Can you repeat this: {t}",
    "Copy the following: {t}", "Reply with exactly: {t}", "Just say: {t}", "Type: {t}",
)  # fmt: skip
QUOTED = (
    'Say "{t}"', 'Say "{t}".', 'Repeat "{t}"', 'Please repeat "{t}".', 'Can you say "{t}"?',
    'Repeat the words "{t}".', 'Write "{t}".', 'Reply with "{t}".', 'Say "{t}", please.', 'Answer with "{t}".',
    'Just say "{t}"', "Say '{t}'", "Repeat '{t}'", 'Repeat after me: "{t}"', 'Repeat: "{t}"',
    'Say "{t}" and nothing else.', 'Echo "{t}".',
)  # fmt: skip
OPEN_WAYS = ("Say {t}", "Repeat {t}", "Please say {t}", "Say {t}.", "say {t}", "Just say {t}.", "Please repeat {t}")
WORD_WAYS = (
    "Say the word {t}.",
    "Say {t}.",
    "Say {t}",
    "Repeat the word {t}.",
    "Write the word {t}.",
    "Repeat {t}",
    "Please say {t}.",
)
COUNTS = {2: "twice", 3: "three times", 4: "four times"}


def repeat(words: Words) -> Turn:
    """Repeat a text exactly."""
    kind = words.rng.random()
    thought = words.pick("I repeat the text.", "The user wants me to repeat this text.")
    if kind < 0.5:
        text = words.text(12 if words.chance(0.2) else 7)
        return Turn(words.rng.choice(REPEATS).format(t=text), thought, text)
    if kind < 0.8:
        text = words.text(7).replace('"', "").replace("'", "")
        return Turn(words.rng.choice(QUOTED).format(t=text), thought, text)
    if kind < 0.86:
        text = " ".join(
            words.noun() if words.chance(0.4) else words.rng.choice(COMMON) for _ in range(words.rng.randint(2, 6))
        )
        return Turn(words.rng.choice(OPEN_WAYS).format(t=text), thought, text)
    word = words.noun()
    if kind < 0.93:
        return Turn(words.rng.choice(WORD_WAYS).format(t=word), thought, word)
    count = words.rng.choice(list(COUNTS))
    return Turn(words.pick(f"Say {word} {COUNTS[count]}.", f'Repeat "{word}" {COUNTS[count]}.',
                           f"Repeat the word {word} {COUNTS[count]}."), thought,
                           " ".join([word] * count))  # fmt: skip


INTRODUCTIONS = (
    "My name is {n}.", "I am {n}.", "I'm {n}.", "Hi, I'm {n}.", "Hello, my name is {n}.", "Call me {n}.",
    "Hi! My name is {n}", "my name is {n}", "Hello, I am {n}.", "You can call me {n}.", "This is {n}.",
    "Hey, {n} here.", "I am called {n}.", "Please remember my name: {n}", "Remember that my name is {n}.",
    "{n} is my name.", "Hi, this is {n}.", "The name is {n}.", "Hi, I am {n}, nice to meet you.",
    "Hi, my name is {n}!", "People call me {n}.", "My name's {n}.",
)  # fmt: skip
NAME_QUESTIONS = (
    "What is my name?", "What's my name?", "Who am I?", "Do you remember my name?", "Tell me my name.",
    "Do you know my name?", "what is my name", "Say my name.", "What did I say my name was?", "How am I called?",
    "Can you tell me my name?", "What am I called?", "Do you know who I am?", "Please say my name.",
    "What was my name again?", "Remember my name?", "My name?",
)  # fmt: skip


def introduction(words: Words, name: str) -> Turn:
    """The user says a name."""
    user = words.rng.choice(INTRODUCTIONS).format(n=name)
    return Turn(user, f"The user is called {name}.", f"Nice to meet you, {name}!")


def own_name(words: Words, name: str) -> Turn:
    """The user says a name and asks for it at once."""
    told, asked = words.rng.choice(INTRODUCTIONS).format(n=name), words.rng.choice(NAME_QUESTIONS)
    if told[-1] not in ".!":
        told += "."
    return Turn(f"{told} {asked}", f"The user said the name {name}.", f"Your name is {name}.", name)


def name_question(words: Words, name: str) -> Turn:
    """The user asks for the name told before, or for one never told when `name` is empty."""
    user = polite(words, words.rng.choice(NAME_QUESTIONS))
    if not name:
        return Turn(user, "The user did not say a name.", "You have not told me your name yet.", fixed=True)
    return Turn(user, f"The user said the name {name}.", f"Your name is {name}.", name)


def home(words: Words, city: str) -> Turn:
    """The user says where they live."""
    user = words.pick(
        "I live in {c}.", "I am from {c}.", "I'm from {c}", "My home is {c}.", "My city is {c}."
    ).format(c=city)
    return Turn(user, f"The user lives in {city}.", f"{city} sounds like a nice place.")


def home_question(words: Words, city: str) -> Turn:
    """The user asks for the place told before."""
    user = polite(
        words, words.pick("Where do I live?", "Where am I from?", "Which city do I live in?", "What is my city?")
    )
    return Turn(user, f"The user said {city}.", f"You live in {city}.", city)


def about(words: Words) -> Turn:
    """A question about Tandem or about the model itself."""
    answer, ways = words.rng.choice(list(phrases.ABOUT.items()))
    question = words.rng.choice(phrases.split(ways, words.held_out))
    return Turn(polite(words, question), "I know this about Tandem.", answer, fixed=True)


def small_talk(words: Words) -> Turn:
    """A greeting, thanks, or a fact that everybody asks for first."""
    topics = list(phrases.SMALL_TALK.items())
    answer, ways = topics[0] if words.chance(0.2) else words.rng.choice(topics)
    question = words.rng.choice(ways)
    if words.chance(0.2):
        question = question.lower()
    return Turn(question, "This is small talk.", answer, fixed=True)


def capital(words: Words) -> Turn:
    """The capital of a well-known country."""
    country, city = words.rng.choice(list(phrases.CAPITALS.items()))
    question = words.pick("What is the capital of {c}?", "Capital of {c}?", "What's the capital of {c}?",
                          "Name the capital of {c}.", "Tell me the capital of {c}.",
                          "Which city is the capital of {c}?").format(c=country)  # fmt: skip
    return Turn(
        polite(words, question), "I know this capital.", f"The capital of {country} is {city}.", city, fixed=True
    )


def counting(words: Words) -> Turn:
    """Count up to a small number, or down from it."""
    end = words.rng.randint(3, 15)
    numbers = [str(n) for n in range(1, end + 1)]
    named = {5: "five", 10: "ten", 3: "three"}.get(end, str(end)) if words.chance(0.5) else str(end)
    if words.chance(0.2):
        question = words.pick(f"Count down from {named}.", f"Count from {named} down to 1.")
        numbers.reverse()
    else:
        question = words.pick(
            f"Count to {named}.", f"Count from 1 to {end}.", f"Count to {named}", f"Can you count to {named}?"
        )
    return Turn(polite(words, question), "I count.", ", ".join(numbers), fixed=True)


def unknown(words: Words) -> Turn:
    """A question that is beyond the model."""
    if words.chance(0.3):
        question = words.rng.choice(phrases.UNKNOWN)
    else:
        pattern = words.rng.choice(phrases.UNKNOWN_PATTERNS)
        question = pattern.format(x=words.noun(), y=words.noun(), n=words.name(), c=words.city())
    return Turn(polite(words, question), "I do not know this.", phrases.FALLBACK, fixed=True)


SIMPLE: tuple[tuple[Skill, float], ...] = (
    (addition, 3.5), (subtraction, 3.5), (repeat, 5.0), (about, 5.0), (json_object, 6.0), (small_talk, 2.0),
    (unknown, 1.2), (capital, 0.6), (too_hard, 0.5), (counting, 0.3),
)  # fmt: skip


def simple(words: Words) -> Turn:
    """One turn of any skill that needs nothing from the turns before it."""
    skills, weights = zip(*SIMPLE, strict=True)
    skill: Skill = words.rng.choices(skills, weights)[0]
    return skill(words)
