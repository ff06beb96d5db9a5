"""The byte-level BPE of the demo model, its chat template, and conversations as token ids."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any, Literal

import jinja2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from demo import dialogues

TEMPLATE = Path(__file__).parent / "chat_template.jinja"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKUP = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
# Words without the space before them, so that " ferry", "_ferry" and "\"ferry" share their tokens and one can be
# copied to the place of another; digits one by one, punctuation, white space.
PIECES = r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TAUGHT = re.compile(r"(<\|im_start\|>assistant\n(?:<think>\n\n</think>\n\n)?)(.*?<\|im_end\|>)", re.DOTALL)


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def template() -> jinja2.Template:
    """The chat template, compiled the way transformers compiles it."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False)
    environment.filters["tojson"] = _to_json
    return environment.from_string(TEMPLATE.read_text())


def train(size: int, seed: int, conversations: int = 20000) -> Tokenizer:
    """A byte-level BPE of `size` tokens, learnt from rendered conversations."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    render = template()
    texts = (render.render(**drawn) for drawn in itertools.islice(dialogues.training(seed, warm_up=0), conversations))
    markup = re.compile("|".join(map(re.escape, SPECIAL + MARKUP)))
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL + MARKUP),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((markup.sub("\n", text) for text in texts), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in MARKUP])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, positions: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": positions,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.copyfile(TEMPLATE, folder / "chat_template.jinja")


Part = Literal["read", "opening", "answer"]


def encode(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[Part]]:
    """The ids of a rendered conversation, and what each belongs to.

    An answer is what the model must write itself; its opening is what the template writes before it. Prompt and
    answer are tokenized apart, as they are when the model answers.
    """
    ids: list[int] = []
    parts: list[Part] = []

    def add(piece: str, part: Part) -> None:
        piece_ids = tokenizer.encode(piece, add_special_tokens=False).ids
        ids.extend(piece_ids)
        parts.extend([part] * len(piece_ids))

    end = 0
    for turn in TAUGHT.finditer(text):
        add(text[end : turn.start()], "read")
        add(turn.group(1), "opening")
        add(turn.group(2), "answer")
        end = turn.end()
    add(text[end:], "read")
    return ids, parts
