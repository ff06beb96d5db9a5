"""Text to token ids and back, on the ``tokenizers`` library alone: neither torch nor transformers is imported."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from tandem.errors import CheckpointError, RequestError
from tandem.models.hub import read_json
from tandem.safe_path import environment_with_safe_path
from tandem.text.byte_level import BYTE_OF_CHARACTER
from tandem.text.chat_template import read_template
from tandem.text.special_tokens import BREAK, ESCAPED_BREAK
from tandem.text.token_lengths import longest_token

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPECIAL_ROLES = {f"{role}_token" for role in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")}
CONVERSION_SECONDS = 300.0
CACHED_TOKENS = 2**16  # whose bytes are remembered: they are asked for with each token of each answer
# Runs in a process of its own, because it imports transformers and with it torch.
_CONVERT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
from transformers import AutoTokenizer
AutoTokenizer.from_pretrained(sys.argv[1]).backend_tokenizer.save(sys.argv[2])
"""


class Tokenizer:
    """A checkpoint's tokenizer. Stateless after construction; its methods may be called from any thread.

    Attributes:
        config: what ``tokenizer_config.json`` says.
        eos_token_id: end of sequence, or None if the tokenizer names none.
        special_tokens: ``bos_token``, ``eos_token`` … as text, for chat templates.
        chat_template: the checkpoint's template, or None.
        special_token_texts: how special tokens are written, those that ``tokenizer_config.json`` alone calls special
            among them.
        normalizes_special_tokens: some are looked for in normalized text, where other spellings of them match.
    """

    def __init__(self, fast: FastTokenizer, config: dict[str, Any], chat_template: str | None = None) -> None:
        self._fast = fast
        self.config = config
        fast.no_truncation()
        fast.no_padding()
        self.special_tokens = _special_tokens(config)
        self.chat_template = chat_template
        eos = self.special_tokens.get("eos_token")
        self.eos_token_id: int | None = None if eos is None else fast.token_to_id(eos)
        self._added = fast.get_added_tokens_decoder()
        self._special = frozenset(i for i, token in self._added.items() if token.special)
        named = {*self.special_tokens.values(), *_additional_special_tokens(config)}
        self.special_token_texts = frozenset(
            str(token.content) for token in self._added.values() if token.special or token.content in named
        )
        spec = json.loads(fast.to_str())
        self.normalizes_special_tokens = spec["normalizer"] is not None and any(
            token["content"] in self.special_token_texts and token["normalized"] for token in spec["added_tokens"]
        )
        self._longest_token = longest_token(spec, fast.get_vocab())
        self._is_byte_level = _decodes_byte_level(spec["decoder"])
        self._bytes = lru_cache(CACHED_TOKENS)(self._find_bytes)

    @classmethod
    def from_directory(cls, path: str | Path) -> Tokenizer:
        """Load ``tokenizer.json`` (or convert an older format), ``tokenizer_config.json`` and the chat template.

        Raises:
            CheckpointError: the files are missing or malformed.
        """
        path = Path(path)
        config = read_json(path / "tokenizer_config.json") or {}
        return cls(_load(path), config, _chat_template(path, config))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. A model may have more logits than this."""
        return self._fast.get_vocab_size(with_added_tokens=True)

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Tokens that carry no text of their own, such as the end of sequence."""
        return self._special

    @property
    def added_token_ids(self) -> frozenset[int]:
        """Special tokens and those added as whole words."""
        return frozenset(self._added)

    @cached_property
    def control_token_ids(self) -> frozenset[int]:
        """Special tokens, and added ones that look like tags: they say something about a text rather than in it."""
        texts = {token_id: str(token.content) for token_id, token in self._added.items()}
        return self._special | {i for i, text in texts.items() if text.startswith("<") and text.endswith(">")}

    def token_id(self, text: str) -> int | None:
        """The token that is written just so, if there is one."""
        token_id: int | None = self._fast.token_to_id(text)
        return token_id

    def special_tokens_among(self, texts: Iterable[str]) -> dict[int, str]:
        """Those of ``texts`` that are special tokens, by id."""
        return {i: text for text in texts if (i := self.token_id(text)) is not None and i in self._special}

    def all_token_bytes(self, count: int) -> list[bytes]:
        """``token_bytes`` of the first ids, those among them that no token has included: they are empty."""
        table = [b""] * count
        for name, token_id in self._fast.get_vocab(with_added_tokens=True).items():
            if token_id < count:
                table[token_id] = self.token_bytes(token_id) if token_id in self._added else self._piece_bytes(name)
        return table

    def fewest_tokens(self, num_bytes: int) -> int:
        """A lower bound of the number of tokens of any text of so many UTF-8 bytes, known without looking at it.

        0 if a tokenizer may drop text, or make one token of any amount of it.
        """
        return math.ceil(num_bytes / self._longest_token)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``; with the tokenizer's own frame, such as a leading BOS, if asked.

        Raises:
            RequestError: it is no valid Unicode.
        """
        return _encode(self._fast, text, add_special_tokens)

    def encode_escaped(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text`` without its ``BREAK``s; only those special tokens count that hold none."""
        return _encode(self._breaking, text, add_special_tokens)

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        """The text of a whole sequence, as the tokenizer's own decoder gives it."""
        return str(self._fast.decode(token_ids, skip_special_tokens=skip_special_tokens))

    def token(self, token_id: int) -> str:
        """The vocabulary's entry, such as ``Ġthe``; empty for an id that the tokenizer does not have."""
        return self._fast.id_to_token(token_id) or ""

    def token_bytes(self, token_id: int) -> bytes:
        """What a token contributes to the output, as bytes: possibly a part of a character."""
        return self._bytes(token_id)

    def token_text(self, token_id: int) -> str:
        """``token_bytes`` as text; bytes that are no whole character become replacement characters."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def _find_bytes(self, token_id: int) -> bytes:
        if (added := self._added.get(token_id)) is not None:
            return str(added.content).encode()
        return self._piece_bytes(self.token(token_id))

    def _piece_bytes(self, piece: str) -> bytes:
        if self._is_byte_level:
            try:
                return bytes(BYTE_OF_CHARACTER[c] for c in piece)
            except KeyError:
                return piece.encode()
        if match := _BYTE_TOKEN.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return piece.replace("▁", " ").encode()

    @cached_property
    def _breaking(self) -> FastTokenizer:
        """The same tokenizer, which looks for special tokens in the text as it is, and only then removes breaks.

        Made when it is first needed: it takes the memory of another tokenizer.
        """
        spec = json.loads(self._fast.to_str())
        for token in spec["added_tokens"]:
            token["normalized"] &= token["content"] not in self.special_token_texts
        removals = [{"type": "Replace", "pattern": {"String": s}, "content": ""} for s in (BREAK, ESCAPED_BREAK)]
        normalizers = [*removals, *([spec["normalizer"]] if spec["normalizer"] else [])]
        spec["normalizer"] = {"type": "Sequence", "normalizers": normalizers}
        return FastTokenizer.from_str(json.dumps(spec))


def _encode(fast: FastTokenizer, text: str, add_special_tokens: bool) -> list[int]:
    # unlike ``encode`` this lets other threads run meanwhile, and keeps no offsets
    try:
        (encoding,) = fast.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    except TypeError as error:
        raise RequestError("a text must be a string without lone surrogates") from error
    return list(encoding.ids)


def _decodes_byte_level(decoder: dict[str, Any] | None) -> bool:
    parts = (decoder or {}).get("decoders", [decoder or {}])
    return any(part.get("type") == "ByteLevel" for part in parts)


def _load(path: Path) -> FastTokenizer:
    file = path / "tokenizer.json"
    if file.exists():
        return _parse(file)
    if not any(path.glob("tokenizer*")) and not any(path.glob("vocab*")) and not any(path.glob("*.model")):
        raise CheckpointError(f"{path} has no tokenizer; name another directory with --tokenizer")
    with tempfile.TemporaryDirectory() as directory:
        converted = Path(directory) / "tokenizer.json"
        # -P: nothing that lies in the working directory is imported
        command = [sys.executable, "-P", "-c", _CONVERT, str(path), str(converted)]
        environment = {**environment_with_safe_path(), "HF_HUB_OFFLINE": "1"}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=environment, timeout=CONVERSION_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            message = f"the tokenizer of {path} cannot be converted within {CONVERSION_SECONDS:g} s"
            raise CheckpointError(message) from error
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["unknown reason"])[-1]
            raise CheckpointError(f"the tokenizer of {path} cannot be converted: {reason}")
        return _parse(converted)


def _parse(file: Path) -> FastTokenizer:
    try:
        return FastTokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for every malformed file
        raise CheckpointError(f"{file} is malformed: {error}".splitlines()[0]) from error


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Special tokens by role; written as text or as an ``AddedToken`` object."""
    tokens = {}
    for role, value in config.items():
        if role.endswith("_token"):
            content = value.get("content") if isinstance(value, dict) else value
            if isinstance(content, str):
                tokens[role] = content
            elif role in SPECIAL_ROLES and value is not None:
                raise CheckpointError(f"tokenizer_config.json: {role} must be a string or an object with a content")
    return tokens


def _additional_special_tokens(config: dict[str, Any]) -> set[str]:
    """Those without a role of their own."""
    listed = [config.get(key) for key in ("additional_special_tokens", "extra_special_tokens")]
    values = [value for values in listed if isinstance(values, (list, dict)) for value in _values(values)]
    contents = [value.get("content") if isinstance(value, dict) else value for value in values]
    return {content for content in contents if isinstance(content, str)}


def _values(collection: list[Any] | dict[str, Any]) -> list[Any]:
    return list(collection.values()) if isinstance(collection, dict) else collection


def _chat_template(path: Path, config: dict[str, Any]) -> str | None:
    file = path / "chat_template.jinja"
    if file.exists():
        try:
            return read_template(file)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be read as text: {error}") from error
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        try:
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        except (TypeError, KeyError) as error:
            raise CheckpointError("tokenizer_config.json: chat_template must list names and templates") from error
    if template is not None and not isinstance(template, str):
        raise CheckpointError("tokenizer_config.json: chat_template must be a string or a list of named ones")
    return template
