"""One request's state inside the engine."""

from __future__ import annotations

from optimized.block_pool import block_hash
from tandem.engine import EngineRequest


class Sequence:
    """A request, the tokens so far, and what it holds of the cache.

    Owned by the scheduler; the runner reads it and the engine's update appends to it.

    Attributes:
        token_ids: the prompt and the output so far.
        num_computed_tokens: of ``token_ids``, how many stand in the cache; they fill the first blocks.
        num_cached_tokens: of the prompt, how many were found in the cache when the request first started.
        block_ids: blocks held, in order of the tokens; empty while waiting.
        is_plain: whether all it ever wants of a step is the most likely token; then nothing else is looked at.
        rank: its place in the order of work: lower runs earlier and is preempted later.
        row: place in the batch while running, else -1. Fixed from start to preemption or end.
        scheduled_time: ``time.monotonic()`` seconds of the first start; 0 before it.
    """

    def __init__(self, request: EngineRequest, rank: tuple[int, int]) -> None:
        self.request = request
        self.rank = rank
        self.token_ids = list(request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.is_plain = _is_plain(request)
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0
        self.block_ids: list[int] = []
        self.row = -1
        self.scheduled_time = 0.0
        self._hashes: list[bytes] = []

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    def hashes(self, num_blocks: int, block_size: int) -> list[bytes]:
        """Hashes of the first ``num_blocks`` full blocks of ``token_ids``."""
        for i in range(len(self._hashes), num_blocks):
            parent = self._hashes[-1] if self._hashes else b""
            tokens = self.token_ids[i * block_size : (i + 1) * block_size]
            self._hashes.append(block_hash(parent, tokens, self.request.cache_salt))
        return self._hashes[:num_blocks]


def _is_plain(request: EngineRequest) -> bool:
    s = request.sampling
    is_reported = s.logprobs is not None or s.prompt_logprobs is not None
    is_masked = s.allowed_token_ids is not None or bool(request.bad_words_token_ids or s.logit_bias or s.min_tokens)
    is_penalized = s.repetition_penalty != 1 or bool(s.frequency_penalty or s.presence_penalty)
    return s.temperature == 0 and not (is_reported or is_masked or is_penalized)
