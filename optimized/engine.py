"""The engine: each step is scheduled here, and carried out by a runner.

The runner may have a step in flight while the next is scheduled, so that a GPU does not wait for the host. The next
is scheduled as if each sequence went on; what is computed for one that has ended after all is dropped.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from optimized.runner.local import LocalRunner
from optimized.runner.remote import RemoteRunner
from optimized.runner.runner import Runner
from optimized.scheduling.block_pool import BlockPool
from optimized.scheduling.plan import RowResult, RowWork
from optimized.scheduling.scheduler import Scheduler, SchedulerConfig, Step
from optimized.scheduling.sequence import Sequence
from tandem.config import EngineConfig
from tandem.engine import EngineInfo, EngineOutput, EngineRequest, EngineStats, FinishReason, LogprobColumns

logger = logging.getLogger(__name__)


class OptimizedEngine:
    """An :class:`tandem.engine.Engine` that advances many requests at once.

    Args:
        config: resolved; see ``EngineConfig``.
        on_progress: called with the fraction of the weights that is loaded.
        runner: carries steps out, from here on owned by the engine; None builds the one that ``config`` asks for.

    Raises:
        CheckpointError: the weights cannot be loaded, or there is no room for them and a cache.
        ConfigError: the limits contradict each other, or this machine cannot honour one.
    """

    def __init__(
        self,
        config: EngineConfig,
        on_progress: Callable[[float], None] | None = None,
        runner: Runner | None = None,
    ) -> None:
        self.config = config
        self.runner = _create_runner(config, on_progress) if runner is None else runner
        limits, facts = config.scheduler, self.runner.info
        self.scheduler = Scheduler(
            SchedulerConfig(
                max_num_seqs=limits.max_num_seqs,
                max_num_batched_tokens=limits.max_num_batched_tokens,
                block_size=limits.block_size,
                chunked_prefill=limits.enable_chunked_prefill,
                prefix_caching=limits.enable_prefix_caching,
                by_priority=limits.scheduling_policy == "priority",
                speculative=limits.speculative_config,
            ),
            BlockPool(facts.num_blocks, limits.enable_prefix_caching),
        )
        self._info = EngineInfo(
            backend="optimized",
            device=facts.device,
            dtype=config.dtype,
            vocab_size=config.model.vocab_size,
            max_model_len=config.max_model_len,
            kv_cache_tokens=facts.num_blocks * limits.block_size,
            num_parameters=facts.num_parameters,
        )
        self._in_flight: deque[Step] = deque()
        self._num_step_tokens = 0
        self._num_failed_steps = 0
        self._is_asleep = False

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def has_unfinished(self) -> bool:
        return not self._is_asleep and (self.scheduler.has_unfinished or bool(self._in_flight))

    @property
    def stats(self) -> EngineStats:
        s, pool = self.scheduler, self.scheduler.pool
        return EngineStats(
            num_running=len(s.running),
            num_waiting=s.num_waiting,
            kv_cache_usage=1 - pool.num_free / pool.num_blocks,
            num_step_tokens=self._num_step_tokens,
            num_preemptions=s.num_preemptions,
            num_prefix_queries=s.num_prefix_queries,
            num_prefix_hits=s.num_prefix_hits,
            num_drafts=s.num_drafts,
            num_draft_tokens=s.num_draft_tokens,
            num_accepted_tokens=s.num_accepted_tokens,
            num_failed_steps=self._num_failed_steps,
            is_asleep=self._is_asleep,
        )

    def add(self, request: EngineRequest) -> None:
        self.scheduler.add(request)

    def abort(self, request_id: str) -> None:
        self.scheduler.finish(request_id)

    def step(self) -> list[EngineOutput]:
        if self._is_asleep:
            return []
        try:
            step = self._submit()
            if step is not None and len(self._in_flight) <= self.runner.info.num_steps_ahead:
                return []
            return self._collect()
        except Exception as error:
            return self._recover(error)

    def reset_prefix_cache(self) -> None:
        self.scheduler.pool.reset_cache()

    def sleep(self, level: int = 1) -> None:
        if not self._is_asleep:
            self._forget_all_computed()
            self.runner.sleep(level)
            self._is_asleep = True

    def wake_up(self) -> None:
        if self._is_asleep:
            self.runner.wake_up()
            self._is_asleep = False

    def replace_weights(self, path: str) -> None:
        self._forget_all_computed()
        self.runner.replace_weights(path)

    def trace(self, token_ids: list[int]) -> list[Any]:
        """See :class:`tandem.comparison.TraceableEngine`."""
        return self.runner.trace(token_ids)

    def close(self) -> None:
        self._in_flight.clear()
        self.runner.close()

    # ------------------------------------------------------------------ the parts of a step

    def _submit(self) -> Step | None:
        """Begin a step; None if there is nothing to do."""
        step = self.scheduler.schedule()
        self._num_step_tokens = 0 if step is None else step.num_tokens
        if step is not None:
            self._in_flight.append(step)
            self.runner.submit(step.plan)
        elif not self._in_flight and self.scheduler.has_unfinished:  # it would stay so for ever
            raise RuntimeError("requests are unfinished, but none has anything to compute")
        return step

    def _collect(self) -> list[EngineOutput]:
        """Wait for the oldest step and say what came of it. Who has left since then is passed over."""
        if not self._in_flight:
            return []
        results = self.runner.collect()
        step = self._in_flight.popleft()
        outputs = []
        for (sequence, num_starts, is_last), work, result in zip(step.parts, step.plan.work, results, strict=True):
            if not self.scheduler.holds(sequence):
                continue
            if result.prompt_logprobs is not None:
                sequence.prompt_logprobs.append(result.prompt_logprobs)
            if is_last or result.error is not None:
                outputs.append(self._advance(sequence, num_starts, work, result))
        return outputs

    def _advance(self, sequence: Sequence, num_starts: int, work: RowWork, result: RowResult) -> EngineOutput:
        """Add the tokens that were sampled, if any were to be, and say what came of them."""
        request, is_first = sequence.request, not sequence.output_ids
        tokens, stop_token_id = result.token_ids, None
        finish_reason: FinishReason | None = None
        if result.error is not None:
            finish_reason = "error"
        elif work.num_samples:
            finish_reason, stop_token_id, count = _end_of(sequence, tokens)
            tokens = tokens[:count]
            self.scheduler.accept(sequence, num_starts, work, tokens)
        else:
            finish_reason = "length"  # of a request for its prompt alone
        logprobs = result.logprobs
        output = EngineOutput(
            request_id=request.request_id,
            new_token_ids=tokens,
            logprobs=logprobs if logprobs is None else logprobs.head(len(tokens)),
            prompt_logprobs=_prompt_logprobs(sequence) if is_first else None,
            finish_reason=finish_reason,
            stop_token_id=stop_token_id,
            error=result.error,
            num_cached_tokens=sequence.num_cached_tokens,
            scheduled_time=sequence.scheduled_time,
        )
        if finish_reason is not None:
            self.scheduler.finish(request.request_id)
        return output

    # ------------------------------------------------------------------ when a step raises

    def _recover(self, error: Exception) -> list[EngineOutput]:
        """Go on without whoever made a step raise.

        All that the steps in flight computed is computed again, each of their sequences alone at first: the culprit
        raises again and fails, the others go on. Sequences that raise only together fail together.

        Raises:
            Exception: what the runner raises if it is lost.
        """
        self._num_failed_steps += 1
        logger.exception("a step raised; its requests are computed again, one by one")
        suspects = list({part[0]: None for step in self._in_flight for part in step.parts})
        suspects = [sequence for sequence in suspects if self.scheduler.holds(sequence)]
        self._in_flight.clear()
        if not suspects:
            raise error  # not a step's fault
        self.runner.reset()
        failed = suspects if len(suspects) == 1 else [s for s in suspects if s.num_failures]
        for sequence in suspects:
            sequence.num_failures += 1
        outputs = [self._fail(sequence, error) for sequence in failed]
        remaining = self.scheduler.suspects
        self.scheduler.isolate([*(s for s in suspects if s not in failed), *remaining])
        return outputs

    def _fail(self, sequence: Sequence, error: Exception) -> EngineOutput:
        request_id = sequence.request.request_id
        self.scheduler.finish(request_id)
        reason = "out of memory" if "out of memory" in str(error).lower() else type(error).__name__
        return EngineOutput(
            request_id, [], finish_reason="error", error=f"the engine failed on this request: {reason}"
        )

    def _forget_all_computed(self) -> None:
        """Drop the steps in flight: what they sampled will be sampled again, and be the same."""
        while self._in_flight:
            self.runner.collect()
            self._in_flight.popleft()
        self.scheduler.isolate([])


def _create_runner(config: EngineConfig, on_progress: Callable[[float], None] | None) -> Runner:
    kind = RemoteRunner if config.scheduler.distributed_executor_backend == "mp" else LocalRunner
    return kind(config, on_progress)


def _end_of(sequence: Sequence, token_ids: list[int]) -> tuple[FinishReason | None, int | None, int]:
    """Whether one of the sampled tokens is the last: why, the stop token that it may be, and how many count."""
    request = sequence.request
    for count, token_id in enumerate(token_ids, start=1):
        if token_id in request.eos_token_ids:
            return "stop", None, count
        if token_id in request.sampling.stop_token_ids:
            return "stop", token_id, count
        if sequence.num_known_tokens + count >= sequence.limit:
            return "length", None, count
    return None, None, len(token_ids)


def _prompt_logprobs(sequence: Sequence) -> LogprobColumns | None:
    """With the first output, what was asked for about the prompt; a prompt of one token has an empty report."""
    if sequence.request.sampling.prompt_logprobs is None:
        return None
    return LogprobColumns.join(sequence.prompt_logprobs or [LogprobColumns.of([])])
