"""Tokenizers as they are found on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.errors import CheckpointError
from tandem.models.hub import BUNDLED_MODEL
from tandem.text.tokenizer import Tokenizer
from tests.tiny import TEMPLATE, write_tokenizer

BUNDLED = Tokenizer.from_directory(BUNDLED_MODEL)


@given(st.text())
def test_the_bundled_tokenizer_round_trips_any_unicode_string(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    ids = BUNDLED.encode(text, add_special_tokens=False)
    assert BUNDLED.decode(ids) == text
    assert b"".join(map(BUNDLED.token_bytes, ids)).decode() == text


def test_the_files_beside_the_vocabulary_are_read(tmp_path: Path) -> None:
    fast = write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.eos_token_id == fast.token_to_id("<|im_end|>")
    assert tokenizer.special_tokens["pad_token"] == "<|endoftext|>"
    assert tokenizer.chat_template == TEMPLATE
    assert len(tokenizer.special_token_ids) == 3
    (tmp_path / "chat_template.jinja").write_text("its own file")
    assert Tokenizer.from_directory(tmp_path).chat_template == "its own file"


def test_of_several_named_templates_the_default_is_taken(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config["chat_template"] = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    file.write_text(json.dumps(config))
    assert Tokenizer.from_directory(tmp_path).chat_template == "d"


def test_an_older_format_is_converted(tmp_path: Path) -> None:
    fast = write_tokenizer(tmp_path)
    model = json.loads(fast.to_str())["model"]
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) for pair in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|im_end|>", "unk_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    converted = Tokenizer.from_directory(tmp_path)
    text = "the quick brown fox, naïve"
    assert converted.encode(text) == fast.encode(text).ids


def test_missing_and_malformed_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="malformed") as refusal:
        Tokenizer.from_directory(tmp_path)
    assert "\n" not in str(refusal.value)


def test_the_bundled_files_need_nothing_else(tmp_path: Path) -> None:
    for file in BUNDLED_MODEL.glob("*token*"):
        shutil.copy(file, tmp_path)
    assert Tokenizer.from_directory(tmp_path).vocab_size == BUNDLED.vocab_size
