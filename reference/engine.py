"""The engine: requests come in, and each step brings every running one a token further, one after another.

    add → waiting ──(room in the KV budget, in order of arrival)──► running → last output
                                                                    │   ▲
                                                                    └───┘ step: one token

A request holds memory only while it runs, and gives it back with its last output or its abortion. Nothing is shared
between requests, so there is no prefix cache to reset.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import msgspec
import torch

from reference.kv_cache import KVCache, bytes_per_token
from reference.model import Model
from reference.sampling import Sample, SamplingError, check_logits, report, sample
from tandem.config import EngineConfig, SchedulerOptions
from tandem.engine import (
    EngineInfo,
    EngineOutput,
    EngineRequest,
    EngineStats,
    FinishReason,
    LogprobColumns,
    TokenLogprobs,
)
from tandem.grammar.matcher import Grammars, Matcher
from tandem.models.checkpoint import available_memory, load_weights
from tandem.models.hub import ModelFiles

logger = logging.getLogger(__name__)

PREFILL_TOKENS = 512  # of a prompt computed at once; bounds memory, not results
MAX_LOGITS = 1 << 22  # prompt logits held at once
KV_MEMORY_SHARE = 0.5  # of the memory that is free once the weights are loaded
MAX_FULL_REQUESTS = 64  # requests of full length that the KV budget has room for, at most


class _Running:
    """A request at work, and all it owns: ``kv`` is None until its first step, and after the engine has slept.

    ``matcher`` follows the output through the request's grammar, if it has one.
    """

    def __init__(self, request: EngineRequest, matcher: Matcher | None) -> None:
        self.request = request
        self.matcher = matcher
        self.kv: KVCache | None = None
        self.output_ids: list[int] = []
        self.scheduled_time = time.monotonic()


class ReferenceEngine:
    """An :class:`tandem.engine.Engine` that reads like the mathematics.

    A request starts when its prompt and all its output will fit into the KV budget, which is therefore never
    exceeded, and nothing is ever preempted. Its first step computes the whole prompt.

    Args:
        config: resolved; see ``EngineConfig``.
        on_progress: called with the fraction of the weights that is loaded.

    Raises:
        CheckpointError: the weights cannot be loaded.
    """

    def __init__(self, config: EngineConfig, on_progress: Callable[[float], None] | None = None) -> None:
        torch.set_float32_matmul_precision("highest")  # TF32 would cost three digits
        self.config = config
        on_gpu = torch.cuda.is_available()
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        self._device = device
        self._loaded = config  # what weights are read by
        self.model, num_parameters = self._load_model(on_progress)
        self._info = EngineInfo(
            backend="reference",
            device=str(device),
            dtype=config.dtype,
            vocab_size=config.model.vocab_size,
            max_model_len=config.max_model_len,
            kv_cache_tokens=self._kv_budget(),
            num_parameters=num_parameters,
        )
        _say_what_changes_nothing(config.scheduler)
        self._grammars = Grammars(config.tokenizer_path, config.model.vocab_size)
        self._waiting: dict[str, EngineRequest] = {}  # in order of arrival
        self._running: dict[str, _Running] = {}
        self._num_steps = 0
        self._num_step_tokens = 0
        self._num_failed_steps = 0
        self._sleep_level = 0

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def has_unfinished(self) -> bool:
        return not self._sleep_level and bool(self._waiting or self._running)

    @property
    def stats(self) -> EngineStats:
        held = sum(run.kv.num_tokens for run in self._running.values() if run.kv is not None)
        return EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            kv_cache_usage=min(1.0, held / self._info.kv_cache_tokens),
            num_steps=self._num_steps,
            num_step_tokens=self._num_step_tokens,
            num_failed_steps=self._num_failed_steps,
            sleep_level=self._sleep_level,
            is_asleep=self._sleep_level > 0,
        )

    def prepare(self, request: EngineRequest) -> None:
        self._grammars.prepare(request.grammar, request.eos_token_ids)

    def add(self, request: EngineRequest) -> None:
        if request.request_id in self._waiting or request.request_id in self._running:
            raise ValueError(f"request id {request.request_id!r} belongs to an unfinished request")
        self._waiting[request.request_id] = request

    def abort(self, request_id: str) -> None:
        self._running.pop(request_id, None)
        self._waiting.pop(request_id, None)

    @torch.inference_mode()
    def step(self) -> Sequence[EngineOutput]:
        if self._sleep_level:
            return []
        self._num_steps += 1
        self._num_step_tokens = 0
        self._admit()
        self._step_failed = False
        outputs = [self._advance(run) for run in self._running.values()]
        self._num_failed_steps += self._step_failed
        self._num_step_tokens += sum(len(output.new_token_ids) for output in outputs)
        for output in outputs:
            if output.finish_reason is not None:
                del self._running[output.request_id]
        return outputs

    def reset_prefix_cache(self) -> None:
        """Nothing is kept for other requests."""

    def sleep(self, level: int = 1) -> None:
        self._sleep_level = self._sleep_level or level
        for run in self._running.values():
            run.kv = None
        if level >= 2 and hasattr(self, "model"):
            del self.model
        torch.cuda.empty_cache()  # does nothing where there is no GPU

    def wake_up(self) -> None:
        if not hasattr(self, "model"):
            self.model, _ = self._load_model(None)
        self._sleep_level = 0

    def replace_weights(self, path: str) -> None:
        before = self._loaded
        self._loaded = msgspec.structs.replace(before, files=ModelFiles(path=path), load_format="safetensors")
        try:
            self.model, _ = self._load_model(None)
        except BaseException:
            self._loaded = before
            raise
        for run in self._running.values():
            run.kv = None

    @torch.inference_mode()
    def trace(self, token_ids: list[int]) -> list[torch.Tensor]:
        stream: list[torch.Tensor] = []
        ids = torch.tensor(token_ids, device=self.model.device)
        x = self.model.forward(ids, self.model.new_cache(), lambda x: stream.append(x.float().cpu()))
        return [*stream, self.model.logits(x).cpu()]

    def close(self) -> None:
        self._waiting.clear()
        self._running.clear()
        if hasattr(self, "model"):
            del self.model
            torch.cuda.empty_cache()  # does nothing where there is no GPU

    def _load_model(self, on_progress: Callable[[float], None] | None) -> tuple[Model, int]:
        """The model, and how many parameters it has."""
        weights = load_weights(self._loaded, self._device, on_progress)
        num_parameters = sum(w.numel() for w in weights.values())
        return Model(self.config.model, weights, self.config.max_model_len), num_parameters

    def _admit(self) -> None:
        """Let requests in, in order of arrival, while the whole of each fits beside those that run.

        One that is alone runs in any case: if it does not fit after all, it fails alone.
        """
        reserved = sum(_reservation(run.request) for run in self._running.values())
        while self._waiting:
            request = next(iter(self._waiting.values()))
            reserved += _reservation(request)
            if self._running and reserved > self._info.kv_cache_tokens:
                return
            del self._waiting[request.request_id]
            matcher = self._grammars.matcher(request.grammar, request.eos_token_ids) if request.grammar else None
            self._running[request.request_id] = _Running(request, matcher)

    def _advance(self, run: _Running) -> EngineOutput:
        """One token further; whatever goes wrong ends this request and no other."""
        try:
            if run.kv is None:
                run.kv = self.model.new_cache()
                x, prompt_logprobs = self._prefill(run, run.kv)
            else:
                x, prompt_logprobs = self._forward(run.output_ids[-1:], run.kv), None
            if run.request.max_tokens == 0:
                return _output(run, finish_reason="length", prompt_logprobs=prompt_logprobs)
            logits = self.model.logits(x[-1:])[0]  # [V]
            follows = None if run.matcher is None else _unpacked(run.matcher.bits(), logits)
            sampled = sample(logits, run.request, run.output_ids, self.config.logprobs_mode, follows)
        except SamplingError as error:
            return _output(run, finish_reason="error", error=str(error))
        except Exception as error:
            logger.exception("request %s failed", run.request.request_id)
            self._step_failed = True
            return _output(run, finish_reason="error", error=f"the engine failed on this request: {_name(error)}")
        run.output_ids.append(sampled.token_id)
        if run.matcher is not None:
            run.matcher.accept([sampled.token_id])
        finish_reason, stop_token_id = self._finish(run)
        return _output(run, sampled, finish_reason, stop_token_id, prompt_logprobs)

    def _prefill(self, run: _Running, kv: KVCache) -> tuple[torch.Tensor, list[TokenLogprobs] | None]:
        """Compute all tokens so far: the hidden state of the last [1, D], and at first the reports asked for."""
        ids = [*run.request.prompt_token_ids, *run.output_ids]
        num_top = None if run.output_ids else run.request.sampling.prompt_logprobs
        reports: list[TokenLogprobs] = []
        self._num_step_tokens += len(run.request.prompt_token_ids)
        for start in range(0, len(ids), PREFILL_TOKENS):
            x = self._forward(ids[start : start + PREFILL_TOKENS], kv)  # [T, D]
            if num_top is not None:
                reports += self._prompt_logprobs(x, ids[start + 1 : start + 1 + len(x)], num_top)
        return x[-1:], None if num_top is None else reports

    def _prompt_logprobs(self, x: torch.Tensor, next_ids: list[int], num_top: int) -> list[TokenLogprobs]:
        """Reports on the tokens that follow the hidden states ``x`` [T, D], always made of the raw logits.

        A few rows at a time, because the logits of a long prompt would need more memory than the model.
        """
        reports = []
        rows = max(1, MAX_LOGITS // self.config.model.vocab_size)
        for start in range(0, len(next_ids), rows):
            chosen = next_ids[start : start + rows]
            logits = self.model.logits(x[start : start + len(chosen)])  # [T, V]
            check_logits(logits)
            if self.config.logprobs_mode.endswith("_logprobs"):
                logits = torch.log_softmax(logits, dim=-1)
            reports += [report(row, i, num_top) for row, i in zip(logits, chosen, strict=True)]
        return reports

    def _forward(self, ids: list[int], kv: KVCache) -> torch.Tensor:
        return self.model.forward(torch.tensor(ids, device=self.model.device), kv)

    def _finish(self, run: _Running) -> tuple[FinishReason | None, int | None]:
        """Whether the latest token was the last, and the stop token that it may be."""
        request, token_id = run.request, run.output_ids[-1]
        if token_id in request.eos_token_ids:
            return "stop", None
        if token_id in request.sampling.stop_token_ids:
            return "stop", token_id
        num_tokens = len(request.prompt_token_ids) + len(run.output_ids)
        if len(run.output_ids) >= request.max_tokens or num_tokens >= self.config.max_model_len:
            return "length", None
        return None, None

    def _kv_budget(self) -> int:
        """Tokens that all caches together may hold.

        What ``kv_cache_memory_bytes`` says; else what fits into a share of the free memory, the rest being left for
        activations and for the copy that a growing cache makes, but no more than a fixed number of full-length
        requests, because admitting more would only slow them all down.
        """
        per_token = bytes_per_token(self.config.model, self.model.dtype)
        if (given := self.config.scheduler.kv_cache_memory_bytes) is not None:
            return max(1, given // per_token)
        most = MAX_FULL_REQUESTS * self.config.max_model_len
        free = available_memory(self.model.device)
        if free is None:
            return most
        return max(1, min(most, int(free * KV_MEMORY_SHARE) // per_token))


def _say_what_changes_nothing(options: SchedulerOptions) -> None:
    """Options about how requests share steps: an engine that runs them one by one gives the same answers."""
    default = SchedulerOptions()
    for name in SchedulerOptions.__struct_fields__:
        if name != "kv_cache_memory_bytes" and getattr(options, name) != getattr(default, name):
            option = name.replace("_", "-")
            logger.warning("--%s changes nothing: the reference engine runs its requests one by one", option)


def _unpacked(bits: bytes, logits: torch.Tensor) -> torch.Tensor:
    """Bits of a mask as bool [V]: bit v % 8 of byte v // 8 is token v's."""
    columns = torch.frombuffer(bytearray(bits), dtype=torch.uint8)[:, None] >> torch.arange(8) & 1  # [V / 8, 8]
    return columns.flatten()[: len(logits)].bool().to(logits.device)


def _reservation(request: EngineRequest) -> int:
    return len(request.prompt_token_ids) + request.max_tokens


def _output(
    run: _Running,
    sampled: Sample | None = None,
    finish_reason: FinishReason | None = None,
    stop_token_id: int | None = None,
    prompt_logprobs: list[TokenLogprobs] | None = None,
    error: str | None = None,
) -> EngineOutput:
    return EngineOutput(
        request_id=run.request.request_id,
        new_token_ids=[] if sampled is None else [sampled.token_id],
        logprobs=None if sampled is None or sampled.logprobs is None else LogprobColumns.of([sampled.logprobs]),
        prompt_logprobs=None if prompt_logprobs is None else LogprobColumns.of(prompt_logprobs),
        finish_reason=finish_reason,
        stop_token_id=stop_token_id,
        error=error,
        scheduled_time=run.scheduled_time,
    )


def _name(error: Exception) -> str:
    return "out of memory" if isinstance(error, MemoryError | torch.OutOfMemoryError) else type(error).__name__
