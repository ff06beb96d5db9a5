"""Draft tokens by prompt lookup: what followed the last time the sequence's latest tokens stood in it.

Saxena, "Prompt lookup decoding" (2023). Answers that repeat parts of their prompt (code, quotations, JSON) get
several tokens a step; a wrong guess costs the computation of the guessed tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class NgramIndex:
    """Where each n-gram of a sequence last ended, kept up to date token by token.

    Args:
        token_ids: the tokens so far.
        shortest, longest: lengths of the n-grams that are looked up, the longest first.
    """

    def __init__(self, token_ids: Sequence[int], shortest: int, longest: int) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self._tail: list[int] = []
        self._end = 0
        self._latest: dict[tuple[int, ...], int] = {}  # n-gram → position behind it, where something followed
        self._pending: list[tuple[int, ...]] = []  # those that end at the last token: nothing has followed them yet
        self.extend(token_ids)

    def extend(self, token_ids: Sequence[int]) -> None:
        """The sequence goes on with these."""
        longest = self._sizes[0]
        for token_id in token_ids:
            for gram in self._pending:
                self._latest[gram] = self._end
            self._tail = [*self._tail, token_id][-longest:]
            self._end += 1
            self._pending = [tuple(self._tail[-n:]) for n in self._sizes if n <= len(self._tail)]

    def propose(self, token_ids: Callable[[int, int], list[int]], end: int, count: int) -> list[int]:
        """What followed the longest of the latest n-grams where it last stood: ``count`` tokens, or none.

        Args:
            token_ids: gives the sequence's tokens [start, end).
            end: how many there are.
            count: so many.
        """
        for gram in self._pending:
            at = self._latest.get(gram)
            if at is not None:
                drafts = token_ids(at, min(at + count, end))
                period = len(drafts)  # what goes beyond the end repeats what stands before it, as in LZ77
                return [drafts[i % period] for i in range(count)]
        return []
