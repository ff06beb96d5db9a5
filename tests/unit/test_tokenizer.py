"""Tokenizers as they are found on disk."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tandem.text.tokenizer
from tandem.errors import CheckpointError, RequestError
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
    write_older_format(tmp_path)
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


@pytest.mark.parametrize(
    ("file", "contents"),
    [
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b'"text"'),
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer.json", b'{"version": "1.0", "added_tokens": [{"id": -1}], "model": {"type": "BPE"}}'),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b"null"),
        ("tokenizer_config.json", b"1"),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"\xff"),
        ("tokenizer_config.json", b"[" * 100_000),
        ("tokenizer_config.json", b'{"eos_token": []}'),
        ("tokenizer_config.json", b'{"eos_token": {"content": 7}}'),
        ("tokenizer_config.json", b'{"bos_token": true}'),
        ("tokenizer_config.json", b'{"chat_template": 1}'),
        ("tokenizer_config.json", b'{"chat_template": {"default": "x"}}'),
        ("tokenizer_config.json", b'{"chat_template": ["x"]}'),
        ("tokenizer_config.json", b'{"chat_template": [{"name": ["x"], "template": "x"}]}'),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default", "template": 1}]}'),
        ("chat_template.jinja", b"\xe9\xff"),
        ("chat_template.jinja", b"x" * 2**21),
    ],
)
def test_a_malformed_file_is_one_line_that_names_it(tmp_path: Path, file: str, contents: bytes) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / file).write_bytes(contents)
    with pytest.raises(CheckpointError, match=re.escape(file)) as refusal:
        Tokenizer.from_directory(tmp_path)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_directory_in_place_of_a_file_is_one_line(tmp_path: Path, file: str) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / file).unlink(missing_ok=True)
    (tmp_path / file).mkdir()
    with pytest.raises(CheckpointError, match=re.escape(file)):
        Tokenizer.from_directory(tmp_path)


def test_what_is_no_text_among_the_special_tokens_is_left_out(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    config = {
        "eos_token": {"content": "<|im_end|>"},
        "bos_token": None,
        "add_bos_token": True,
        "num_image_token": 256,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.from_directory(tmp_path).special_tokens == {"eos_token": "<|im_end|>"}


def test_a_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(RequestError, match="surrogates"):
        BUNDLED.encode("a\ud800")


def write_older_format(directory: Path) -> None:
    model = json.loads(write_tokenizer(directory).to_str())["model"]
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.json").write_text(json.dumps(model["vocab"]))
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]))
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|im_end|>", "unk_token": "<|im_end|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def test_a_conversion_runs_no_file_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    for directory in (model, elsewhere):
        directory.mkdir()
    write_older_format(model)
    for name in ("transformers", "torch", "json", "random"):
        (elsewhere / f"{name}.py").write_text("open('was_run', 'w')\nraise SystemExit(3)\n")
    monkeypatch.chdir(elsewhere)
    assert Tokenizer.from_directory(model).encode("the")
    assert not (elsewhere / "was_run").exists()


def test_a_conversion_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_older_format(tmp_path)
    monkeypatch.setattr(tandem.text.tokenizer, "CONVERSION_SECONDS", 0.05)
    with pytest.raises(CheckpointError, match="cannot be converted within 0.05 s"):
        Tokenizer.from_directory(tmp_path)
