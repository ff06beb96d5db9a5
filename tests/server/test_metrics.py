"""``/metrics`` and ``/load``: names, labels and sums."""

from __future__ import annotations

from collections.abc import Callable

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.server.conftest import MODEL
from tests.server.process import ServerProcess, connect, eventually

ANSWERED = ("prompt_tokens_total", "generation_tokens_total", "request_success_total")
HISTOGRAMS = (
    "time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds", "request_queue_time_seconds", "request_inference_time_seconds",
    "request_prefill_time_seconds", "request_decode_time_seconds", "request_prompt_tokens",
    "request_generation_tokens", "iteration_tokens_total", "request_params_n", "request_params_max_tokens",
)  # fmt: skip
GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "gpu_cache_usage_perc")
COUNTERS = (*ANSWERED, "num_preemptions_total", "prefix_cache_queries_total", "prefix_cache_hits_total")


def scrape(server: ServerProcess) -> dict[str, float]:
    """Sums over labels, by the sample's name."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(server.url + "/metrics").text):
        for sample in family.samples:
            if sample.name.startswith("vllm:"):
                assert sample.labels["model_name"] == MODEL and sample.labels["engine"] == "0"
            sums[sample.name] = sums.get(sample.name, 0) + sample.value
    return sums


def growth(server: ServerProcess, act: Callable[[], None]) -> dict[str, float]:
    before = scrape(server)
    act()
    return {name: value - before.get(name, 0) for name, value in scrape(server).items()}


def test_every_name_is_there(server: ServerProcess) -> None:
    server.post("/v1/completions", {"prompt": "a", "max_tokens": 2})
    names = scrape(server)
    for name in (*GAUGES, *COUNTERS, "cache_config_info"):
        assert f"vllm:{name}" in names
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
        families = text_string_to_metric_families(httpx.get(server.url + "/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        return {s.labels["finished_reason"]: s.value for s in samples if s.name == "vllm:request_success_total"}

    before = reasons()
    server.post("/v1/completions", {"prompt": "a", "max_tokens": 2, "ignore_eos": True})
    assert reasons()["length"] == before.get("length", 0) + 1
    connect(server, "/v1/completions", {"prompt": "a", "max_tokens": 4000, "ignore_eos": True}).close()
    eventually(lambda: reasons().get("abort", 0) == before.get("abort", 0) + 1)


def test_routes_are_told_apart(server: ServerProcess) -> None:
    for path in ("/v1/models/alias", "/nowhere", "/health"):
        httpx.get(server.url + path)
    text = httpx.get(server.url + "/metrics").text
    assert 'http_requests_total{handler="/v1/models/{model:path}",method="GET",status="2xx"}' in text
    assert 'http_requests_total{handler="none",method="GET",status="4xx"}' in text
    assert 'http_request_duration_seconds_count{handler="/health",method="GET"}' in text
    assert "alias" not in text


def test_load_rises_and_falls(server: ServerProcess) -> None:
    connection = connect(server, "/v1/completions", {"prompt": "a", "max_tokens": 4000, "ignore_eos": True, "n": 3})
    eventually(lambda: server.load()["num_requests_unfinished"] == 3)
    eventually(lambda: scrape(server)["vllm:num_requests_running"] == 3)
    assert server.load()["server_load"] == 1
    connection.close()
    eventually(server.is_idle)
    assert scrape(server)["vllm:num_requests_running"] == 0
