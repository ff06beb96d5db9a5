"""Prompts that ask for what fills a gap, for tokenizers with each family's tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.processors import TemplateProcessing

from tandem.text.fill_in_middle import FORMS, FillInMiddle, ending_token_ids, fill_in_middle, gap_prompt
from tandem.text.tokenizer import Tokenizer

texts = st.text(st.sampled_from("abcdef (){}:\n=+é"), max_size=20)


def byte_level(tokens: tuple[str, ...], **config: Any) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = FastTokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>", *tokens)])
    fast.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(t, fast.token_to_id(t)) for t in ("<s>", "</s>")]
    )
    return Tokenizer(fast, {"bos_token": "<s>", "eos_token": "</s>"} | config)


def sentencepiece(tokens: tuple[str, ...]) -> Tokenizer:
    """As Llama's: a space before each text."""
    pieces = ["<unk>", "▁", *"abcdef(){}:=+", *(f"<0x{i:02X}>" for i in range(256))]
    fast = FastTokenizer(models.BPE({c: i for i, c in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    return Tokenizer(fast, {})


def asked(form: FillInMiddle, tokenizer: Tokenizer, prefix: str, suffix: str) -> list[int]:
    return gap_prompt(form, tokenizer, tokenizer.encode, prefix, suffix, True)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.tokens[0])
@given(prefix=texts, suffix=texts)
def test_the_texts_stand_between_the_tokens_of_the_family(form: FillInMiddle, prefix: str, suffix: str) -> None:
    tokenizer = byte_level(form.tokens)
    assert fill_in_middle(tokenizer) is form
    ids = asked(form, tokenizer, prefix, suffix)
    parts = {"prefix": prefix, "suffix": suffix}
    written = "".join(parts.get(part, part) for part in form.layout)
    assert ids == [tokenizer.token_id("<s>"), *tokenizer.encode(written, False)], "a BOS, and no end of sequence"
    bare = gap_prompt(form, tokenizer, tokenizer.encode, prefix, suffix, False)
    assert bare == ids[1:]


@given(prefix=texts.filter(str.strip), suffix=texts)
def test_code_llama_has_a_space_before_the_prefix_alone(prefix: str, suffix: str) -> None:
    form = next(form for form in FORMS if form.glues_suffix)
    tokenizer = sentencepiece((*form.tokens, "▁<EOT>"))
    pre, suf, mid = (tokenizer.token_id(token) for token in form.tokens)
    ids = asked(form, tokenizer, prefix, suffix)
    assert ids[0] == pre and ids[-1] == mid
    place = ids.index(suf)
    space = tokenizer.token_id("▁")
    assert ids[1:place] == tokenizer.encode(prefix, False) and ids[1] == space
    assert [space, *ids[place + 1 : -1]] == tokenizer.encode(suffix, False) or not suffix
    assert ending_token_ids(form, tokenizer) == [tokenizer.token_id("▁<EOT>")]


def test_a_tokenizer_without_all_tokens_fills_no_gaps() -> None:
    for form in FORMS:
        assert fill_in_middle(byte_level(form.tokens[1:])) is None
    assert fill_in_middle(byte_level(())) is None


def test_only_endings_that_are_tokens_count() -> None:
    tokenizer = byte_level((*FORMS[0].tokens, "<|fim_pad|>", "<|file_sep|>"))
    expected = [tokenizer.token_id(token) for token in ("<|fim_pad|>", "<|file_sep|>")]
    assert ending_token_ids(FORMS[0], tokenizer) == expected


def test_families_share_no_tokens() -> None:
    every = [token for form in FORMS for token in form.tokens]
    assert len({*every}) == len(every), json.dumps(every)
