"""Laws of the incremental detokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tandem.text.detokenizer import Detokenizer
from tandem.text.tokenizer import Tokenizer as TandemTokenizer
from tests.growth import assert_linear

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level() -> TandemTokenizer:
    """One token per byte, two merges, one special and one plain added token."""
    vocab = {piece: i for i, piece in enumerate([*ALPHABET, "th", "the"])}
    fast = Tokenizer(models.BPE(vocab, [("t", "h"), ("th", "e")]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken("<end>", special=True)])
    fast.add_tokens([AddedToken("<tool>", special=False)])
    return TandemTokenizer(fast, {"eos_token": "<end>"})


def sentence_piece() -> TandemTokenizer:
    """SentencePiece's conventions: ▁ for a space, <0xHH> for bytes."""
    pieces = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "▁the", "a", "é"]
    fast = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return TandemTokenizer(fast, {})


BYTE_LEVEL, SENTENCE_PIECE = byte_level(), sentence_piece()


def detokenize(tokenizer: TandemTokenizer, ids: list[int], **options: bool) -> list[str]:
    detokenizer = Detokenizer(tokenizer, **options)
    return [*(detokenizer.push(i) for i in ids), detokenizer.finish()]


@given(st.text())
def test_any_text_survives_the_way_through_tokens(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    assert "".join(detokenize(BYTE_LEVEL, BYTE_LEVEL.encode(text))) == text


@given(st.text())
def test_no_piece_holds_a_character_that_the_text_does_not_have(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    for piece in detokenize(BYTE_LEVEL, BYTE_LEVEL.encode(text)):
        assert set(piece) <= set(text)


@given(st.lists(st.integers(0, len(ALPHABET) + 1)))
def test_the_joined_pieces_equal_the_tokenizers_own_decoding(ids: list[int]) -> None:
    assert "".join(detokenize(BYTE_LEVEL, ids)) == BYTE_LEVEL.decode(ids)


@given(st.text())
def test_byte_fallback_pieces_join_to_the_text(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    ids = [1 + b for b in text.encode()]
    assert "".join(detokenize(SENTENCE_PIECE, ids)) == text


def test_a_leading_space_is_kept_because_the_text_continues_the_prompt() -> None:
    assert "".join(detokenize(SENTENCE_PIECE, [258, 259])) == " thea"


def test_special_tokens_are_left_out_and_added_words_are_not() -> None:
    end, tool = BYTE_LEVEL.encode("<end>")[0], BYTE_LEVEL.encode("<tool>")[0]
    ids = [*BYTE_LEVEL.encode("a"), tool, end]
    assert "".join(detokenize(BYTE_LEVEL, ids)) == "a<tool>"
    assert "".join(detokenize(BYTE_LEVEL, ids, skip_special_tokens=False)) == "a<tool><end>"


def test_token_ids_beyond_the_vocabulary_have_no_text() -> None:
    assert BYTE_LEVEL.token_bytes(10_000) == b""


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCE_PIECE], ids=["byte-level", "sentence-piece"])
@pytest.mark.parametrize("byte", [b"a", b"\x80", b"\xf0", b"\xf0\x9f", b"\xf0\x9f\x8e\x89"], ids=bytes.hex)
def test_hostile_bytes_take_linear_time(tokenizer: TandemTokenizer, byte: bytes) -> None:
    """Halves of characters without end among them."""
    ids = {tokenizer.token_bytes(i): i for i in range(257)}
    tokens = [ids[bytes([value])] for value in byte] * (20_000 // len(byte))
    assert_linear(lambda size: detokenize(tokenizer, tokens[:size]), len(tokens))
