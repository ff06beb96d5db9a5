"""``/metrics`` and ``/load``: names, labels and sums."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from server.config import ServerConfig
from server.state import ServerState
from tests.server.conftest import MODEL
from tests.server.process import ENDLESS, ServerProcess, connect, eventually

REASONS = {"stop", "length", "abort", "error"}
ANSWERED = ("prompt_tokens_total", "generation_tokens_total", "request_success_total")
HISTOGRAMS = (
    "time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds", "request_queue_time_seconds", "request_inference_time_seconds",
    "request_prefill_time_seconds", "request_decode_time_seconds", "request_prompt_tokens",
    "request_generation_tokens", "iteration_tokens_total", "request_params_n", "request_params_max_tokens",
    "request_max_num_generation_tokens", "request_prefill_kv_computed_tokens",
)  # fmt: skip
GAUGES = (
    "num_requests_running", "num_requests_waiting", "num_requests_waiting_by_reason", "engine_sleep_state",
    "kv_cache_usage_perc", "gpu_cache_usage_perc",
)  # fmt: skip
COUNTERS = (
    *ANSWERED, "num_preemptions_total", "prefix_cache_queries_total", "prefix_cache_hits_total",
    "prompt_tokens_cached_total", "prompt_tokens_by_source_total",
)  # fmt: skip
OURS = (
    "reasoning_tokens_total", "tool_calls_total", "tool_calls_not_parsed_total", "requests_rejected_total",
    "batch_requests_total",
    "failed_steps_total", "engine_restarts_total", "request_preemptions_count",
)  # fmt: skip
DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"
PAGE = DASHBOARD.with_name("metrics.md")


@pytest.fixture(scope="module")
def reference(model_dir: Path) -> Iterator[ServerProcess]:
    with ServerProcess(model_dir, "--served-model-name", MODEL, "--backend", "reference") as running:
        yield running


def samples(server: ServerProcess) -> list[Sample]:
    families = text_string_to_metric_families(httpx.get(server.url + "/metrics").text)
    return [sample for family in families for sample in family.samples]


def scrape(server: ServerProcess) -> dict[str, float]:
    """Sums over labels, by the sample's name."""
    sums: dict[str, float] = {}
    for sample in samples(server):
        if sample.name.startswith(("vllm:", "tandem:")):
            assert sample.labels["model_name"] == MODEL and sample.labels["engine"] == "0"
        sums[sample.name] = sums.get(sample.name, 0) + sample.value
    return sums


def labelled(server: ServerProcess, name: str, label: str) -> dict[str, float]:
    """A metric's values by one of its labels."""
    return {sample.labels[label]: sample.value for sample in samples(server) if sample.name == name}


def growth(server: ServerProcess, act: Callable[[], None]) -> dict[str, float]:
    before = scrape(server)
    act()
    return {name: value - before.get(name, 0) for name, value in scrape(server).items()}


def test_every_name_is_there(server: ServerProcess) -> None:
    server.post("/v1/completions", {"prompt": "a", "max_tokens": 2})
    names = scrape(server)
    for name in (*GAUGES, *COUNTERS, "cache_config_info"):
        assert f"vllm:{name}" in names
    for name in OURS:
        assert f"tandem:{name}" in names
    for name in HISTOGRAMS:
        assert names[f"vllm:{name}_count"] > 0


def test_metrics_agree_with_usage(server: ServerProcess) -> None:
    usages = []

    def act() -> None:
        for body in ({"prompt": ["the quick", "fox"], "n": 2}, {"prompt": [1, 2, 3], "stream": False}):
            usages.append(
                server.post("/v1/completions", {**body, "max_tokens": 5, "ignore_eos": True}).json()["usage"]
            )

    grown = growth(server, act)
    assert grown["vllm:prompt_tokens_total"] == sum(usage["prompt_tokens"] for usage in usages)
    assert grown["vllm:generation_tokens_total"] == sum(usage["completion_tokens"] for usage in usages) == 25
    assert grown["vllm:request_success_total"] == grown["vllm:e2e_request_latency_seconds_count"] == 5
    assert grown["vllm:time_to_first_token_seconds_count"] == 5
    assert grown["vllm:inter_token_latency_seconds_count"] == 20
    assert grown["vllm:request_params_n_sum"] == 5
    assert grown["vllm:request_params_max_tokens_sum"] == 15
    assert grown["vllm:request_generation_tokens_sum"] == 25
    assert grown["http_requests_total"] >= 2


def test_reasons_are_told_apart(server: ServerProcess) -> None:
    def reasons() -> dict[str, float]:
        return labelled(server, "vllm:request_success_total", "finished_reason")

    before = reasons()
    assert set(before) == REASONS
    server.post("/v1/completions", {"prompt": "a", "max_tokens": 2, "ignore_eos": True})
    assert reasons()["length"] == before.get("length", 0) + 1
    connect(server, "/v1/completions", {"prompt": "a", "max_tokens": 4000, "ignore_eos": True}).close()
    eventually(lambda: reasons().get("abort", 0) == before.get("abort", 0) + 1)


def test_routes_are_told_apart(server: ServerProcess) -> None:
    for path in ("/v1/models/alias", "/nowhere"):
        httpx.get(server.url + path)
    text = httpx.get(server.url + "/metrics").text
    assert 'http_requests_total{handler="/v1/models/{model:path}",method="GET",status="2xx"}' in text
    assert 'http_requests_total{handler="none",method="GET",status="4xx"}' in text
    assert 'http_request_duration_seconds_count{handler="none",method="GET"}' in text
    assert "alias" not in text


def test_load_rises_and_falls(server: ServerProcess) -> None:
    connection = connect(server, "/v1/completions", {"prompt": "a", "max_tokens": 4000, "ignore_eos": True, "n": 3})
    eventually(lambda: server.load()["num_requests_unfinished"] == 3)
    eventually(lambda: scrape(server)["vllm:num_requests_running"] == 3)
    assert server.load()["server_load"] == 1
    connection.close()
    eventually(server.is_idle)
    assert scrape(server)["vllm:num_requests_running"] == 0


# ------------------------------------------------------- sums that must agree


@pytest.mark.parametrize("engine", ["server", "reference"])
def test_steps_count_the_prompt_tokens_computed_and_the_tokens_sampled(
    engine: str, request: pytest.FixtureRequest
) -> None:
    """Over several requests, one of them longer than a step, and one whose beginning is cached."""
    server: ServerProcess = request.getfixturevalue(engine)
    long = [3 + i * 7 % 251 for i in range(3000)]

    def act() -> None:
        for prompt in ([5, 6, 7], long, [*long[:1000], 9], "the quick"):
            server.post("/v1/completions", {"prompt": prompt, "max_tokens": 4, "ignore_eos": True})

    grown = growth(server, act)
    cached = grown["vllm:prompt_tokens_cached_total"]
    assert cached >= 900 if engine == "server" else cached == 0
    computed = grown["vllm:prompt_tokens_total"] - cached
    assert grown["vllm:generation_tokens_total"] == 16
    assert grown["vllm:iteration_tokens_total_sum"] == computed + 16
    assert grown["vllm:request_prefill_kv_computed_tokens_sum"] == computed
    assert grown["vllm:iteration_tokens_total_count"] >= (4 * 4 + 1 if engine == "server" else 4 * 4)


@pytest.mark.parametrize("engine", ["server", "reference"])
def test_what_is_about_prompts_is_counted_once_a_prompt(engine: str, request: pytest.FixtureRequest) -> None:
    server: ServerProcess = request.getfixturevalue(engine)
    usages = []

    def act() -> None:
        body = {"prompt": [[3, 1, 4, 1, 5], [9, 2, 6]], "n": 3, "max_tokens": 7, "ignore_eos": True}
        usages.append(server.post("/v1/completions", body).json()["usage"])

    sources = labelled(server, "vllm:prompt_tokens_by_source_total", "source")
    assert set(sources) == {"local_compute", "local_cache_hit"}
    grown = growth(server, act)
    assert usages[0]["prompt_tokens"] == 8
    for name in ("prompt_tokens_total", "request_prompt_tokens_sum", "prompt_tokens_by_source_total"):
        assert grown[f"vllm:{name}"] == 8, name
    for name in ("request_prompt_tokens_count", "request_params_n_count", "request_max_num_generation_tokens_count"):
        assert grown[f"vllm:{name}"] == 2, name
    assert grown["vllm:request_max_num_generation_tokens_sum"] == 2 * 7
    assert grown["vllm:request_generation_tokens_count"] == grown["tandem:request_preemptions_count"] == 6


def test_every_label_of_a_counter_is_there_from_the_start() -> None:
    state = ServerState(ServerConfig())
    try:
        found = {
            (family.name, *sample.labels.values()): sample.value
            for family in state.metrics.registry.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        }
    finally:
        state.close()
    assert {key[-1] for key in found if key[0] == "vllm:request_success"} == REASONS
    assert {key[-1] for key in found if key[0] == "tandem:requests_rejected"} >= {"server_overloaded", "engine_dead"}
    assert not any(value for key, value in found.items() if key[0].startswith(("vllm:", "tandem:")))


# ------------------------------------------------------- HTTP


def test_monitors_are_no_requests_and_may_end_in_a_slash(guarded: ServerProcess) -> None:
    paths = [path + end for path in ("/health", "/ping", "/metrics", "/version") for end in ("", "/")]

    def ask() -> None:
        for path in paths:
            answer = httpx.get(guarded.url + path)
            assert answer.status_code == 200, path
            if "metrics" not in path:
                assert answer.content == httpx.get(guarded.url + path.rstrip("/")).content
        assert httpx.post(guarded.url + "/ping/").status_code == 200
        assert httpx.head(guarded.url + "/health/").status_code == 200

    grown = growth(guarded, ask)
    assert not any(value for name, value in grown.items() if name.startswith("http_"))
    grown = growth(guarded, lambda: httpx.get(guarded.url + "/v1/models"))
    assert grown["http_requests_total"] == 1


def test_bodies_are_measured_as_they_pass(server: ServerProcess) -> None:
    sizes = []

    def act() -> None:
        body = json.dumps({"prompt": "a", "max_tokens": 3, "stream": True}).encode()
        headers = {"content-type": "application/json"}
        answer = httpx.post(server.url + "/v1/completions", content=body, headers=headers)
        assert answer.status_code == 200
        sizes.extend([len(body), len(answer.content)])

    grown = growth(server, act)
    assert grown["http_request_size_bytes_sum"] == sizes[0]
    assert grown["http_response_size_bytes_sum"] == sizes[1]


# ------------------------------------------------------- what the engine is, and what went wrong


def test_the_caches_configuration_tells_what_it_holds(server: ServerProcess, reference: ServerProcess) -> None:
    for running, blocks in ((server, "16"), (reference, "1")):
        (labels,) = [sample.labels for sample in samples(running) if sample.name == "vllm:cache_config_info"]
        assert labels["block_size"] == blocks
        assert int(labels["num_gpu_blocks"]) == int(labels["kv_cache_tokens"]) // int(blocks)
        assert labels["enable_prefix_caching"] == str(running is server)
        assert labels["num_cpu_blocks"] == labels["num_gpu_blocks_override"] == "None"
        assert {"cache_dtype", "gpu_memory_utilization", "kv_cache_memory_bytes"} <= set(labels)


def test_an_engine_that_is_awake_says_so(server: ServerProcess) -> None:
    states = labelled(server, "vllm:engine_sleep_state", "sleep_state")
    assert states == {"awake": 1, "weights_offloaded": 0, "discard_all": 0}


def test_waiting_requests_are_told_apart_by_what_they_wait_for(model_dir: Path) -> None:
    with ServerProcess(model_dir, "--served-model-name", MODEL, "--max-num-seqs", "1") as server:
        connections = [connect(server, "/v1/completions", ENDLESS) for _ in range(3)]
        eventually(lambda: scrape(server)["vllm:num_requests_waiting"] == 2)
        reasons = labelled(server, "vllm:num_requests_waiting_by_reason", "reason")
        assert reasons == {"capacity": 2, "deferred": 0}
        for connection in connections:
            connection.close()


def test_refusals_restarts_and_their_reasons_are_counted(model_dir: Path) -> None:
    options = ("--served-model-name", MODEL, "--max-num-queued-reqs", "1")
    with ServerProcess(model_dir, *options) as server:
        connection = connect(server, "/v1/completions", ENDLESS)
        eventually(lambda: server.load()["num_requests_unfinished"] == 1)
        assert server.post("/v1/completions", {"prompt": "a"}).status_code == 429
        rejected = labelled(server, "tandem:requests_rejected_total", "reason")
        assert rejected["server_overloaded"] == 1 and sum(rejected.values()) == 1
        os.kill(server.worker.pid, signal.SIGKILL)
        eventually(lambda: scrape(server)["tandem:engine_restarts_total"] == 1)
        connection.close()
        server.wait_healthy()
        rejected = labelled(server, "tandem:requests_rejected_total", "reason")
        assert rejected["engine_dead"] == 1, "the request that the engine's death ended"
        grown = growth(server, lambda: server.post("/v1/completions", {"prompt": "a", "max_tokens": 2}))
        assert grown["vllm:iteration_tokens_total_count"] == 2, "the new engine's first step is counted"


def test_tool_calls_and_thoughts_are_counted(bundled: ServerProcess) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    usages = []

    def act() -> None:
        body = {"messages": [{"role": "user", "content": "call f"}], "tools": [tool], "tool_choice": "required"}
        answer = bundled.post("/v1/chat/completions", {**body, "max_tokens": 200, "temperature": 0}).json()
        usages.append((answer["usage"], answer["choices"][0]["message"]))

    grown = growth(bundled, act)
    ((usage, message),) = usages
    assert grown["tandem:tool_calls_total"] == len(message["tool_calls"]) > 0
    assert grown["tandem:reasoning_tokens_total"] == usage["completion_tokens_details"]["reasoning_tokens"]


# ------------------------------------------------------- the dashboard


def test_the_dashboard_uses_only_names_that_a_scrape_has(server: ServerProcess) -> None:
    server.post("/v1/completions", {"prompt": "a", "max_tokens": 3})
    there = {sample.name for sample in samples(server)}
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    assert len(queries) > 20
    for query in queries:
        names = set(re.findall(r"\b(?:vllm:|tandem:|http_|process_)\w+", query))
        assert names, query
        assert names <= there, f"{query}: {names - there}"


def test_the_page_of_metrics_names_what_a_scrape_has(server: ServerProcess) -> None:
    server.post("/v1/completions", {"prompt": "a", "max_tokens": 3})
    families = text_string_to_metric_families(httpx.get(server.url + "/metrics").text)
    there = {family.name for family in families if not family.name.startswith("process_")}
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    told = [name for row in rows for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    assert len(told) == len(set(told))
    made = {name.removesuffix("_created") for name in there}
    assert set(told) == {name for name in made}
