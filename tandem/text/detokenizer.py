"""Token ids to text as they come, without half characters."""

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
