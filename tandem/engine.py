"""The contract between an engine and whoever drives it.

Counting vocabulary, used with these meanings everywhere:

=====================  =========================================================================
num_prompt_tokens      tokens of the prompt
num_output_tokens      tokens generated so far, the end-of-sequence token included
num_tokens             both together
num_computed_tokens    tokens whose keys and values stand in the cache
num_cached_tokens      prompt tokens whose keys and values came from another request's work
num_scheduled_tokens   tokens a step computes for one request
=====================  =========================================================================
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Protocol

import msgspec

from tandem.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "abort", "error"]
_ITEM_SIZE = 4  # bytes of uint32 and float32


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One choice of one prompt, checked and complete: an engine needs nothing else and refuses nothing.

    Attributes:
        request_id: unique among unfinished requests; made by us, never a client's text.
        prompt_token_ids: at least one id, each below the vocabulary size.
        sampling: as defined in :class:`SamplingParams`. Its ``n``, ``seed``, ``max_tokens``, ``stop``, ``bad_words``
            and ``structured_outputs`` are resolved into the fields below or belong to the front process; engines
            don't read them.
        max_tokens: output tokens at most; with the prompt within the engine's ``max_model_len``. 0 computes the
            prompt only (for ``prompt_logprobs``) and finishes with ``length``.
        seed: in [0, 2**64).
        choice_index: number of this choice among the ``n`` of its prompt.
        eos_token_ids: tokens that end the answer; empty with ``ignore_eos``.
        bad_words_token_ids: token sequences that must not be generated.
        grammar: what the output must follow, as ``tandem.grammar`` writes and reads it; empty for any output. With
            one, ``eos_token_ids`` is not empty.
        priority: lower runs earlier, where the engine schedules by priority.
        cache_salt: requests share cached prefixes only with requests of the same salt.
        arrival_time: ``time.monotonic()`` seconds at which the request came in, before its text was tokenized.
        group: names the client's request that this choice belongs to. An engine that queues choices shares its steps
            between groups, so that one request of thousands of choices does not hold up the others. Empty: a group
            of its own.
    """

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    max_tokens: int
    seed: int
    choice_index: int = 0
    eos_token_ids: tuple[int, ...] = ()
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    grammar: str = ""
    priority: int = 0
    cache_salt: str = ""
    arrival_time: float = 0.0
    group: str = ""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities at one position; all finite (clamped to -9999.0 where a token had none).

    Attributes:
        token_id: the token that stands there (sampled, or of the prompt).
        logprob: its log-probability.
        rank: 1 + the number of tokens that are strictly more likely.
        top_ids, top_logprobs: the most likely tokens, as many as asked, most likely first, lower id first among
            equals; of output positions with ``sampling.logprob_token_ids``, those tokens in that order.
    """

    token_id: int
    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


class LogprobColumns(msgspec.Struct, frozen=True, array_like=True):
    """``TokenLogprobs`` of P consecutive positions, in columns: five byte strings instead of P · K numbers to encode.

    Each column is an array in the machine's byte order, since both ends of the transport are one machine or alike.

    Attributes:
        num_top: K, how many tokens each position reports besides the one that stands there.
        token_ids: uint32 [P].
        logprobs: float32 [P].
        ranks: uint32 [P].
        top_ids: uint32 [P, K].
        top_logprobs: float32 [P, K].
    """

    num_top: int
    token_ids: bytes
    logprobs: bytes
    ranks: bytes
    top_ids: bytes
    top_logprobs: bytes

    @classmethod
    def of(cls, entries: Iterable[TokenLogprobs]) -> LogprobColumns:
        """Entries that all report the same number of further tokens."""
        listed = list(entries)
        return cls(
            len(listed[0].top_ids) if listed else 0,
            array("I", [entry.token_id for entry in listed]).tobytes(),
            array("f", [entry.logprob for entry in listed]).tobytes(),
            array("I", [entry.rank for entry in listed]).tobytes(),
            array("I", [i for entry in listed for i in entry.top_ids]).tobytes(),
            array("f", [x for entry in listed for x in entry.top_logprobs]).tobytes(),
        )

    @classmethod
    def join(cls, parts: Sequence[LogprobColumns]) -> LogprobColumns:
        """Consecutive positions, at least one part; all with the same number of further tokens."""
        if len(parts) == 1:
            return parts[0]
        columns = ([getattr(part, name) for part in parts] for name in cls.__struct_fields__[1:])
        return cls(parts[0].num_top, *map(b"".join, columns))

    def head(self, count: int) -> LogprobColumns:
        """The first ``count`` positions."""
        if count == len(self):
            return self
        k = self.num_top
        sizes = (1, 1, 1, k, k)
        columns = (getattr(self, name) for name in self.__struct_fields__[1:])
        cut = (column[: count * size * _ITEM_SIZE] for column, size in zip(columns, sizes, strict=True))
        return LogprobColumns(k, *cut)

    def __len__(self) -> int:
        return len(self.token_ids) // _ITEM_SIZE

    def __iter__(self) -> Iterator[TokenLogprobs]:
        k = self.num_top
        ids, ranks, top_ids = (list(array("I", x)) for x in (self.token_ids, self.ranks, self.top_ids))
        logprobs, top = (list(array("f", x)) for x in (self.logprobs, self.top_logprobs))
        for i in range(len(ids)):
            ends = slice(i * k, (i + 1) * k)
            yield TokenLogprobs(ids[i], logprobs[i], ranks[i], top_ids[ends], top[ends])


class EngineOutput(msgspec.Struct, frozen=True, array_like=True):
    """What one step brought one request.

    Attributes:
        request_id: whose output this is.
        new_token_ids: tokens added by this step, in order; possibly none, possibly several.
        logprobs: one entry a new token, when ``sampling.logprobs`` is set.
        prompt_logprobs: once, with the first output: an entry for each prompt token but the first, which nothing
            stands before.
        finish_reason: set in a request's last output. ``stop``: end of sequence or stop token, which is the last of
            ``new_token_ids``; ``length``: ``max_tokens`` reached; ``error``: ``error`` says why.
        stop_token_id: the member of ``stop_token_ids`` that ended it; None for the end of sequence.
        error: one line for the user.
        num_cached_tokens: see the module's table.
        scheduled_time: ``time.monotonic()`` seconds at which work on the request began.
        num_preemptions: how often it has been set back so far, all it had computed to be computed again.
    """

    request_id: str
    new_token_ids: list[int]
    logprobs: LogprobColumns | None = None
    prompt_logprobs: LogprobColumns | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    error: str | None = None
    num_cached_tokens: int = 0
    scheduled_time: float = 0.0
    num_preemptions: int = 0


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an engine once it is built; never changes after.

    Attributes:
        backend: the name the registry knows it by.
        device: such as ``cpu`` or ``cuda:0``.
        dtype: of the activations, such as ``bfloat16``.
        vocab_size: number of logits; every token id is below it.
        max_model_len: prompt and output tokens of one request at most.
        kv_cache_tokens: tokens the whole cache can hold at once; a request above it is refused at admission.
        num_parameters: of the model.
        tasks: what routes can be offered.
    """

    backend: str
    device: str
    dtype: str
    vocab_size: int
    max_model_len: int
    kv_cache_tokens: int
    num_parameters: int
    tasks: tuple[str, ...] = ("generate",)


class EngineStats(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An engine's state after a step. Counters count from the engine's start.

    Attributes:
        num_running, num_waiting: requests that hold a part of the cache, and those that do not.
        num_deferred: of those waiting, how many wait for something else than room: for their grammar to be compiled,
            or for a prefix that another request is computing.
        kv_cache_usage: in [0, 1].
        num_steps: counter, steps whose results are known.
        num_step_tokens: of the latest of these, prompt tokens computed plus output tokens sampled. Over a request's
            life they add up to its prompt, as far as it was not found in the cache, and its answer; what is computed
            again after a preemption counts again if it is of the prompt, and output tokens count when sampled alone.
        num_preemptions: counter.
        num_prefix_queries, num_prefix_hits: counters, tokens looked up in the prefix cache and found there.
        num_drafts: counter, times that draft tokens of a request were verified.
        num_draft_tokens, num_accepted_tokens: counters, draft tokens verified, and those that were right.
        num_failed_steps: counter, steps that raised, for all their requests or for one.
        sleep_level: what ``sleep`` was asked for; 0 while awake.
        is_asleep: whether it is not 0.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_deferred: int = 0
    kv_cache_usage: float = 0.0
    num_steps: int = 0
    num_step_tokens: int = 0
    num_preemptions: int = 0
    num_prefix_queries: int = 0
    num_prefix_hits: int = 0
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_failed_steps: int = 0
    sleep_level: int = 0
    is_asleep: bool = False


class Engine(Protocol):
    """A language model that advances many requests step by step.

    **Not thread-safe**: one loop calls all of it. Between ``step`` calls an engine does nothing.
    A request fails alone: whatever goes wrong with it after ``add`` ends it with ``finish_reason="error"``. If a
    step's computation raises, the requests of that step end so, those that nobody can tell apart from the culprit
    included; the cache is rebuilt and the others go on. An exception out of ``step`` means that the engine itself is
    broken and must be closed.
    """

    @property
    def info(self) -> EngineInfo:
        """Fixed facts; cheap."""
        ...

    @property
    def has_unfinished(self) -> bool:
        """Whether ``step`` has anything to do; cheap."""
        ...

    @property
    def stats(self) -> EngineStats:
        """A snapshot; cheap, mutates nothing."""
        ...

    def prepare(self, request: EngineRequest) -> None:
        """Do what may take long for a request before ``add`` gets it, such as compiling its grammar.

        Unlike everything else it may be called from another thread, beside any other call. What it cannot do
        ``add`` and ``step`` will find out again: it raises nothing.
        """
        ...

    def add(self, request: EngineRequest) -> None:
        """Take ``request`` into the queue; it runs from a later ``step`` on.

        The caller has checked it against ``info``. The engine keeps the object and never mutates it.

        Raises:
            ValueError: its id belongs to an unfinished request. Nothing has changed then.
        """
        ...

    def abort(self, request_id: str) -> None:
        """Drop a request and free all it holds before the next ``step`` begins; it yields no further output.

        An unknown or finished id is ignored: an abort may always cross with the end of its request.
        """
        ...

    def step(self) -> Sequence[EngineOutput]:
        """Advance unfinished requests, each at most to its end; return what is new.

        At most one output per request. After an output with ``finish_reason`` the request is forgotten and its id may
        be used again. With nothing to do it returns an empty sequence at once. Outputs belong to the caller.
        """
        ...

    def reset_prefix_cache(self) -> None:
        """Forget what was computed for earlier requests; unfinished ones keep what they hold and go on."""
        ...

    def sleep(self, level: int = 1) -> None:
        """Free the cache, and at level 2 the weights too, until ``wake_up``. Does nothing if asleep already.

        Unfinished requests keep their tokens and wait; meanwhile ``has_unfinished`` is False and ``step`` does
        nothing. ``add`` and ``abort`` work as ever.
        """
        ...

    def wake_up(self) -> None:
        """Take the memory again, weights from the checkpoint; unfinished requests are computed again and go on.

        Raises:
            CheckpointError: the weights cannot be read again; the engine stays asleep.
        """
        ...

    def replace_weights(self, path: str) -> None:
        """Load the weights of another checkpoint of the same architecture, between two steps.

        What was cached is forgotten; unfinished requests keep their tokens and go on under the new weights.

        Args:
            path: directory with safetensors files whose tensors have the names and shapes of the present ones.

        Raises:
            CheckpointError: they don't, or cannot be read. The engine then serves the weights it had.
        """
        ...

    def close(self) -> None:
        """Free memory and devices. Idempotent; no other call may follow."""
        ...
