"""Options of a model, and the resolved configuration an engine takes.

``ModelOptions`` is what a user said; ``resolve`` reads the model's own files and returns ``EngineConfig``, in which
nothing is left to decide. Both are frozen; nothing changes them later.
"""

from __future__ import annotations

import logging
import re
import reprlib
from fractions import Fraction
from typing import Any

import msgspec

from tandem.errors import CheckpointError, ConfigError, RequestError
from tandem.models.families import read_model_config, read_token_ids
from tandem.models.hub import ModelFiles, locate
from tandem.models.model_config import ModelConfig
from tandem.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

DTYPES = ("float32", "float16", "bfloat16")
DTYPE_ALIASES = {"half": "float16", "float": "float32", "fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
LOAD_FORMATS = ("auto", "safetensors", "dummy")
LOGITS_MODES = ("raw_logits", "processed_logits")
LOGPROBS_MODES = ("raw_logprobs", "processed_logprobs", *LOGITS_MODES)
GENERATION_CONFIG = "generation_config.json"
NEUTRAL_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


MAX_COUNTS = {
    "max_num_seqs": 2**16,
    "max_num_batched_tokens": 2**31 - 1,
    "block_size": 2**16,
    "kv_cache_memory_bytes": 2**48,
}
NEUTRAL_GPU_SHARE = 0.9
SCHEDULING_POLICIES = ("fcfs", "priority")
NEEDS_SCHEDULER = ("gpu_memory_utilization", "scheduling_policy", "speculative_config")


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(option, f"{value!r} is not one of {', '.join(known)}")


SPECULATIVE_METHODS = ("ngram",)
EXECUTOR_BACKENDS = ("uni", "mp")


class SpeculativeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are guessed that one step then verifies together; answers stay the same.

    Attributes:
        method: ``ngram`` looks the latest tokens up in the prompt and the answer and guesses what followed there.
        num_speculative_tokens: guessed at once, at most.
        prompt_lookup_min, prompt_lookup_max: how many of the latest tokens are looked up, the most first.
    """

    method: str
    num_speculative_tokens: int
    prompt_lookup_min: int = 2
    prompt_lookup_max: int = 4

    def __post_init__(self) -> None:
        option = "--speculative-config"
        _one_of(option, self.method, SPECULATIVE_METHODS)
        if not 1 <= self.num_speculative_tokens <= 64:
            raise ConfigError(option, f"num_speculative_tokens must be in [1, 64], got {self.num_speculative_tokens}")
        if not 1 <= self.prompt_lookup_min <= self.prompt_lookup_max <= 16:
            sizes = f"{self.prompt_lookup_min} and {self.prompt_lookup_max}"
            raise ConfigError(option, f"1 ≤ prompt_lookup_min ≤ prompt_lookup_max ≤ 16 is not so of {sizes}")


class SchedulerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine that runs many requests at once shares its steps and its cache.

    Attributes:
        max_num_seqs: requests running at once.
        max_num_batched_tokens: tokens computed in one step.
        block_size: tokens in a block of the KV cache.
        enable_chunked_prefill: a prompt may be computed over several steps.
        enable_prefix_caching: what is computed for one request serves others that begin alike.
        kv_cache_memory_bytes: size of the KV cache; None takes a share of what is free.
        gpu_memory_utilization: share of the GPU's memory, in (0, 1], that weights, cache and steps may take together;
            None is 0.9, and 0.9 becomes None. Any other is an error where there is no GPU.
        enforce_eager: no CUDA graphs and no CPU kernels in C++: less memory and a faster start, slower decoding.
        scheduling_policy: ``fcfs``, or ``priority`` (lower values of a request's ``priority`` first).
        speculative_config: how draft tokens are proposed; None proposes none.
        distributed_executor_backend: ``uni`` runs the model in the engine's process, ``mp`` in one of its own.
    """

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float | None = None
    enforce_eager: bool = False
    scheduling_policy: str = "fcfs"
    speculative_config: SpeculativeConfig | None = None
    distributed_executor_backend: str = "uni"

    def __post_init__(self) -> None:
        for name, most in MAX_COUNTS.items():
            value = getattr(self, name)
            if value is None and name == "kv_cache_memory_bytes":
                continue
            if type(value) is not int or value < 1:
                raise ConfigError(_flag(name), f"must be an integer of at least 1, got {reprlib.repr(value)}")
            if value > most:
                raise ConfigError(_flag(name), f"must be at most {most}, got {value}")
        if self.gpu_memory_utilization == NEUTRAL_GPU_SHARE:  # asked for or not, it is the same
            msgspec.structs.force_setattr(self, "gpu_memory_utilization", None)
        share = self.gpu_memory_utilization
        if share is not None and not 0 < share <= 1:
            raise ConfigError("--gpu-memory-utilization", f"must be above 0 and at most 1, got {share}")
        if share is not None and self.kv_cache_memory_bytes is not None:
            raise ConfigError("--gpu-memory-utilization", "--kv-cache-memory-bytes says the same; give one of them")
        _one_of("--scheduling-policy", self.scheduling_policy, SCHEDULING_POLICIES)
        _one_of("--distributed-executor-backend", self.distributed_executor_backend, EXECUTOR_BACKENDS)


class ModelOptions(SchedulerOptions, frozen=True, kw_only=True):
    """What a user may say of the model and the engine; each field is the option of the same name.

    The inherited ones are for the optimized engine. The reference engine has no scheduler: it refuses those of
    ``NEEDS_SCHEDULER``, honours the size of the cache, and says that the others change nothing.

    Attributes:
        model: a directory, a hub id, or ``""`` for the bundled demonstration model.
        tokenizer: where the tokenizer's files are, if not with the model.
        revision: branch, tag or commit on the hub.
        download_dir: where the hub's files are cached, if not in the usual place.
        backend: a name of the registry, or ``auto``.
        dtype: of weights and activations; ``auto`` takes the checkpoint's.
        max_model_len: a number, ``8k``, or ``auto`` for the model's own limit.
        load_format: ``auto`` and ``safetensors`` read weights; ``dummy`` generates random ones.
        hf_overrides: replaces keys of the model's ``config.json`` (nested objects are merged).
        generation_config: ``auto`` takes sampling defaults from the model; ``vllm`` or ``none`` takes none; else a
            directory.
        seed: of dummy weights, and of the seeds generated for requests that bring none.
        max_logprobs: how many log-probabilities a request may ask for; -1 for no limit.
        logprobs_mode: see the definition in ``SamplingParams``.
        trust_remote_code: accepted as False only: Tandem runs no code from checkpoints.
    """

    model: str = ""
    tokenizer: str | None = None
    revision: str | None = None
    download_dir: str | None = None
    backend: str = "auto"
    dtype: str = "auto"
    max_model_len: int | str = "auto"
    load_format: str = "auto"
    hf_overrides: dict[str, Any] = msgspec.field(default_factory=dict)
    generation_config: str = "auto"
    seed: int = 0
    max_logprobs: int = 20
    logprobs_mode: str = "raw_logprobs"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in NEEDS_SCHEDULER if self.backend == "reference" else ():
            if getattr(self, name) != getattr(SchedulerOptions(), name):
                raise ConfigError(
                    _flag(name), "the reference engine runs its requests one by one, without a scheduler"
                )
        dtype = DTYPE_ALIASES.get(self.dtype, self.dtype)
        if dtype not in ("auto", *DTYPES):
            raise ConfigError("--dtype", f"{self.dtype!r} is not one of auto, {', '.join(DTYPES)}")
        _one_of("--load-format", self.load_format, LOAD_FORMATS)
        _one_of("--logprobs-mode", self.logprobs_mode, LOGPROBS_MODES)
        if type(self.max_logprobs) is not int or self.max_logprobs < -1:
            got = reprlib.repr(self.max_logprobs)
            raise ConfigError("--max-logprobs", f"must be an integer of at least 0, or -1 for no limit, got {got}")
        if type(self.seed) is not int or not -(2**63) <= self.seed < 2**63:
            raise ConfigError("--seed", f"must be an integer of 64 bits, got {reprlib.repr(self.seed)}")
        if not isinstance(self.hf_overrides, dict):
            raise ConfigError("--hf-overrides", f"must be an object, got {reprlib.repr(self.hf_overrides)}")
        if self.trust_remote_code:
            raise ConfigError("--trust-remote-code", "Tandem never runs code from a checkpoint; leave the option out")
        msgspec.structs.force_setattr(self, "dtype", dtype)
        msgspec.structs.force_setattr(self, "max_model_len", parse_length("--max-model-len", self.max_model_len))

    @property
    def scheduler(self) -> SchedulerOptions:
        """The inherited part alone."""
        return SchedulerOptions(**{name: getattr(self, name) for name in SchedulerOptions.__struct_fields__})


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All an engine needs to build itself. Plain data: it travels to the engine's process as msgpack.

    Attributes:
        files: where the checkpoint's files are.
        model: the architecture as data.
        backend: ``auto`` or a name of the registry.
        dtype: one of ``DTYPES``.
        max_model_len: prompt and output tokens of one request at most.
        tokenizer_path: directory with the tokenizer's files, which only grammars need.
        load_format, seed, logprobs_mode: as in ``ModelOptions``.
        scheduler: for engines that have one.
    """

    files: ModelFiles
    model: ModelConfig
    backend: str
    dtype: str
    max_model_len: int
    tokenizer_path: str = ""
    load_format: str = "auto"
    seed: int = 0
    logprobs_mode: str = "raw_logprobs"
    scheduler: SchedulerOptions = SchedulerOptions()


class ResolvedModel(msgspec.Struct, frozen=True, kw_only=True):
    """An ``EngineConfig``, and what the front process needs beside it.

    Attributes:
        engine: for the engine.
        tokenizer_path: directory with the tokenizer's files.
        eos_token_ids: tokens that end an answer.
        default_sampling: the model's recommended sampling values, for requests that leave them out.
        max_logprobs: as in ``ModelOptions``.
    """

    engine: EngineConfig
    tokenizer_path: str
    eos_token_ids: tuple[int, ...]
    default_sampling: dict[str, Any]
    max_logprobs: int


def resolve(options: ModelOptions) -> ResolvedModel:
    """Read the model's configuration files (from disk or the hub, never weights) and decide all that is open.

    Raises:
        ConfigError: an option contradicts the model.
        CheckpointError: the files are missing or describe an unknown architecture.
    """
    files = locate(options.model, options.revision, options.download_dir)
    raw = _merge(files.read_json("config.json", required=True), options.hf_overrides)
    model = read_model_config(raw)
    generation = _generation_config(files, options)
    tokenizer = files if options.tokenizer is None else locate(options.tokenizer, None, options.download_dir)
    engine = EngineConfig(
        files=files,
        model=model,
        backend=options.backend,
        dtype=_resolve_dtype(options.dtype, model),
        max_model_len=_resolve_length(options.max_model_len, model),
        tokenizer_path=tokenizer.path,
        load_format=options.load_format,
        seed=options.seed,
        logprobs_mode=options.logprobs_mode,
        scheduler=options.scheduler,
    )
    return ResolvedModel(
        engine=engine,
        tokenizer_path=tokenizer.path,
        eos_token_ids=_eos_token_ids(generation, model),
        default_sampling=_default_sampling(generation),
        max_logprobs=options.max_logprobs,
    )


def parse_length(option: str, text: int | str) -> int | str:
    """Read ``8192``, ``8k`` (8,000), ``8K`` (8,192), ``1m``, ``1M``, or ``auto``, which may be written -1.

    Raises:
        ConfigError: it is none of these, or not positive.
    """
    if text in ("auto", "-1", -1):
        return "auto"
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)([kKmM]?)", str(text).strip())
    scale = {"": 1, "k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2}
    length = int(Fraction(match[1]) * scale[match[2]]) if match else 0
    if length < 1:
        raise ConfigError(option, f"{text!r} is not a positive number such as 8192 or 8k, nor auto")
    return length


def _resolve_dtype(dtype: str, model: ModelConfig) -> str:
    if dtype != "auto":
        return dtype
    return model.dtype if model.dtype in DTYPES else "float32"


def _resolve_length(asked: int | str, model: ModelConfig) -> int:
    limit = model.max_model_len
    if asked == "auto":
        return limit
    length = int(asked)
    if length > limit:
        raise ConfigError("--max-model-len", f"{length} is above the {limit} tokens this model was made for")
    return length


def _generation_config(files: ModelFiles, options: ModelOptions) -> dict[str, Any]:
    source = options.generation_config
    own = files.read_json(GENERATION_CONFIG)
    if source == "auto":
        return own
    if source in ("vllm", "none"):
        # the end-of-sequence tokens are part of the model, not a matter of taste
        return {k: own[k] for k in ("eos_token_id",) if k in own}
    try:
        return locate(source, None, None).read_json(GENERATION_CONFIG, required=True)
    except CheckpointError as error:
        raise ConfigError("--generation-config", str(error)) from error


def _eos_token_ids(generation: dict[str, Any], model: ModelConfig) -> tuple[int, ...]:
    named = model.eos_token_ids
    if generation.get("eos_token_id") is not None:
        named = read_token_ids(generation["eos_token_id"], f"{GENERATION_CONFIG}: eos_token_id")
    unknown = [token_id for token_id in named if token_id >= model.vocab_size]
    if unknown:
        logger.warning("eos_token_id: %s is left out: the vocabulary has %d tokens", unknown, model.vocab_size)
    return tuple(token_id for token_id in named if token_id < model.vocab_size)


def _default_sampling(generation: dict[str, Any]) -> dict[str, Any]:
    given = {name: generation[name] for name in NEUTRAL_SAMPLING if generation.get(name) is not None}
    try:
        sampling = SamplingParams(**given)
    except RequestError as error:
        raise CheckpointError(f"{GENERATION_CONFIG}: {error}") from error
    return {name: getattr(sampling, name) for name in given}


def _merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in overrides.items():
        both_nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both_nested else value
    return merged


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
