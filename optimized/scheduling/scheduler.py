"""Who computes how many tokens in the next step. Pure policy: no tensors, no model.

A step has one budget of tokens, shared by decodes and chunks of prompts. Running sequences come first; what is left
starts waiting ones. When blocks run out, the sequence that ranks last gives its blocks back and waits to be computed
again (its tokens are kept, so nothing is lost but work).
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from optimized.scheduling.block_pool import BlockPool
from optimized.scheduling.sequence import Sequence
from tandem.engine import EngineRequest


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits and policy.

    Attributes:
        max_num_seqs: sequences running at once; also the number of batch rows.
        max_num_batched_tokens: tokens a step computes.
        block_size: tokens in a block.
        chunked_prefill: whether a prompt may be computed in parts; if not, it waits until it fits a step whole.
        prefix_caching: whether blocks computed for one sequence serve others.
        by_priority: rank by (priority, arrival) instead of arrival alone.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    chunked_prefill: bool = True
    prefix_caching: bool = True
    by_priority: bool = False


class Scheduled(NamedTuple):
    """One sequence's part of a step: its tokens from ``num_computed_tokens`` on."""

    sequence: Sequence
    num_tokens: int

    @property
    def samples(self) -> bool:
        """Whether the step reaches the sequence's last token, after which a new one is drawn."""
        return self.sequence.num_computed_tokens + self.num_tokens == self.sequence.num_tokens


@dataclass(slots=True)
class Schedule:
    """One step's work: running sequences first, then newly started ones; and the rows given up since the last."""

    work: list[Scheduled] = field(default_factory=list)
    started: list[Sequence] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(scheduled.num_tokens for scheduled in self.work)


class Scheduler:
    """Queues, rows and block tables.

    | who | owns |
    |---|---|
    | waiting sequence | its tokens |
    | running sequence | its tokens, its row, its blocks (full ones possibly shared) |
    | nobody | free blocks, whose contents may still be found |
    """

    def __init__(self, config: SchedulerConfig, pool: BlockPool) -> None:
        self.config = config
        self.pool = pool
        self.waiting: list[tuple[tuple[int, int], Sequence]] = []  # a heap by rank
        self.running: list[Sequence] = []
        self.vacated: list[tuple[int, int]] = []  # rows given up and their tokens, since the cache last looked
        self.num_preemptions = 0
        self.num_prefix_queries = 0
        self.num_prefix_hits = 0
        self._by_id: dict[str, Sequence] = {}
        self._free_rows = list(range(config.max_num_seqs))
        self._num_arrivals = 0

    @property
    def has_unfinished(self) -> bool:
        return bool(self._by_id)

    @property
    def num_waiting(self) -> int:
        return len(self._by_id) - len(self.running)

    def add(self, request: EngineRequest) -> None:
        """Queue a request.

        Raises:
            ValueError: its id belongs to an unfinished request.
        """
        if request.request_id in self._by_id:
            raise ValueError(f"request id {request.request_id!r} belongs to an unfinished request")
        priority = request.priority if self.config.by_priority else 0
        sequence = Sequence(request, (priority, self._num_arrivals))
        self._num_arrivals += 1
        self._by_id[request.request_id] = sequence
        self._queue(sequence)

    def holds(self, sequence: Sequence) -> bool:
        """Whether it is unfinished."""
        return self._by_id.get(sequence.request.request_id) is sequence

    def finish(self, request_id: str) -> None:
        """Forget a request and free what it holds; an unknown id is ignored."""
        sequence = self._by_id.pop(request_id, None)
        if sequence is None:
            return
        if sequence.row >= 0:
            self.running.remove(sequence)
            self._give_up(sequence)
        else:
            self.waiting = [entry for entry in self.waiting if entry[1] is not sequence]
            heapq.heapify(self.waiting)

    def schedule(self) -> Schedule:
        """Decide the next step and take the blocks it needs. Tokens may be in the drawing, one of each sequence.

        Empty only when nothing is unfinished, or all that is waits for tokens in the drawing.
        """
        schedule = Schedule()
        num_preemptions = self.num_preemptions
        budget = self._continue_running(schedule, self.config.max_num_batched_tokens)
        if self.num_preemptions == num_preemptions:  # else there is no room, and they may have tokens in the drawing
            self._start_waiting(schedule, budget)
        return schedule

    def computed(self, scheduled: Scheduled) -> list[tuple[int, int]]:
        """Account for a step's work on one sequence; blocks that are full of known tokens become findable.

        Returns:
            The newly findable blocks as (place in the sequence, block).
        """
        sequence, size = scheduled.sequence, self.config.block_size
        sequence.num_computed_tokens += scheduled.num_tokens
        first, last = sequence.num_published, self._num_known_blocks(sequence, 0)
        if not self.config.prefix_caching or first == last:
            return []
        sequence.num_published = last
        hashes = sequence.hashes(last, size)
        places = range(first, last)
        return [(i, sequence.block_ids[i]) for i in places if self.pool.cache(sequence.block_ids[i], hashes[i])]

    def check_integrity(self) -> None:
        """The pool's equation, the rows' and the sequences'; for tests."""
        self.pool.check_integrity(sequence.block_ids for sequence in self._by_id.values())
        rows = sorted([*self._free_rows, *(sequence.row for sequence in self.running)])
        assert rows == list(range(self.config.max_num_seqs)), f"rows {rows}"
        for sequence in self.running:
            needed = -(-sequence.num_computed_tokens // self.config.block_size)
            assert len(sequence.block_ids) >= needed, f"{sequence.request.request_id}: {needed} blocks needed"
        for _, sequence in self.waiting:
            assert not sequence.block_ids and sequence.row == -1 and sequence.num_computed_tokens == 0
            assert not sequence.num_drawing, f"{sequence.request.request_id} could start without knowing its tokens"

    # ------------------------------------------------------------------ running sequences

    def _continue_running(self, schedule: Schedule, budget: int) -> int:
        for sequence in sorted(self.running, key=_rank):
            if budget == 0:
                break
            if sequence.row < 0:  # preempted in favour of one before it
                continue
            count = min(sequence.num_uncomputed_tokens, budget)
            if count and self._make_room(sequence, count):
                schedule.work.append(Scheduled(sequence, count))
                budget -= count
        return budget

    def _make_room(self, sequence: Sequence, count: int) -> bool:
        """Give ``sequence`` blocks for ``count`` more tokens, preempting whoever ranks last; False if that is it."""
        while (missing := self._blocks_missing(sequence, count)) > self.pool.num_free:
            last = max(self.running, key=_rank)
            self._preempt(last)
            if last is sequence:
                return False
        if missing:
            sequence.block_ids += self.pool.allocate(missing)
        return True

    def _blocks_missing(self, sequence: Sequence, count: int) -> int:
        needed = -(-(sequence.num_computed_tokens + count) // self.config.block_size)
        return max(0, needed - len(sequence.block_ids))

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._give_up(sequence)
        self.num_preemptions += 1
        self._queue(sequence)

    def _give_up(self, sequence: Sequence) -> None:
        self.pool.release(sequence.block_ids)
        self.vacated.append((sequence.row, sequence.num_computed_tokens))
        sequence.block_ids = []
        sequence.num_computed_tokens = sequence.num_published = 0
        heapq.heappush(self._free_rows, sequence.row)
        sequence.row = -1

    # ------------------------------------------------------------------ waiting sequences

    def _queue(self, sequence: Sequence) -> None:
        heapq.heappush(self.waiting, (sequence.rank, sequence))

    def _start_waiting(self, schedule: Schedule, budget: int) -> None:
        in_flight = {h for scheduled in schedule.work for h in self._hashes_computed_by(scheduled)}
        postponed = []
        while self.waiting and budget and self._free_rows:
            entry = heapq.heappop(self.waiting)
            sequence = entry[1]
            found, next_hash = self._find_prefix(sequence)
            if next_hash in in_flight:  # another sequence computes its next block in this very step
                postponed.append(entry)
                continue
            scheduled = self._start(sequence, found, budget)
            if scheduled is None:
                postponed.append(entry)
                break
            schedule.work.append(scheduled)
            schedule.started.append(sequence)
            in_flight.update(self._hashes_computed_by(scheduled))
            budget -= scheduled.num_tokens
        for entry in postponed:
            heapq.heappush(self.waiting, entry)

    def _start(self, sequence: Sequence, found: list[int], budget: int) -> Scheduled | None:
        """Give a waiting sequence a row, its cached prefix and blocks for its part of the budget; None if there is no
        room."""
        num_cached = len(found) * self.config.block_size
        missing_tokens = sequence.num_tokens - num_cached
        count = min(missing_tokens, budget)
        whole = count == missing_tokens
        if not whole and not self.config.chunked_prefill and budget < self.config.max_num_batched_tokens:
            return None  # a prompt above the whole budget has to be cut all the same
        needed = -(-(num_cached + count) // self.config.block_size) - len(found)
        if needed + self.pool.num_free_among(found) > self.pool.num_free:
            return None
        self.pool.share(found)
        sequence.block_ids = [*found, *self.pool.allocate(needed)]
        sequence.num_computed_tokens = num_cached
        sequence.num_published = len(found)
        if not sequence.scheduled_time:
            sequence.scheduled_time = time.monotonic()
            sequence.num_cached_tokens = num_cached
            self.num_prefix_queries += sequence.num_tokens
            self.num_prefix_hits += num_cached
        sequence.row = heapq.heappop(self._free_rows)
        self.running.append(sequence)
        return Scheduled(sequence, count)

    def _find_prefix(self, sequence: Sequence) -> tuple[list[int], bytes | None]:
        """Cached blocks that ``sequence`` can begin with, and the hash of the block after them.

        At least one token is left to compute, because its logits are needed; and all of them where log-probabilities
        of the prompt are.
        """
        wants_prompt = sequence.request.sampling.prompt_logprobs is not None
        if not self.config.prefix_caching or (wants_prompt and sequence.num_output_tokens == 0):
            return [], None
        size = self.config.block_size
        hashes = sequence.hashes((sequence.num_tokens - 1) // size, size)
        found = self.pool.find(hashes)
        return found, hashes[len(found)] if len(found) < len(hashes) else None

    def _hashes_computed_by(self, scheduled: Scheduled) -> Iterator[bytes]:
        if self.config.prefix_caching:
            sequence = scheduled.sequence
            last = self._num_known_blocks(sequence, scheduled.num_tokens)
            yield from sequence.hashes(last, self.config.block_size)[sequence.num_published :]

    def _num_known_blocks(self, sequence: Sequence, num_more: int) -> int:
        """Blocks full of known tokens when so many more are computed."""
        num_computed = sequence.num_computed_tokens + num_more
        return min(num_computed, len(sequence.token_ids)) // self.config.block_size


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank
