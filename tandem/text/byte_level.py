"""The alphabet in which byte-level vocabularies write bytes."""

from __future__ import annotations


def _alphabet() -> dict[str, int]:
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


# GPT-2's printable stand-ins for the 256 bytes, reversed (Radford et al., 2019, ``bytes_to_unicode``).
BYTE_OF_CHARACTER = _alphabet()
