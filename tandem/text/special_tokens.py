"""Text from outside in which no special token can be read: a break stands inside each that somebody has typed.

The tokenizer looks for special tokens first and removes breaks then (``Tokenizer.encode_escaped``), so that what was
typed is encoded as the text it is. Tokens that were added but are not special, such as ``<think>`` in some
vocabularies, are words of the conversation and stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from os.path import commonprefix

# A noncharacter: it has no meaning in any text, and if somebody sends it anyway, losing it is all that happens.
BREAK = "\ufdd0"
# What JSON with ``ensure_ascii`` and Python's ``repr`` make of it.
ESCAPED_BREAK = "\\ufdd0"


class SpecialTokenEscaper:
    """Breaks special tokens in text.

    At least two characters of a special token are broken too where a text begins or ends with them, for the rest may
    be what a template writes beside it, or another text. Tokens of a single character cannot be broken.

    Args:
        tokens: the special tokens as text.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        tokens = sorted({token for token in tokens if len(token) > 1})
        self._starts = re.compile(_pattern(tokens)) if tokens else None
        self._prefixes = frozenset(token[:n] for token in tokens for n in range(2, len(token)))
        self._suffixes = frozenset(token[-n:] for token in tokens for n in range(2, len(token)))
        self._longest = max(map(len, tokens), default=0)

    def escape(self, text: str) -> str:
        """``text`` with breaks, or the same object if it needs none."""
        if self._starts is None:
            return text
        lengths = range(2, min(self._longest, len(text) + 1))
        begins = any(text[:n] in self._suffixes for n in lengths)
        ends = any(text[-n:] in self._prefixes for n in lengths)
        broken, count = self._starts.subn(rf"\g<0>{BREAK}", text)
        if begins:
            broken = f"{broken[0]}{BREAK}{broken[1:]}"
        if ends:
            broken = f"{broken[:-1]}{BREAK}{broken[-1]}"
        return broken if count or begins or ends else text


def _pattern(tokens: list[str]) -> str:
    """Matches the first character of each occurrence of a token, overlapping ones included."""
    groups = [(first, [token[1:] for token in group]) for first, group in groupby(tokens, lambda token: token[0])]
    return "|".join(f"{re.escape(first)}(?={_alternatives(rests)})" for first, rests in groups)


def _alternatives(texts: list[str]) -> str:
    """Matches any of some sorted texts, in time that does not depend on how many there are."""
    if "" in texts:
        return ""
    parts = []
    for _, group in groupby(texts, lambda text: text[0]):
        alike = list(group)
        shared = commonprefix(alike)
        parts.append(re.escape(shared) + _alternatives([text[len(shared) :] for text in alike]))
    return f"(?:{'|'.join(parts)})"
