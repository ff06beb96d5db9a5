"""What becomes of each option of ``vllm serve``: the data that the parser and docs/options.md are both made from.

Those that ``tandem serve`` has are only named here.
"""

from __future__ import annotations

import argparse

from tandem.cli.foreign import Foreign, is_foreign, switches, values

OWN = """
    model tokenizer revision dtype max-model-len load-format hf-overrides generation-config seed max-logprobs
    logprobs-mode trust-remote-code download-dir enforce-eager max-num-seqs max-num-batched-tokens block-size
    kv-cache-memory-bytes gpu-memory-utilization enable-prefix-caching enable-chunked-prefill
    scheduling-policy speculative-config distributed-executor-backend host port uds api-key served-model-name
    chat-template chat-template-content-format trust-request-chat-template tool-call-parser reasoning-parser
    tool-parser-plugin
    reasoning-parser-plugin enable-auto-tool-choice response-role ssl-keyfile ssl-certfile ssl-ca-certs
    root-path allowed-origins allowed-methods allowed-headers allow-credentials enable-request-id-headers
    enable-log-requests disable-log-requests enable-log-outputs max-log-len disable-fastapi-docs
    uvicorn-log-level disable-uvicorn-access-log disable-access-log-for-endpoints shutdown-timeout
    disable-frontend-multiprocessing middleware enable-server-load-tracking disable-log-stats config
    enable-tokenizer-info-endpoint profiler-config
"""

_ONE_DEVICE = "the model runs on one device of one machine"
_ONE_SERVER = "one process answers requests, and one runs the engine"
_NO_MEDIA = "the models served here take text alone"
_NO_ADAPTERS = "adapters are not served"
_UNQUANTIZED = "weights and cache are in float32, float16 or bfloat16"
_OWN_KERNELS = "the kernels here are picked by device and type, and nothing is compiled by torch"
_CUDA_GRAPHS = "CUDA graphs are captured for the batch sizes that can occur; --enforce-eager does without"
_LOADING = "weights are read from safetensors, mapped into memory"
_IN_THE_MODEL = "the model's own files say it; --hf-overrides replaces keys of config.json"
_NO_MAMBA = "models with recurrent layers are not served"
_IN_MEMORY = "the cache stays on the model's device, and nothing is moved elsewhere"
_NOT_MEASURED = "this is not measured; docs/metrics.md lists what is"
_ONE_STEP = "the scheduler has one budget of tokens a step: --max-num-batched-tokens and --max-num-seqs"
_NO_CODE = "no code of others takes part in scheduling, sampling or the model"
_HTTP_LIMITS = "a request's head is limited to 64 KiB, whatever it holds"
_DRAFTS = "draft tokens are asked for by --speculative-config"

FOREIGN: tuple[Foreign, ...] = (
    *values(
        _ONE_DEVICE,
        """
        tensor-parallel-size -tp = 1
        pipeline-parallel-size -pp = 1
        data-parallel-size -dp = 1
        data-parallel-size-local -dpl = 1
        data-parallel-rank -dpn = 0
        data-parallel-start-rank -dpr = 0
        data-parallel-address -dpa
        data-parallel-rpc-port -dpp
        data-parallel-backend -dpb = mp
        data-parallel-supervisor-port
        prefill-context-parallel-size -pcp = 1
        decode-context-parallel-size -dcp = 1
        cp-kv-cache-interleave-size = 1
        dcp-kv-cache-interleave-size = 1
        dcp-comm-backend
        nnodes -n = 1
        node-rank -r = 0
        master-addr
        master-port
        max-parallel-loading-workers
        all2all-backend
        eplb-config
        expert-placement-strategy = linear
        ubatch-size = 0
        dbo-decode-token-threshold
        dbo-prefill-token-threshold
        distributed-timeout-seconds
        cpu-distributed-timeout-seconds
        dp-supervisor-probe-failure-threshold
        dp-supervisor-probe-interval-s
        dp-supervisor-probe-timeout-s
        device = auto
        device-ids
        numa-bind-cpus
        numa-bind-nodes
        worker-cls = auto
        worker-extension-cls
        """,
    ),
    *switches(
        _ONE_DEVICE,
        """
        data-parallel-hybrid-lb -dph data-parallel-external-lb -dpe data-parallel-multi-port-external-lb
        enable-expert-parallel -ep enable-eplb enable-dbo enable-elastic-ep enable-ep-weight-filter numa-bind
        disable-nccl-for-dp-synchronization ray-workers-use-nsight
        """,
    ),
    *switches("there is nothing to reduce between devices", "disable-custom-all-reduce", "true"),
    *values(_ONE_SERVER, "api-server-count -asc = 1\nrenderer-num-workers = 1"),
    *switches(f"{_ONE_SERVER}, and neither runs without the other", "headless"),
    *switches("the server speaks HTTP", "grpc tokens-only"),
    *switches("there is one engine, whose statistics are all there are", "aggregate-engine-logging"),
    *switches("environment variables are not checked", "fail-on-environ-validation"),
    *values(
        _UNQUANTIZED,
        """
        quantization -q = none None
        quantization-config
        quantization-param-path
        kv-cache-dtype = auto
        kv-cache-dtype-skip-layers
        override-attention-dtype
        """,
    ),
    *switches(_UNQUANTIZED, "calculate-kv-scales allow-deprecated-quantization"),
    *values(
        _NO_ADAPTERS,
        """
        lora-modules
        max-loras = 1
        max-lora-rank = 16
        max-cpu-loras
        lora-dtype = auto
        lora-extra-vocab-size
        lora-target-modules
        long-lora-scaling-factors
        default-mm-loras
        qlora-adapter-name-or-path
        prompt-adapters
        max-prompt-adapters
        max-prompt-adapter-token
        """,
    ),
    *switches(
        _NO_ADAPTERS,
        """
        enable-lora enable-lora-bias fully-sharded-loras enable-tower-connector-lora specialize-active-lora
        enable-mixed-moe-lora-format enable-moe-shared-loras enable-prompt-adapter
        """,
    ),
    *values(
        _NO_MEDIA,
        """
        limit-mm-per-prompt = {}
        media-io-kwargs = {}
        mm-processor-kwargs = {}
        mm-processor-cache-gb = 0 4
        mm-processor-cache-type
        mm-shm-cache-max-object-size-mb
        mm-tensor-ipc
        mm-ipc-gpu-memory-gb
        mm-encoder-attn-backend
        mm-encoder-attn-dtype
        mm-encoder-fp8-scale-path
        mm-encoder-fp8-scale-save-path
        mm-encoder-fp8-scale-save-margin
        mm-encoder-tp-mode
        video-pruning-rate
        allowed-local-media-path
        allowed-media-domains
        diffusion-config
        """,
    ),
    *switches(
        _NO_MEDIA,
        """
        enable-mm-embeds enable-mm-processor-stats interleave-mm-strings mm-encoder-only skip-mm-profiling
        disable-mm-preprocessor-cache disable-chunked-mm-input
        """,
    ),
    *switches(f"{_NO_MEDIA}, so that is what every model is", "language-model-only", "true"),
    *values(
        _OWN_KERNELS,
        """
        attention-backend
        attention-config
        compilation-config -cc
        optimization-level -O
        performance-mode = balanced
        kernel-config
        moe-backend = auto
        linear-backend = auto
        gdn-prefill-backend
        kda-prefill-backend = auto
        ir-op-priority
        jit-monitor-mode
        """,
    ),
    *switches(
        _OWN_KERNELS,
        "enable-flashinfer-autotune enable-bf16x3-router-gemm jit-monitor-verbose enable-flash-late-interaction",
    ),
    *switches("attention has no cascade, so it is disabled", "disable-cascade-attn", "true"),
    *values(
        _CUDA_GRAPHS,
        """
        cudagraph-capture-sizes
        max-cudagraph-capture-size
        max-seq-len-to-capture
        max-context-len-to-capture
        """,
    ),
    *values(
        _LOADING,
        """
        model-loader-extra-config = {}
        ignore-patterns
        pt-load-map-location = cpu
        safetensors-load-strategy = lazy
        safetensors-prefetch-block-size
        safetensors-prefetch-num-threads
        model-weights
        """,
    ),
    *switches("progress is told by /health and the log", "use-tqdm-on-load", "true"),
    *values(
        _IN_THE_MODEL,
        """
        task = auto generate
        runner = auto generate
        convert = auto none
        config-format = auto hf
        hf-config-path
        code-revision
        tokenizer-revision
        tokenizer-mode = auto hf
        rope-scaling
        rope-theta
        pooler-config
        override-pooler-config
        model-class-overrides
        override-neuron-config
        """,
    ),
    *switches(_IN_THE_MODEL, "disable-sliding-window skip-tokenizer-init"),
    *values("the families are implemented here, and transformers only checks them", "model-impl = auto"),
    *values("HF_TOKEN in the environment says it, where no list of processes shows it", "hf-token"),
    *values("--generation-config names a directory of other defaults", "override-generation-config = {}"),
    *values(
        _NO_CODE,
        """
        logits-processors
        logits-processor-pattern
        io-processor-plugin
        scheduler-cls
        """,
    ),
    *switches("prompts are text or token ids", "enable-prompt-embeds"),
    *switches("noise is drawn in float32 from Philox, as the definition of sampling says", "use-fp64-gumbel"),
    *values(
        _IN_MEMORY,
        """
        cpu-offload-gb = 0
        cpu-offload-params
        swap-space = 0 4
        offload-backend = auto
        offload-group-size = 0
        offload-num-in-group
        offload-params
        offload-prefetch-step
        kv-offloading-size
        kv-offloading-backend
        kv-transfer-config
        kv-events-config
        ec-transfer-config
        weight-transfer-config
        """,
    ),
    *values("the cache's size is said in bytes: --kv-cache-memory-bytes", "num-gpu-blocks-override\nwatermark = 0"),
    *values("blocks are found by chained SHA-256", "prefix-caching-hash-algo = sha256\nprefix-match-unit"),
    *switches("no layer shares the cache of another", "kv-sharing-fast-prefill"),
    *switches(
        "level 1 of sleep frees the cache, level 2 the weights, without a special allocator",
        "enable-sleep-mode enable-cumem-allocator",
    ),
    *values(
        _NO_MAMBA,
        """
        mamba-backend
        mamba-block-size
        mamba-cache-dtype = auto
        mamba-cache-mode = none
        mamba-cache-philox-rounds
        mamba-config
        mamba-ssm-cache-dtype = auto
        """,
    ),
    *switches(_NO_MAMBA, "enable-mamba-cache-stochastic-rounding disable-hybrid-kv-cache-manager"),
    *values(
        _ONE_STEP,
        """
        max-num-partial-prefills = 1
        max-long-partial-prefills = 1
        long-prefill-token-threshold = 0
        max-num-scheduled-tokens
        prefill-schedule-interval = 1
        num-scheduler-steps = 1
        num-lookahead-slots = 0
        scheduler-delay-factor = 0 0.0
        preemption-mode = recompute
        """,
    ),
    *switches(_ONE_STEP, "scheduler-reserve-full-isl"),
    *switches(
        "on a GPU the next step is submitted before the one before is collected, always",
        "async-scheduling multi-step-stream-outputs use-v2-block-manager",
        "true",
    ),
    *switches("results are always processed beside the next step on a GPU", "disable-async-output-proc"),
    *values("every step's tokens are sent at once", "stream-interval = 1"),
    *values(_DRAFTS, "spec-method\nspec-model\nspec-tokens"),
    *values(
        "llguidance checks grammars: there is no other backend",
        "guided-decoding-backend = auto guidance\nstructured-outputs-config = {}\nreasoning-config = {}",
    ),
    *values("clients are known by their keys", "ssl-cert-reqs = 0"),
    *values("the TLS library's own choice is taken", "ssl-ciphers"),
    *switches("certificates are read once; a restart reads them again", "enable-ssl-refresh"),
    *switches("a request says it: return_tokens_as_token_ids", "return-tokens-as-token-ids"),
    *switches("usage always tells how much of a prompt was cached", "enable-prompt-tokens-details", "true"),
    *switches("a request says it: stream_options.include_usage", "enable-force-include-usage"),
    *switches(
        "a template is shown the tools whatever tool_choice is",
        "exclude-tools-when-tool-choice-none",
    ),
    *switches(
        "thoughts are read wherever --reasoning-parser or the template gives the format away",
        "enable-reasoning",
        "true",
    ),
    *switches("outputs are logged whole, with --enable-log-outputs", "enable-log-deltas"),
    *values("a request says it: chat_template_kwargs", "default-chat-template-kwargs = {}"),
    *values("the server calls no tools; clients do", "tool-server"),
    *values(_HTTP_LIMITS, "h11-max-incomplete-event-size\nh11-max-header-count"),
    *values(
        "the log is one line an event on standard error; --uvicorn-log-level sets its threshold", "log-config-file"
    ),
    *switches("an unforeseen error is logged with its stack in any case", "log-error-stack", "true"),
    *switches("/docs needs a browser that reaches its scripts; /openapi.json needs nothing", "enable-offline-docs"),
    *switches("/metrics tells it of all requests together", "enable-per-request-metrics"),
    *values("system_fingerprint tells version and engine", "fingerprint-mode\nfingerprint-value"),
    *values(
        _NOT_MEASURED,
        """
        show-hidden-metrics-for-version
        collect-detailed-traces
        kv-cache-metrics-sample
        """,
    ),
    *switches(
        _NOT_MEASURED,
        """
        enable-layerwise-nvtx-tracing cudagraph-metrics enable-mfu-metrics enable-logging-iteration-details
        kv-cache-metrics enable-return-routed-experts
        """,
    ),
    *values("no extension reads it", "additional-config = {}"),
)


def options_table(parser: argparse.ArgumentParser) -> str:
    """docs/options.md: what becomes of each option, given the parser of ``tandem serve``."""
    has = {name for name, action in parser._option_string_actions.items() if not is_foreign(action)}
    rows = [(f"--{name}", "the same") for name in OWN.split()]
    for foreign in FOREIGN:
        names = ", ".join(f"`{name}`" for name in foreign.aliases)
        spelled = foreign.option + (f"` ({names})`" if names else "")
        rows.append((spelled.rstrip("`"), _fate(foreign, foreign.option in has)))
    lines = [f"| `{name}{'' if name.endswith(')') else '`'} | {fate} |" for name, fate in sorted(rows)]
    return "\n".join([_HEAD.format(count=len(rows)), *lines, ""])


def _fate(foreign: Foreign, is_ours: bool) -> str:
    if is_ours:
        return "the same"
    if not foreign.neutral:
        return f"refused: {foreign.why}"
    if foreign.is_switch:
        value = foreign.option if foreign.neutral == ("true",) else f"--no-{foreign.name}"
        return f"only `{value}`: {foreign.why}"
    return f"only {', '.join(f'`{value}`' for value in foreign.neutral)}: {foreign.why}"


_HEAD = """# Options of `vllm serve`

What becomes of each of {count} options of `vllm serve`, on the command line and in the file of `--config`. *The same*
means that `tandem serve --help` has it. *Only* means that it is accepted at values that ask for what is so
anyway, and refused at others with the reason that stands here. Every switch has a `--no-` form, underscores count as
dashes, and an option that takes a JSON object may be written key by key: `--hf-overrides.rope_theta 1e6`.

`tandem.cli.vllm_options` is where this page is made: `python -m tandem.cli.vllm_options > docs/options.md`.

| option | |
|---|---|"""


def main() -> None:
    """Print the page."""
    from tandem.cli.serve import serve_parser

    print(options_table(serve_parser()), end="")


if __name__ == "__main__":
    main()
