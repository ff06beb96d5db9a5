"""Engines side by side on the same tiny models, and requests to send to both."""

from __future__ import annotations

import atexit
import functools
import random
import shutil
import tempfile
from typing import Any

import msgspec
from hypothesis import strategies as st

from optimized import OptimizedEngine
from optimized.kernels import native
from reference import ReferenceEngine
from tandem.config import EngineConfig, ModelOptions, SchedulerOptions, resolve
from tandem.engine import Engine, EngineOutput, EngineRequest, TokenLogprobs
from tandem.sampling_params import SamplingParams
from tests.reference.families import VOCAB, build, save

AS_WRITTEN: dict[str, Any] = {"enforce_eager": True}  # a test says itself whether kernels or twins run

LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def pair(
    model: Any, dtype: str = "float32", **scheduler: Any
) -> tuple[EngineConfig, ReferenceEngine, OptimizedEngine]:
    """Both engines on a model that transformers has built."""
    with tempfile.TemporaryDirectory() as directory:
        save(model, directory)
        config = resolve(ModelOptions(model=directory, dtype=dtype)).engine
        config = msgspec.structs.replace(config, scheduler=SchedulerOptions(**(AS_WRITTEN | scheduler)))
        return config, ReferenceEngine(config), OptimizedEngine(config)


@functools.cache
def llama_config() -> EngineConfig:
    """A small model on disk whose random answers vary; it stays for as long as the tests run."""
    directory = tempfile.mkdtemp(prefix="tandem-tests-")
    atexit.register(shutil.rmtree, directory)
    save(build("llama", LLAMA, seed=4), directory)
    return resolve(ModelOptions(model=directory, dtype="float32")).engine


@functools.cache
def llama_reference() -> ReferenceEngine:
    """The reference engine on it."""
    return ReferenceEngine(llama_config())


def llama_optimized(**scheduler: Any) -> OptimizedEngine:
    """A new optimized engine on it."""
    return OptimizedEngine(
        msgspec.structs.replace(llama_config(), scheduler=SchedulerOptions(**(AS_WRITTEN | scheduler)))
    )


def use_kernels(wanted: bool) -> None:
    """On a CPU this process runs the kernels written in C++ from now on, if something can build them, or their twins.

    Engines made later undo it: those here ask for the twins.
    """
    native.forget()
    if wanted:
        native.Build().run()


class Answer(msgspec.Struct):
    """All that an engine said of one request."""

    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] = []
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_token_id: int | None = None
    error: str | None = None

    def take(self, output: EngineOutput) -> None:
        assert self.finish_reason is None, "an output after the last"
        self.token_ids += output.new_token_ids
        self.logprobs += output.logprobs or []
        if output.prompt_logprobs is not None:
            assert self.prompt_logprobs is None, "the prompt was reported twice"
            self.prompt_logprobs = list(output.prompt_logprobs)
        self.finish_reason, self.stop_token_id = output.finish_reason, output.stop_token_id
        self.error = output.error


def run(engine: Engine, requests: list[EngineRequest]) -> dict[str, Answer]:
    """Send all at once, step to the end."""
    answers = {request.request_id: Answer() for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_unfinished:
        for output in engine.step():
            answers[output.request_id].take(output)
    return answers


def poison(engine: OptimizedEngine) -> None:
    """Fill all of the cache that is free with numbers that spoil whatever reads them.

    Finite ones: attention multiplies what it must not see by zero, and zero times them is zero.
    """
    cache, scheduler = engine.cache, engine.scheduler
    used = {sequence.row: sequence.num_computed_tokens for sequence in scheduler.running}
    for row in range(scheduler.config.max_num_seqs):
        cache._rows[:, :, row, :, used.get(row, 0) :] = 1e4
    findable = set(scheduler.pool._cached.values())
    for block in range(len(cache._blocks)):
        if block not in findable:
            cache._blocks[block] = 1e4


token_ids = st.integers(0, VOCAB - 1)


@st.composite
def sampling_params(draw: st.DrawFn) -> SamplingParams:
    """Every parameter that engines read, neutral more often than not."""

    def sometimes(neutral: Any, *others: Any) -> Any:
        return draw(st.sampled_from([neutral, neutral, neutral, *others]))

    return SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.0, 0.5, 1.0, 1.5])),
        top_k=sometimes(0, 1, 5, VOCAB + 1),
        top_p=sometimes(1.0, 0.3, 0.9),
        min_p=sometimes(0.0, 0.02, 0.3),
        repetition_penalty=sometimes(1.0, 0.7, 1.4),
        frequency_penalty=sometimes(0.0, -0.5, 0.8),
        presence_penalty=sometimes(0.0, 0.6),
        min_tokens=sometimes(0, 3),
        stop_token_ids=sometimes((), (3, 14, 15)),
        logit_bias=sometimes(None, {5: 4.0, 6: -100.0}),
        allowed_token_ids=sometimes(None, list(range(10, 60))),
        logprobs=sometimes(None, 0, 3),
        prompt_logprobs=sometimes(None, 0, 2),
    )


@st.composite
def engine_requests(draw: st.DrawFn, max_prompt: int = 40, max_output: int = 24) -> EngineRequest:
    """Prompts that often begin alike."""
    shared = random.Random(draw(st.integers(0, 1))).choices(range(VOCAB), k=max_prompt)
    prompt = shared[: draw(st.integers(0, max_prompt - 1))] + draw(st.lists(token_ids, min_size=1, max_size=3))
    sampling = draw(sampling_params())
    return EngineRequest(
        request_id=f"{draw(st.uuids())}",
        prompt_token_ids=prompt[:max_prompt],
        sampling=sampling,
        max_tokens=draw(st.integers(sampling.min_tokens, max_output)),
        seed=draw(st.integers(0, 2**64 - 1)),
        choice_index=draw(st.integers(0, 2)),
        eos_token_ids=draw(st.sampled_from([(), (7,), (7, 8, 9)])),
        bad_words_token_ids=draw(st.sampled_from([(), (), ((11,), (12, 13))])),
        priority=draw(st.integers(0, 2)),
        cache_salt=draw(st.sampled_from(["", "", "a"])),
    )


scheduler_options = st.fixed_dictionaries(
    {
        "max_num_seqs": st.sampled_from([1, 2, 5, 8]),
        "max_num_batched_tokens": st.sampled_from([1, 3, 17, 64, 512]),
        "block_size": st.sampled_from([1, 3, 8, 16]),
        "enable_chunked_prefill": st.booleans(),
        "enable_prefix_caching": st.booleans(),
        "scheduling_policy": st.sampled_from(["fcfs", "priority"]),
        "kv_cache_memory_bytes": st.sampled_from([None, 40_000, 80_000]),
    }
)
