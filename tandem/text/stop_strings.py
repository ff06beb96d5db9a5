"""Stop strings in a growing text: found however it is cut, and never shown in part."""

from __future__ import annotations


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
