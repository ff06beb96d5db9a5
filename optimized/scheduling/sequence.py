"""One request's state inside the engine."""

from __future__ import annotations

from optimized.scheduling.block_pool import block_hash
from tandem.engine import EngineRequest


class Sequence:
    """A request, the tokens so far, and what it holds of the cache.

    Owned by the scheduler; the engine tells it of tokens that are drawn.

    Attributes:
        token_ids: the prompt and the output so far.
        num_drawing: tokens behind these that a step under way draws, so that nobody knows them yet.
        limit: tokens with which it ends at the latest.
        num_computed_tokens: how many stand in the cache after the steps under way; they fill the first blocks.
        num_published: of its blocks, how many can be found by others.
        num_cached_tokens: of the prompt, how many were found in the cache when the request first started.
        block_ids: blocks held, in order of the tokens; empty while waiting.
        is_plain: whether all it ever wants of a step is the most likely token; then nothing else is looked at.
        is_foreseeable: whether a step can be laid out for it before the token of the step before is known.
        rank: its place in the order of work: lower runs earlier and is preempted later.
        row: place in the batch while running, else -1. Fixed from start to preemption or end.
        scheduled_time: ``time.monotonic()`` seconds of the first start; 0 before it.
    """

    def __init__(self, request: EngineRequest, rank: tuple[int, int]) -> None:
        self.request = request
        self.rank = rank
        self.token_ids = list(request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.num_drawing = 0
        self.limit = self.num_prompt_tokens + request.max_tokens
        self.is_plain = _is_plain(request)
        self.is_foreseeable = self.is_plain or _is_foreseeable(request)
        self.num_computed_tokens = 0
        self.num_published = 0
        self.num_cached_tokens = 0
        self.block_ids: list[int] = []
        self.row = -1
        self.scheduled_time = 0.0
        self._hashes: list[bytes] = []

    @property
    def num_tokens(self) -> int:
        """With those being drawn."""
        return len(self.token_ids) + self.num_drawing

    @property
    def num_output_tokens(self) -> int:
        """With those being drawn; the position of the next in the output."""
        return self.num_tokens - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """That are worth computing: not the one being drawn if it will be the last."""
        is_last = self.num_drawing > 0 and self.num_tokens >= self.limit
        return self.num_tokens - self.num_computed_tokens - is_last

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    def take(self, token_id: int) -> None:
        """Of the tokens being drawn the first has become known."""
        self.num_drawing -= 1
        self.token_ids.append(token_id)

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


def _is_foreseeable(request: EngineRequest) -> bool:
    """Penalties and words of several tokens look at the output, and a report is on the token."""
    s = request.sampling
    is_penalized = s.repetition_penalty != 1 or bool(s.frequency_penalty or s.presence_penalty)
    return s.logprobs is None and not is_penalized and all(len(word) == 1 for word in request.bad_words_token_ids)
