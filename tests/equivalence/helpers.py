"""Engines side by side on the same tiny models, and requests to send to both."""

from __future__ import annotations

import atexit
import functools
import random
import shutil
import string
import tempfile
from importlib.util import find_spec
from typing import Any

import msgspec
import torch
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from optimized import OptimizedEngine
from optimized.kernels.native import Build, Library
from optimized.runner.cuda_graphs import Capture, CudaCapture
from optimized.runner.local import LocalRunner
from optimized.runner.remote import RemoteRunner
from optimized.runner.runner import Runner
from reference import ReferenceEngine
from tandem.config import EngineConfig, ModelOptions, SchedulerOptions, SpeculativeConfig, resolve
from tandem.engine import EngineRequest
from tandem.grammar.sources import grammar_of
from tandem.sampling_params import SamplingParams
from tandem.structured_outputs import StructuredOutputsParams
from tests.equivalence.answers import Answer, run
from tests.equivalence.comparison import assert_same
from tests.reference.families import VOCAB, build, save

TOKEN_BYTES = 2 * 2 * 2 * 8 * 4  # that a token of the small Llama takes in the cache
RUNNERS = ("twins", "kernels", "gpu", "process")
Kind = str  # one of them

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


@functools.cache
def cpu_kernels() -> Library:
    """The kernels written in C++, if something can build them here."""
    library = Library()
    Build(library).run()
    return library


def create_runner(config: EngineConfig, kind: Kind) -> Runner:
    """One of the ways to carry plans out.

    ``twins`` and ``kernels`` compute as on a CPU, without and with a compiler. ``gpu`` lays steps out as a GPU needs
    them, captures decodes (or only lays them out so, where there is no GPU) and begins a step before the one before
    is collected. ``process`` is another process.
    """
    if kind == "process":
        return RemoteRunner(config)
    if kind == "gpu":
        return LocalRunner(config, num_steps_ahead=1, capture=capture_in_tests(), library=Library())
    return LocalRunner(config, library=cpu_kernels() if kind == "kernels" else Library())


def capture_in_tests() -> Capture:
    """CUDA graphs where there is a GPU; else a computation stays as it is."""
    return CudaCapture() if torch.cuda.is_available() else lambda forward: forward


def create_optimized(config: EngineConfig, kind: Kind = "twins", **scheduler: Any) -> OptimizedEngine:
    """An engine with one of the runners."""
    config = msgspec.structs.replace(config, scheduler=SchedulerOptions(**scheduler))
    return OptimizedEngine(config, runner=create_runner(config, kind))


def pair(
    model: Any, dtype: str = "float32", kind: Kind = "twins", **scheduler: Any
) -> tuple[EngineConfig, ReferenceEngine, OptimizedEngine]:
    """Both engines on a model that transformers has built."""
    with tempfile.TemporaryDirectory() as directory:
        save(model, directory)
        config = resolve(ModelOptions(model=directory, dtype=dtype)).engine
        return config, ReferenceEngine(config), create_optimized(config, kind, **scheduler)


@functools.cache
def llama_config() -> EngineConfig:
    """A small model on disk whose random answers vary; it stays for as long as the tests run."""
    directory = tempfile.mkdtemp(prefix="tandem-tests-")
    atexit.register(shutil.rmtree, directory)
    save(build("llama", LLAMA, seed=4), directory)
    write_tokenizer(directory)
    return resolve(ModelOptions(model=directory, dtype="float32")).engine


def write_tokenizer(directory: str) -> None:
    """Some special tokens, most of ASCII, and a few tokens of several characters."""
    characters = string.ascii_lowercase + string.digits + ' {}[]":,.-_+*/\\\n'
    merges = [("t", "r"), ("tr", "u"), ("tru", "e"), ("{", '"'), ('"', ":"), ("1", "2"), ("a", "b"), ("ab", "a")]
    texts = [f"<s{i}>" for i in range(10)] + [*characters, *map("".join, merges)]
    assert len(texts) <= VOCAB
    vocabulary = {text: i for i, text in enumerate(texts)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in texts[:10]])
    tokenizer.save(f"{directory}/tokenizer.json")


# A machine that is lent with a GPU may lack llguidance, and then answers follow none.
GRAMMARS = [
    grammar_of(StructuredOutputsParams(**form))
    for form in (
        {"json": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["true", "ab"]}}}},
        {"json": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}},
        {"regex": "[0-9]{1,2}(ab|ba)*-(true|12){2,4}"},
        {"choice": ["abab", "aba", "true 12 true"]},
        {"grammar": 'start: text "12" "true"\ntext[max_tokens=4]: /[a-c]*/'},
        {"grammar": 'start: "{" pair* "}"\npair: /[a-c]/ ":" (pair | /[0-9]/) ","'},
    )
    if find_spec("llguidance")
]


@functools.cache
def llama_reference() -> ReferenceEngine:
    """The reference engine on it."""
    return ReferenceEngine(llama_config())


def llama_optimized(kind: Kind = "twins", num_tokens: int | None = None, **scheduler: Any) -> OptimizedEngine:
    """A new optimized engine on it, with room for so many tokens."""
    size = None if num_tokens is None else num_tokens * TOKEN_BYTES
    return create_optimized(llama_config(), kind, kv_cache_memory_bytes=size, **scheduler)


@torch.inference_mode()
def poison(engine: OptimizedEngine) -> None:
    """Fill whatever no sequence has written with NaN, which spoils all that reads it; another process's is left."""
    if not isinstance(engine.runner, LocalRunner):
        return
    scheduler = engine.scheduler
    size = scheduler.config.block_size
    written = {block: size for block in scheduler.pool.cached_blocks}
    for sequence in scheduler.running:
        num_written = sequence.num_computed_tokens + sequence.num_drafts
        for place, block in enumerate(sequence.block_ids):
            written[block] = max(written.get(block, 0), min(size, max(0, num_written - place * size)))
    spoiled = torch.ones(scheduler.pool.num_blocks, size, dtype=torch.bool)
    for block, count in written.items():
        spoiled[block, :count] = False
    for layer in engine.runner.cache.layers:
        for x in layer.tensors:
            x.masked_fill_(spoiled[:, None, :, None].to(x.device), float("nan"))


def run_over_poison(engine: OptimizedEngine, requests: list[EngineRequest]) -> dict[str, Answer]:
    """Send all at once and step to the end, spoiling before each step what it must not read."""
    answers = {request.request_id: Answer() for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_unfinished:
        poison(engine)
        for output in engine.step():
            answers[output.request_id].take(output)
        engine.scheduler.check_integrity()
    return answers


def assert_as_reference(requests: list[EngineRequest], answers: dict[str, Answer]) -> None:
    """Each is answered as the reference answers it alone."""
    for request in requests:
        want = run(llama_reference(), [request])[request.request_id]
        assert_same(llama_reference(), request, answers[request.request_id], want)


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
        logprob_token_ids=sometimes(None, (61, 5, 9, 30), (40,)),
        prompt_logprobs=sometimes(None, 0, 2),
    )


@st.composite
def engine_requests(draw: st.DrawFn, max_prompt: int = 40, max_output: int = 24) -> EngineRequest:
    """Prompts that often begin alike."""
    shared = random.Random(draw(st.integers(0, 1))).choices(range(VOCAB), k=max_prompt)
    prompt = shared[: draw(st.integers(0, max_prompt - 1))] + draw(st.lists(token_ids, min_size=1, max_size=3))
    sampling = draw(sampling_params())
    grammar = draw(st.sampled_from(["", "", *GRAMMARS]))
    return EngineRequest(
        request_id=f"{draw(st.uuids())}",
        prompt_token_ids=prompt[:max_prompt],
        sampling=sampling,
        max_tokens=draw(st.integers(sampling.min_tokens, max_output)),
        seed=draw(st.integers(0, 2**64 - 1)),
        choice_index=draw(st.integers(0, 2)),
        eos_token_ids=draw(st.sampled_from([(7,), (7, 8, 9)] if grammar else [(), (7,), (7, 8, 9)])),
        grammar=grammar,
        bad_words_token_ids=draw(st.sampled_from([(), (), ((11,), (12, 13))])),
        priority=draw(st.integers(0, 2)),
        cache_salt=draw(st.sampled_from(["", "", "a"])),
        group=draw(st.sampled_from(["", "", "g", "h"])),
    )


SPECULATIVE = [
    SpeculativeConfig(method="ngram", num_speculative_tokens=n, prompt_lookup_min=1, prompt_lookup_max=2)
    for n in (1, 4)
]
scheduler_options = st.fixed_dictionaries(
    {
        "max_num_seqs": st.sampled_from([1, 2, 5, 8]),
        "max_num_batched_tokens": st.sampled_from([1, 3, 17, 64, 512]),
        "block_size": st.sampled_from([1, 3, 8, 16]),
        "enable_chunked_prefill": st.booleans(),
        "enable_prefix_caching": st.booleans(),
        "scheduling_policy": st.sampled_from(["fcfs", "priority"]),
        "num_tokens": st.sampled_from([None, 80, 160]),
        "speculative_config": st.sampled_from([None, None, *SPECULATIVE]),
    }
)
