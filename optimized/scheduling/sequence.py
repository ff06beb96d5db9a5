"""One request's state inside the engine."""

from __future__ import annotations

from optimized.scheduling.block_pool import block_hash
from optimized.scheduling.drafts import NgramIndex
from optimized.scheduling.plan import looks_back
from tandem.engine import EngineRequest, LogprobColumns

Rank = tuple[int, int, int]


class Sequence:
    """A request, the tokens so far, and what it holds of the cache. Owned by the scheduler.

    Attributes:
        output_ids: the tokens sampled so far, as far as they are known.
        num_pending: sampled by steps in flight, so that nobody knows them yet.
        num_drafts: draft tokens in flight; while there are any, nobody knows how many tokens will come.
        limit: tokens with which it ends at the latest.
        num_computed_tokens: how many stand in the cache after the steps in flight; they fill the first blocks.
        num_published: of its blocks, how many can be found by others.
        num_cached_tokens: of the prompt, how many were found in the cache when the request first started.
        block_ids: blocks held, in order of the tokens; empty while waiting.
        num_sent_blocks: of these, how many the runner knows.
        looks_back: see ``plan.looks_back``.
        rank: its place in the order of work: lower runs earlier and is preempted later.
        row: of the runner while running, else -1. Fixed from start to preemption or end.
        num_starts: how often it has started.
        num_failures: steps in which it took part with others and that raised.
        prompt_logprobs: reports on the prompt so far, until the first output takes them along.
        scheduled_time: ``time.monotonic()`` seconds of the first start; 0 before it.
    """

    def __init__(self, request: EngineRequest, rank: Rank, drafts: NgramIndex | None = None) -> None:
        self.request = request
        self.rank = rank
        self.prompt_ids = request.prompt_token_ids  # shared by the choices of a prompt, and never changed
        self.output_ids: list[int] = []
        self.num_prompt_tokens = len(self.prompt_ids)
        self.num_pending = 0
        self.num_drafts = 0
        self.limit = self.num_prompt_tokens + request.max_tokens
        self.looks_back = looks_back(request)
        self.num_computed_tokens = 0
        self.num_published = 0
        self.num_cached_tokens = 0
        self.block_ids: list[int] = []
        self.num_sent_blocks = 0
        self.row = -1
        self.num_starts = 0
        self.num_failures = 0
        self.prompt_logprobs: list[LogprobColumns] = []
        self.scheduled_time = 0.0
        self._hashes: list[bytes] = []
        self._drafts = drafts

    @property
    def num_known_tokens(self) -> int:
        return self.num_prompt_tokens + len(self.output_ids)

    @property
    def num_tokens(self) -> int:
        """With those in flight."""
        return self.num_known_tokens + self.num_pending

    @property
    def num_uncomputed_tokens(self) -> int:
        """That are worth computing now: not the one in flight if it will be the last."""
        if self.num_pending and self._drafts is not None and not self.looks_back:
            return 0  # drafts follow the token in flight, and after drafts nobody knows how many tokens come
        is_last = self.num_pending > 0 and self.num_tokens >= self.limit
        return self.num_tokens - self.num_computed_tokens - is_last

    def token_ids(self, start: int, end: int) -> list[int]:
        """Known tokens [start, end)."""
        n = self.num_prompt_tokens
        if end <= n:
            return list(self.prompt_ids[start:end])
        return [*self.prompt_ids[start:n], *self.output_ids[max(0, start - n) : end - n]]

    def take(self, token_ids: list[int]) -> None:
        """Tokens of one sample in flight have become known."""
        self.num_pending -= 1
        self.output_ids += token_ids
        if self._drafts is not None:
            self._drafts.extend(token_ids)

    def propose(self, count: int) -> list[int]:
        """Up to so many tokens that may come next. Only while all tokens are known."""
        if self._drafts is None or count < 1 or self.looks_back:
            return []
        if len(self.output_ids) < self.request.sampling.min_tokens:
            return []  # until then the mask changes from token to token
        return self._drafts.propose(self.token_ids, self.num_known_tokens, count)

    def hashes(self, num_blocks: int, block_size: int) -> list[bytes]:
        """Hashes of the first ``num_blocks`` blocks full of known tokens."""
        for i in range(len(self._hashes), num_blocks):
            parent = self._hashes[-1] if self._hashes else b""
            tokens = self.token_ids(i * block_size, (i + 1) * block_size)
            self._hashes.append(block_hash(parent, tokens, self.request.cache_salt))
        return self._hashes[:num_blocks]
