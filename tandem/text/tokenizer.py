"""Text to token ids and back, on the ``tokenizers`` library alone: neither torch nor transformers is imported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from tandem.errors import CheckpointError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Runs in a process of its own, because it imports transformers and with it torch.
_CONVERT = """
import sys
from transformers import AutoTokenizer
AutoTokenizer.from_pretrained(sys.argv[1]).backend_tokenizer.save(sys.argv[2])
"""


class Tokenizer:
    """A checkpoint's tokenizer. Stateless after construction; its methods may be called from any thread.

    Attributes:
        eos_token_id: end of sequence, or None if the tokenizer names none.
        special_tokens: ``bos_token``, ``eos_token`` … as text, for chat templates.
        chat_template: the checkpoint's template, or None.
    """

    def __init__(self, fast: FastTokenizer, config: dict[str, Any], chat_template: str | None = None) -> None:
        self._fast = fast
        fast.no_truncation()
        fast.no_padding()
        self.special_tokens = _special_tokens(config)
        self.chat_template = chat_template
        eos = self.special_tokens.get("eos_token")
        self.eos_token_id: int | None = None if eos is None else fast.token_to_id(str(eos))
        self._added = fast.get_added_tokens_decoder()
        self._special = frozenset(i for i, token in self._added.items() if token.special)

    @classmethod
    def from_directory(cls, path: str | Path) -> Tokenizer:
        """Load ``tokenizer.json`` (or convert an older format), ``tokenizer_config.json`` and the chat template.

        Raises:
            CheckpointError: the files are missing or malformed.
        """
        path = Path(path)
        config_file = path / "tokenizer_config.json"
        try:
            config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.exists() else {}
            fast = _load(path)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"the tokenizer of {path} is malformed: {error}") from error
        return cls(fast, config, _chat_template(path, config))

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

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``; with the tokenizer's own frame, such as a leading BOS, if asked."""
        # unlike ``encode`` this lets other threads run meanwhile, and keeps no offsets
        (encoding,) = self._fast.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoding.ids)

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        """The text of a whole sequence, as the tokenizer's own decoder gives it."""
        return str(self._fast.decode(token_ids, skip_special_tokens=skip_special_tokens))

    def token(self, token_id: int) -> str:
        """The vocabulary's entry, such as ``Ġthe``; empty for an id that the tokenizer does not have."""
        return self._fast.id_to_token(token_id) or ""

    def token_bytes(self, token_id: int) -> bytes:
        """What a token contributes to the output, as bytes: possibly a part of a character."""
        if (added := self._added.get(token_id)) is not None:
            return str(added.content).encode()
        return self._piece_bytes(self.token(token_id))

    def token_text(self, token_id: int) -> str:
        """``token_bytes`` as text; bytes that are no whole character become replacement characters."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def _piece_bytes(self, piece: str) -> bytes:
        if self._is_byte_level:
            try:
                return bytes(_BYTE_OF_CHAR[c] for c in piece)
            except KeyError:
                return piece.encode()
        if match := _BYTE_TOKEN.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return piece.replace("▁", " ").encode()

    @cached_property
    def _is_byte_level(self) -> bool:
        decoder = json.loads(self._fast.to_str())["decoder"] or {}
        parts = decoder.get("decoders", [decoder])
        return any(part.get("type") == "ByteLevel" for part in parts)


def _load(path: Path) -> FastTokenizer:
    file = path / "tokenizer.json"
    if file.exists():
        return _parse(file)
    if not any(path.glob("tokenizer*")) and not any(path.glob("vocab*")) and not any(path.glob("*.model")):
        raise CheckpointError(f"{path} has no tokenizer; name another directory with --tokenizer")
    with tempfile.TemporaryDirectory() as directory:
        converted = Path(directory) / "tokenizer.json"
        command = [sys.executable, "-c", _CONVERT, str(path), str(converted)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
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
    return tokens


def _chat_template(path: Path, config: dict[str, Any]) -> str | None:
    file = path / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes, reversed (Radford et al., 2019, ``bytes_to_unicode``)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF_CHAR = _byte_level_alphabet()
