"""Token ids to text as they come: no half characters, no leaked stop strings."""

from __future__ import annotations

import codecs

from tandem.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns one answer's tokens into text, one token at a time.

    Each token is some bytes; a UTF-8 decoder holds back an unfinished character until its last byte has come, and
    turns bytes that can belong to no character into U+FFFD. The joined pieces do not depend on how the tokens were
    grouped. Unlike a decoder that sees only the answer, it keeps a leading space: the text continues the prompt.
    """

    def __init__(
        self, tokenizer: Tokenizer, skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_token_ids if skip_special_tokens else frozenset()
        self._spaced = frozenset() if spaces_between_special_tokens else tokenizer.added_token_ids
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._last_was_added = False

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` completes; possibly empty."""
        if token_id in self._skipped:
            return ""
        piece = self._tokenizer.token_bytes(token_id)
        if self._spaced:
            is_added = token_id in self._spaced
            if is_added and self._last_was_added:
                piece = piece.lstrip(b" ")
            self._last_was_added = is_added
        return self._utf8.decode(piece)

    def finish(self) -> str:
        """What is left when no more tokens come: U+FFFD for an unfinished character, else nothing."""
        return self._utf8.decode(b"", final=True)


class StopStrings:
    """Finds the first of several strings in a growing text, and holds back what may yet become one.

    Args:
        stop: non-empty strings.
        include: whether the string found is part of the text.
    """

    def __init__(self, stop: tuple[str, ...], include: bool = False) -> None:
        self._stop = stop
        self._include = include
        self._held = ""
        self._longest = max(map(len, stop), default=0)
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Add text; return what can be shown. Sets ``found`` when a stop string is complete: then call no more."""
        if not self._stop:
            return text
        text = self._held + text
        ends = [(at + len(s), at, s) for s in self._stop if (at := text.find(s)) >= 0]
        if ends:
            # the one that was complete first ends the answer; of those, the one that began first
            end, at, self.found = min(ends)
            self._held = ""
            return text[: end if self._include else at]
        keep = self._unsafe_suffix(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Release what was held back: the text ended before it became a stop string."""
        held, self._held = self._held, ""
        return held

    def _unsafe_suffix(self, text: str) -> int:
        """Length of the longest suffix of ``text`` that is a proper prefix of a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            suffix = text[-length:]
            if any(s.startswith(suffix) for s in self._stop):
                return length
        return 0
