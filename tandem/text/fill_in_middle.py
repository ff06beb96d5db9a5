"""Prompts that ask a model to fill a gap: the text before it and the text behind it, between tokens of its family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tandem.text.tokenizer import Tokenizer

Encode = Callable[[str, bool], list[int]]  # a text, and whether to put it into the tokenizer's own frame
_PLACEHOLDER = "☺"


@dataclass(frozen=True, slots=True)
class FillInMiddle:
    """How a family is asked.

    Attributes:
        layout: the prompt: names of tokens, and ``prefix`` and ``suffix`` for the texts.
        ends: tokens that end the answer besides the end of sequence, as far as the tokenizer has them.
        glues_suffix: the tokenizer puts a space before each text, and the suffix must begin without.
    """

    layout: tuple[str, ...]
    ends: tuple[str, ...] = ()
    glues_suffix: bool = False

    @property
    def tokens(self) -> tuple[str, ...]:
        """Those that a tokenizer must have."""
        return tuple(part for part in self.layout if part not in ("prefix", "suffix"))


# As the models' own cards have it; the first whose tokens are all there is taken.
FORMS = (
    # Qwen2.5-Coder, Qwen3-Coder, CodeGemma, Granite 4
    FillInMiddle(
        ("<|fim_prefix|>", "prefix", "<|fim_suffix|>", "suffix", "<|fim_middle|>"),
        ends=("<|endoftext|>", "<|fim_pad|>", "<|file_sep|>", "<|repo_name|>", "<|file_separator|>"),
    ),
    # StarCoder, StarCoder2, Granite Code, Stable Code
    FillInMiddle(
        ("<fim_prefix>", "prefix", "<fim_suffix>", "suffix", "<fim_middle>"),
        ends=("<|endoftext|>", "<fim_pad>", "<file_sep>", "<repo_name>"),
    ),
    # SantaCoder
    FillInMiddle(
        ("<fim-prefix>", "prefix", "<fim-suffix>", "suffix", "<fim-middle>"), ends=("<|endoftext|>", "<fim-pad>")
    ),
    # Code Llama
    FillInMiddle(("▁<PRE>", "prefix", "▁<SUF>", "suffix", "▁<MID>"), ends=("▁<EOT>",), glues_suffix=True),
    # DeepSeek-Coder, DeepSeek-V2 and later
    FillInMiddle(("<｜fim▁begin｜>", "prefix", "<｜fim▁hole｜>", "suffix", "<｜fim▁end｜>")),
    # Seed-Coder
    FillInMiddle(("<[fim-suffix]>", "suffix", "<[fim-prefix]>", "prefix", "<[fim-middle]>")),
    # Codestral
    FillInMiddle(("[SUFFIX]", "suffix", "[PREFIX]", "prefix")),
)


def fill_in_middle(tokenizer: Tokenizer) -> FillInMiddle | None:
    """The form of the model whose tokenizer this is; None if it has no tokens for it."""
    return next((form for form in FORMS if all(tokenizer.token_id(token) is not None for token in form.tokens)), None)


def gap_prompt(
    form: FillInMiddle, tokenizer: Tokenizer, encode: Encode, prefix: str, suffix: str, add_special_tokens: bool
) -> list[int]:
    """Token ids of the prompt that asks for what stands between two texts.

    Args:
        encode: tokenizes a text, or refuses it.
        add_special_tokens: begin with what the tokenizer puts before every text, such as a BOS.
    """
    frame = tokenizer.encode("", True) if add_special_tokens else []
    ids = [token_id for token_id in frame if token_id != tokenizer.eos_token_id]
    for part in form.layout:
        if part == "prefix":
            ids += encode(prefix, False)
        elif part == "suffix":
            ids += _glued(encode, suffix) if form.glues_suffix else encode(suffix, False)
        else:
            ids.append(_known(tokenizer, part))
    return ids


def ending_token_ids(form: FillInMiddle, tokenizer: Tokenizer) -> list[int]:
    """The tokens that end an answer besides the end of sequence."""
    return [token_id for token in form.ends if (token_id := tokenizer.token_id(token)) is not None]


def _glued(encode: Encode, text: str) -> list[int]:
    """Token ids of a text as it goes on with another."""
    before = encode(_PLACEHOLDER, False)
    both = encode(_PLACEHOLDER + text, False)
    return both[len(before) :] if both[: len(before)] == before else encode(text, False)


def _known(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_id(token)
    assert token_id is not None, token
    return token_id
