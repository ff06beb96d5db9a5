"""A question and its answer, the piece that every conversation is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from demo.words import Words


@dataclass(frozen=True)
class Turn:
    """A question, what the model thinks of it when asked to think, and its answer.

    `short` is the answer in one word where there is one. `fixed` says that every word of the answer occurs in
    training, so that it can be written in another casing. `considered` is the answer after thinking, where that
    differs.
    """

    user: str
    thought: str
    answer: str
    short: str = ""
    fixed: bool = False
    considered: str = ""

    def after_thinking(self) -> Turn:
        """The same turn, answered after thinking."""
        return replace(self, answer=self.considered or self.answer)


Skill = Callable[[Words], Turn]


def polite(words: Words, question: str, loose: bool = True) -> str:
    """The question as somebody might type it; `loose` also allows a changed ending."""
    kind = words.rng.random()
    small = question[0].lower() + question[1:]
    if kind < 0.06:
        question = small
    elif kind < 0.10:
        question = (
            words.pick("Please ", "please ", "Could you please ", "Can you ") + small
            if not question.endswith("?")
            else small
        )
    elif kind < 0.16:
        question = (
            words.pick(
                "Hi! ", "Hello. ", "Hey, ", "OK, ", "So ", "Now ", "Tandem, ", "And ", "Next: ", "Quick question: "
            )
            + question
        )
    if loose and words.chance(0.2):
        question = question.rstrip("?.!")
        if words.chance(0.25):
            question += words.pick(" please", ", please", " pls", ", please.", "!", "??", " ?")
    return question
