"""No text has fewer tokens than the bound says, whatever the tokenizer does to it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from tandem.models.hub import BUNDLED_MODEL
from tandem.text.tokenizer import Tokenizer

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["a", "aa", "aaaa", "aaaaaaaa", "▁", "▁▁", "é", "K", "k", "ι"]
# what normal forms, lower case and fused unknown characters shorten most
SHRINKING = [
    "\u1fbe\u0308\u0301",
    "\U0001d400",
    "\u212a",
    "\u1100\u1161\u11a8",
    "\uff21",
    "a\u0323\u0307",
    "\u0130",
    "▁",
]
TEXTS = (
    st.text(max_size=30)
    | st.lists(st.sampled_from([*SHRINKING, "a", "aaaaaaaa", " ", "    ", "<end>", "\n"]), max_size=30).map("".join)
    | st.builds(
        lambda unit, count: unit * count,
        st.sampled_from([*SHRINKING, "a", " ", "é", "字", "<end> "]),
        st.integers(0, 200),
    )
)


def bpe(pieces: list[str], **options: Any) -> models.BPE:
    merges = [("a", "a"), ("aa", "aa"), ("aaaa", "aaaa"), ("▁", "▁")]
    known = [(left, right) for left, right in merges if {left, right, left + right} <= set(pieces)]
    return models.BPE({piece: i for i, piece in enumerate(pieces)}, known, **options)


def byte_level(**options: Any) -> FastTokenizer:
    fast = FastTokenizer(bpe([*ALPHABET, "aa", "aaaa", "aaaaaaaa"]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, **options)
    fast.decoder = decoders.ByteLevel()
    return fast


def with_bytes(**options: Any) -> FastTokenizer:
    return FastTokenizer(bpe(["<unk>", *BYTES, *WORDS], unk_token="<unk>", byte_fallback=True, **options))


def normalized(fast: FastTokenizer, *steps: normalizers.Normalizer) -> FastTokenizer:
    fast.normalizer = normalizers.Sequence(list(steps))
    return fast


def split(fast: FastTokenizer, *steps: pre_tokenizers.PreTokenizer) -> FastTokenizer:
    fast.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    return fast


def added(fast: FastTokenizer, **flags: bool) -> FastTokenizer:
    fast.add_special_tokens([AddedToken("<end>", special=True, **flags)])
    return fast


BOUNDED = {
    "bytes": byte_level(),
    "bytes without words": byte_level(use_regex=False),
    "bytes composed": normalized(byte_level(), normalizers.NFC()),
    "bytes by a normalizer": split(
        normalized(FastTokenizer(bpe(ALPHABET)), normalizers.ByteLevel()), pre_tokenizers.Digits()
    ),
    "bytes compatible": normalized(byte_level(), normalizers.NFKC()),
    "bytes decomposed": normalized(byte_level(), normalizers.NFKD()),
    "bytes in lower case": normalized(byte_level(), normalizers.NFC(), normalizers.Lowercase()),
    "bytes with a special token": added(byte_level()),
    "bytes split": split(
        byte_level(), pre_tokenizers.Split(Regex("a+"), "isolated"), pre_tokenizers.ByteLevel(False)
    ),
    "fallback": with_bytes(),
    "fallback and fused unknowns": with_bytes(fuse_unk=True),
    "metaspace": split(with_bytes(), pre_tokenizers.Metaspace()),
    "llama": normalized(with_bytes(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")),
    "shortened": normalized(with_bytes(), normalizers.Replace("▁", "a"), normalizers.Replace("é", "k")),
    "each unknown a token": FastTokenizer(bpe(["<unk>", *WORDS], unk_token="<unk>")),
}
UNBOUNDED = {
    "unknown characters are dropped": FastTokenizer(bpe(WORDS)),
    "some bytes are missing": split(FastTokenizer(bpe(ALPHABET[:100])), pre_tokenizers.ByteLevel(False)),
    "the decoder alone is of bytes": FastTokenizer(bpe(ALPHABET)),
    "unknown characters are fused": FastTokenizer(bpe(["<unk>", *WORDS], unk_token="<unk>", fuse_unk=True)),
    "unknown words": FastTokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>")),
    "unknown pieces": FastTokenizer(models.WordPiece({"<unk>": 0, "a": 1}, unk_token="<unk>")),
    "unigrams": FastTokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, False)),
    "whitespace is dropped": split(byte_level(), pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(False)),
    "a split removes": split(byte_level(), pre_tokenizers.Split("a", "removed"), pre_tokenizers.ByteLevel(False)),
    "punctuation is removed": split(byte_level(), pre_tokenizers.Punctuation("removed")),
    "ends are stripped": normalized(byte_level(), normalizers.Strip()),
    "accents are stripped": normalized(byte_level(), normalizers.NFD(), normalizers.StripAccents()),
    "runs are replaced": normalized(byte_level(), normalizers.Replace(Regex(" +"), " ")),
    "a replacement is empty": normalized(byte_level(), normalizers.Replace("a", "")),
    "text is cleaned": normalized(byte_level(), normalizers.BertNormalizer()),
    "a special token swallows what follows": added(byte_level(), rstrip=True),
    "a special token swallows what precedes": added(byte_level(), lstrip=True),
}
BOUNDED["unigrams and bytes"] = FastTokenizer(
    models.Unigram([("<unk>", 0.0), *((piece, -1.0) for piece in (*BYTES, *WORDS))], 0, True)
)
TOKENIZERS = {name: Tokenizer(fast, {}) for name, fast in (BOUNDED | UNBOUNDED).items()}
TOKENIZERS["the bundled one"] = Tokenizer.from_directory(BUNDLED_MODEL)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=TEXTS)
def test_the_bound_is_never_above_the_number_of_tokens(name: str, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    tokenizer = TOKENIZERS[name]
    assert tokenizer.fewest_tokens(len(text.encode())) <= len(tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("name", UNBOUNDED)
def test_a_tokenizer_that_may_drop_or_swallow_text_promises_nothing(name: str) -> None:
    assert TOKENIZERS[name].fewest_tokens(10**9) == 0


@pytest.mark.parametrize("name", [*BOUNDED, "the bundled one"])
def test_of_any_other_long_text_the_bound_is_worth_something(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    assert tokenizer.fewest_tokens(0) == 0 and tokenizer.fewest_tokens(1) == 1
    assert tokenizer.fewest_tokens(10**6) >= 10**4


def test_the_bound_is_reached_by_the_longest_token() -> None:
    assert TOKENIZERS["bytes"].fewest_tokens(80) == 10 == len(TOKENIZERS["bytes"].encode("a" * 80))
    assert TOKENIZERS["bytes"].fewest_tokens(81) == 11
    assert isinstance(TOKENIZERS["bytes"].fewest_tokens(10**18), int) and not math.isinf(10**18)


@pytest.mark.parametrize(
    ("step", "typed", "read"),
    [
        (normalizers.NFC(), "\u1fbe\u0308\u0301", "\u0390"),
        (normalizers.NFD(), "\u212a", "K"),
        (normalizers.NFKC(), "\U0001d400", "A"),
        (normalizers.NFKD(), "\U0001d400", "A"),
        (normalizers.Lowercase(), "\u212a", "k"),
        (normalizers.Replace("abc", "k"), "abc", "k"),
        (normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("AA", "k")]), "\U0001d400" * 2, "k"),
    ],
    ids=repr,
)
def test_a_token_may_stand_for_more_text_than_it_says(step: normalizers.Normalizer, typed: str, read: str) -> None:
    words = [read * 2**i for i in range(5)]
    merges = [(word, word) for word in words[:-1]]
    vocab = {piece: i for i, piece in enumerate(["<unk>", *words])}
    tokenizer = Tokenizer(normalized(FastTokenizer(models.BPE(vocab, merges, unk_token="<unk>")), step), {})
    text = typed * 16
    assert tokenizer.encode(text) == [vocab[words[-1]]]
    assert tokenizer.fewest_tokens(len(text.encode())) == 1
