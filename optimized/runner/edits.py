"""Masks, biases and penalties of the rows that ask for them: compiled when a row starts, kept on the device.

A step neither looks at the tokens a request allows nor at its prompt again. What depends on the output (penalties,
bad words of several tokens) is brought up to date by the sampled tokens where they are, so no step waits for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from optimized.kernels.edit_logits import IN_PROMPT, NEVER, WORD, Penalties, mask, num_words, penalize
from optimized.kernels.native import Library
from optimized.runner.packing import to_device
from optimized.scheduling.plan import RowStart
from tandem.errors import NO_TOKEN_LEFT
from tandem.sampling_params import LOGIT_BIAS_LIMIT, SamplingParams

NOT_FINITE = "the model produced logits that are not finite numbers"
OVERFLOW = "repetition_penalty makes the logits overflow"
_NO_TOKEN = -1  # before the output began


class Check(NamedTuple):
    """``error`` is that of each of ``rows`` whose greatest logit is not finite; it is NaN if any of the row is."""

    error: str
    rows: list[int]
    greatest: torch.Tensor


class Edited(NamedTuple):
    """A row of logits that may need edits: its number, the row it belongs to, and the position in the output."""

    number: int
    row: int
    position: int


@dataclass(slots=True)
class BadWords:
    """Words of several tokens, W of them, of K tokens before the last at most.

    Attributes:
        starts: int64 [W, K], the tokens before the last, aligned to the right; -2 matches anything.
        ends: int64 [W], the last tokens.
        recent: int64 [K], the latest tokens of the output; ``_NO_TOKEN`` before it began.
    """

    starts: torch.Tensor
    ends: torch.Tensor
    recent: torch.Tensor


@dataclass(slots=True)
class RowEdits:
    """What one row needs.

    Attributes:
        mask_slot: its row of the bits.
        min_tokens: before so many output tokens its bits forbid the end; 0 once they no longer do.
        final_bits: those it has then.
        bias: token ids int64 [B] and what is added to their logits, float32 [B].
        words: bad words of several tokens.
        count_slot: its row of the counts, if penalties need it.
    """

    mask_slot: int | None = None
    min_tokens: int = 0
    final_bits: torch.Tensor | None = None
    bias: tuple[torch.Tensor, torch.Tensor] | None = None
    words: BadWords | None = None
    count_slot: int | None = None


class Slots:
    """Rows of a table on the device, which doubles when it is full."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.table = torch.zeros((0, width), dtype=torch.int32, device=device)
        self._free: list[int] = []

    def take(self, values: torch.Tensor) -> int:
        """Give ``values`` [width] a row."""
        if not self._free:
            size = len(self.table)
            self.table = torch.cat((self.table, self.table.new_zeros((max(1, size), self.table.shape[1]))))
            self._free = list(range(len(self.table) - 1, size - 1, -1))
        slot = self._free.pop()
        self.table[slot] = values
        return slot

    def give_back(self, slot: int) -> None:
        """Nobody needs it any more."""
        self._free.append(slot)


class Edits:
    """All rows' edits.

    Args:
        vocab_size: number of logits.
        device: of the logits.
        library: the CPU kernels.
    """

    def __init__(self, vocab_size: int, device: torch.device, library: Library) -> None:
        self._vocab_size, self._device, self._library = vocab_size, device, library
        self._bits = Slots(num_words(vocab_size), device)
        self._counts = Slots(vocab_size, device)
        self._rows: dict[int, RowEdits] = {}
        self._starts: dict[int, RowStart] = {}
        self._latest_allowed: tuple[object, torch.Tensor] | None = None

    @property
    def num_counted_rows(self) -> int:
        """Rows of counts that memory is taken for."""
        return len(self._counts.table)

    def start(self, start: RowStart) -> None:
        """Compile what a row needs."""
        s, edits = start.sampling, RowEdits()
        if needs_mask(start):
            self._compile_mask(start, edits)
        if s.logit_bias:
            values = [min(max(x, -LOGIT_BIAS_LIMIT), LOGIT_BIAS_LIMIT) for x in s.logit_bias.values()]
            ids, bias = self._put(torch.tensor(list(s.logit_bias)), torch.tensor(values, dtype=torch.float32))
            edits.bias = ids, bias
        if any(len(word) > 1 for word in start.bad_words_token_ids):
            edits.words = self._compile_words(start)
        if is_penalized(s):
            edits.count_slot = self._counts.take(self._count(start))
        if any(x is not None for x in (edits.mask_slot, edits.bias, edits.words, edits.count_slot)):
            self._rows[start.row], self._starts[start.row] = edits, start

    def end(self, row: int) -> None:
        """Its sequence has left."""
        edits = self._rows.pop(row, None)
        if edits is None:
            return
        del self._starts[row]
        if edits.mask_slot is not None:
            self._bits.give_back(edits.mask_slot)
        if edits.count_slot is not None:
            self._counts.give_back(edits.count_slot)

    def __contains__(self, row: int) -> bool:
        """Whether a row needs any."""
        return row in self._rows

    def apply(self, logits: torch.Tensor, edited: list[Edited]) -> list[Check]:
        """Steps 2 and 3 of the definition on some rows of ``logits`` [N, V], in place; nothing waits.

        Returns:
            What is to be checked of them, the first error first. Whether penalties made logits overflow shows only
            in the greatest of them afterwards; see ``penalized``.
        """
        rows = [(e, self._rows[e.row]) for e in edited]
        checks = self._mask(logits, rows)
        for e, edits in rows:
            if edits.bias is not None:
                ids, values = edits.bias
                logits[e.number].index_add_(0, ids, values)
        penalized = [(e, edits.count_slot) for e, edits in rows if edits.count_slot is not None]
        if penalized:
            params = [self._starts[e.row].sampling for e, _ in penalized]
            numbers, slots, *columns = self._put(
                torch.tensor([e.number for e, _ in penalized]),
                torch.tensor([slot for _, slot in penalized]),
                torch.tensor([p.repetition_penalty for p in params], dtype=torch.float32),
                torch.tensor([p.frequency_penalty for p in params], dtype=torch.float32),
                torch.tensor([p.presence_penalty for p in params], dtype=torch.float32),
            )
            checks.append(Check(NOT_FINITE, self.penalized(edited), logits.index_select(0, numbers).amax(-1)))
            penalize(logits, numbers, slots, self._counts.table, Penalties(*columns), self._library)
        return checks

    def penalized(self, edited: list[Edited]) -> list[int]:
        """The numbers of those rows of logits that penalties apply to."""
        return [e.number for e in edited if self._rows[e.row].count_slot is not None]

    def sampled(self, edited: list[Edited], tokens: torch.Tensor) -> None:
        """Tokens have been sampled: ``tokens`` [N] by the number of the row of logits. Nothing waits."""
        penalized = [(e.number, slot) for e in edited if (slot := self._rows[e.row].count_slot) is not None]
        if penalized:
            numbers, slots = self._put(*[torch.tensor(column) for column in zip(*penalized, strict=True)])
            places = slots * self._vocab_size + tokens.index_select(0, numbers)
            counts = self._counts.table
            counts.view(-1).index_add_(0, places, torch.ones_like(places, dtype=counts.dtype))
        for e in edited:
            words = self._rows[e.row].words
            if words is not None:
                words.recent = torch.cat((words.recent[1:], tokens[e.number : e.number + 1]))

    # ------------------------------------------------------------------ masks

    def _mask(self, logits: torch.Tensor, rows: list[tuple[Edited, RowEdits]]) -> list[Check]:
        masked = [(e, edits.mask_slot) for e, edits in rows if edits.mask_slot is not None]
        for e, edits in rows:
            if edits.min_tokens and e.position >= edits.min_tokens:
                assert edits.mask_slot is not None and edits.final_bits is not None
                self._bits.table[edits.mask_slot] = edits.final_bits
                edits.min_tokens = 0
        checks = []
        if masked:
            numbers = [e.number for e, _ in masked]
            at, slots = self._put(torch.tensor(numbers), torch.tensor([slot for _, slot in masked]))
            before, after = mask(logits, at, slots, self._bits.table, self._library)
            checks = [Check(NOT_FINITE, numbers, before), Check(NO_TOKEN_LEFT, numbers, after)]
        checks += [check for e, edits in rows if edits.words for check in self._ban(logits[e.number], e, edits.words)]
        return checks

    @staticmethod
    def _ban(row: torch.Tensor, e: Edited, words: BadWords) -> list[Check]:
        """Forbid the last tokens of the words whose others are the latest output tokens."""
        before = row.amax(0, keepdim=True)
        is_begun = ((words.starts == words.recent) | (words.starts == -2)).all(1)
        bound = torch.where(is_begun, NEVER, float("inf"))
        row.scatter_reduce_(0, words.ends, bound.to(row.dtype), "amin")  # a token may end several words
        return [Check(NOT_FINITE, [e.number], before), Check(NO_TOKEN_LEFT, [e.number], row.amax(0, keepdim=True))]

    def _compile_mask(self, start: RowStart, edits: RowEdits) -> None:
        s = start.sampling
        allowed = self._allowed(s)
        never = [word[0] for word in start.bad_words_token_ids if len(word) == 1]
        if never:
            allowed[torch.tensor(never)] = False
        final = pack_bits(allowed)
        early = [*start.eos_token_ids, *s.stop_token_ids] if s.min_tokens else []
        if early:
            allowed[torch.tensor(early)] = False
            edits.min_tokens = s.min_tokens
            [edits.final_bits] = self._put(final)
        edits.mask_slot = self._bits.take(*self._put(pack_bits(allowed)))

    def _allowed(self, s: SamplingParams) -> torch.Tensor:
        """What ``allowed_token_ids`` allow, bool [V]; looked up for the next choices of the same request."""
        if s.allowed_token_ids is None:
            return torch.ones(self._vocab_size, dtype=torch.bool)
        if self._latest_allowed is None or self._latest_allowed[0] is not s.allowed_token_ids:
            allowed = torch.zeros(self._vocab_size, dtype=torch.bool)
            allowed[torch.tensor(list(s.allowed_token_ids))] = True
            self._latest_allowed = s.allowed_token_ids, allowed
        return self._latest_allowed[1].clone()

    def _compile_words(self, start: RowStart) -> BadWords:
        words = [word for word in start.bad_words_token_ids if len(word) > 1]
        width = max(map(len, words)) - 1
        starts = torch.tensor([[-2] * (width - len(word) + 1) + list(word[:-1]) for word in words])
        output = start.token_ids[start.num_prompt_tokens :][-width:]
        recent = torch.tensor([_NO_TOKEN] * (width - len(output)) + output)
        return BadWords(*self._put(starts, torch.tensor([word[-1] for word in words]), recent))

    def _count(self, start: RowStart) -> torch.Tensor:
        """Counts [V] of the prompt and the output so far."""
        ids = torch.tensor(start.token_ids, dtype=torch.int64)
        counts = torch.zeros(self._vocab_size, dtype=torch.int32)
        output = ids[start.num_prompt_tokens :]
        counts.index_add_(0, output, torch.ones_like(output, dtype=torch.int32))
        counts[ids[: start.num_prompt_tokens]] |= IN_PROMPT
        return self._put(counts)[0]

    def _put(self, *arrays: torch.Tensor) -> list[torch.Tensor]:
        return to_device(arrays, self._device)


def needs_mask(start: RowStart) -> bool:
    """Whether some tokens are never sampled, or not at first."""
    s = start.sampling
    is_early = s.min_tokens and (start.eos_token_ids or s.stop_token_ids)
    return bool(s.allowed_token_ids is not None or is_early or any(len(w) == 1 for w in start.bad_words_token_ids))


def is_penalized(s: SamplingParams) -> bool:
    """Whether what stands in the prompt or the output changes the logits."""
    return s.repetition_penalty != 1 or bool(s.frequency_penalty or s.presence_penalty)


def pack_bits(allowed: torch.Tensor) -> torch.Tensor:
    """bool [V] → int32 [ceil(V / 32)], as ``kernels.edit_logits.mask`` reads them."""
    words = num_words(len(allowed))
    padded = torch.zeros(words * WORD, dtype=torch.int64)
    padded[: len(allowed)] = allowed
    return (padded.view(words, WORD) << torch.arange(WORD)).sum(-1).to(torch.int32)
