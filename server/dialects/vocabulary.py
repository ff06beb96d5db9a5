"""How tokens are written in answers."""

from __future__ import annotations

from functools import lru_cache

from tandem.text.tokenizer import CACHED_TOKENS, Tokenizer


class Vocabulary:
    """Text and bytes of single tokens, remembered."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.special_token_ids = tokenizer.special_token_ids
        self.bytes = tokenizer.token_bytes
        self.text = lru_cache(CACHED_TOKENS)(self._text)

    def name(self, token_id: int, as_id: bool) -> str:
        """The token's text, or ``token_id:…`` where a client asked for ids."""
        return f"token_id:{token_id}" if as_id else self.text(token_id)

    def _text(self, token_id: int) -> str:
        """Bytes that are no whole character are written out, so that different tokens never look alike."""
        data = self._tokenizer.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
