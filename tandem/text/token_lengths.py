"""How long a token can be: what bounds the number of a text's tokens from below, before any work is done on it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tandem.text.byte_level import BYTE_OF_CHARACTER

# UTF-8 bytes of input behind one byte of output, at most. Compatibility forms make one of four bytes (U+1D400 is A),
# canonical ones seven into two (U+1FBE U+0308 U+0301 is U+0390), lower case three into one (U+212A is k).
SHRINKING_NORMALIZERS = {"NFC": 4.0, "NFD": 4.0, "NFKC": 4.0, "NFKD": 4.0, "Lowercase": 3.0}
KEEPING_NORMALIZERS = {"Prepend", "ByteLevel"}
KEEPING_PRE_TOKENIZERS = {"ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "FixedLength"}
SPLITTING_PRE_TOKENIZERS = {"Split", "Punctuation"}  # they can remove what they split at
MAX_CHARACTER_BYTES = 4
UNBOUNDED = math.inf


def longest_token(spec: dict[str, Any], vocabulary: Iterable[str]) -> float:
    """UTF-8 bytes of text that one token can stand for, at most; infinite where a token may swallow, or a tokenizer
    drop, any amount of it.

    Args:
        spec: the contents of a ``tokenizer.json``.
        vocabulary: all its tokens.
    """
    vocabulary = set(vocabulary)
    is_byte_level = _has_byte_level(spec["normalizer"]) or _has_byte_level(spec["pre_tokenizer"])
    swallows = any(token["lstrip"] or token["rstrip"] for token in spec["added_tokens"])
    kept = not swallows and _keeps_text(spec["pre_tokenizer"]) and _knows_all_text(spec, vocabulary, is_byte_level)
    if not kept:
        return UNBOUNDED
    added = [len(token["content"].encode()) for token in spec["added_tokens"]]
    pieces = [len(piece) if is_byte_level else len(piece.encode()) for piece in vocabulary]
    return max(MAX_CHARACTER_BYTES, *added, *pieces) * _shrinking(spec["normalizer"])


def _has_byte_level(component: dict[str, Any] | None) -> bool:
    """Whether text is written in the alphabet of ``ByteLevel``, one character a byte, before the model sees it."""
    if component is None:
        return False
    parts = component.get("normalizers") or component.get("pretokenizers") or ()
    return component["type"] == "ByteLevel" or any(map(_has_byte_level, parts))


def _shrinking(normalizer: dict[str, Any] | None) -> float:
    """By which factor a text can become shorter."""
    if normalizer is None:
        return 1.0
    if normalizer["type"] == "Sequence":
        return math.prod(map(_shrinking, normalizer["normalizers"]))
    kind = normalizer["type"]
    if kind == "Replace" and "String" in normalizer["pattern"] and normalizer["content"]:
        return max(1.0, len(normalizer["pattern"]["String"].encode()) / len(normalizer["content"].encode()))
    return 1.0 if kind in KEEPING_NORMALIZERS else SHRINKING_NORMALIZERS.get(kind, UNBOUNDED)


def _keeps_text(pre_tokenizer: dict[str, Any] | None) -> bool:
    if pre_tokenizer is None:
        return True
    if pre_tokenizer["type"] == "Sequence":
        return all(map(_keeps_text, pre_tokenizer["pretokenizers"]))
    splits = pre_tokenizer["type"] in SPLITTING_PRE_TOKENIZERS and pre_tokenizer["behavior"] != "Removed"
    return splits or pre_tokenizer["type"] in KEEPING_PRE_TOKENIZERS


def _knows_all_text(spec: dict[str, Any], vocabulary: set[str], is_byte_level: bool) -> bool:
    """Whether each character becomes a token of its own at least: none is dropped, and unknown ones are not fused."""
    model = spec["model"]
    if model["type"] not in ("BPE", "Unigram"):
        return False
    if is_byte_level and vocabulary.issuperset(BYTE_OF_CHARACTER):
        return True
    if model.get("byte_fallback") and vocabulary.issuperset(f"<0x{byte:02X}>" for byte in range(256)):
        return True
    return model["type"] == "BPE" and model.get("unk_token") in vocabulary and not model.get("fuse_unk")
