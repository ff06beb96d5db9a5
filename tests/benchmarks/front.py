"""What the server's front costs: its CPU time per streamed token, with an engine that costs nothing.

The engine is a stub in a process of its own that gives each running request a token a step, at a steady pace.
Clients, in a process of their own, read and count events without looking into them. CPU time is that of all threads
of the server's process, between the first token and the last. Prints a table and, as the last line, JSON.

``--profile`` writes the server's profile (``cProfile`` of its event loop's thread) to a file.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tandem import registry
from tandem.config import EngineConfig
from tandem.engine import EngineInfo, EngineOutput, EngineRequest, EngineStats

BUNDLED = Path(__file__).parents[2] / "tandem" / "bundled"
STEP_SECONDS = 0.01
TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps. "


class PacedEngine:
    """Every step takes ``STEP_SECONDS`` and gives each request the next token of a text that has no end."""

    def __init__(self, config: EngineConfig, on_progress: Any = None) -> None:
        from tandem.text.tokenizer import Tokenizer

        tokenizer = Tokenizer.from_directory(Path(config.files.path))
        self._text = tokenizer.encode(TEXT)
        self.info = EngineInfo(
            backend="paced", device="cpu", dtype="float32", vocab_size=config.model.vocab_size,
            max_model_len=config.max_model_len, kv_cache_tokens=1 << 30, num_parameters=1,
        )  # fmt: skip
        self._requests: dict[str, EngineRequest] = {}
        self._counts: dict[str, int] = {}
        self._num_steps = 0
        self._next = time.monotonic()

    @property
    def has_unfinished(self) -> bool:
        return bool(self._requests)

    @property
    def stats(self) -> EngineStats:
        count = len(self._requests)
        return EngineStats(num_running=count, num_steps=self._num_steps, num_step_tokens=count)

    def prepare(self, request: EngineRequest) -> None:
        pass

    def add(self, request: EngineRequest) -> None:
        self._requests[request.request_id] = request
        self._counts[request.request_id] = 0

    def abort(self, request_id: str) -> None:
        self._requests.pop(request_id, None)

    def step(self) -> list[EngineOutput]:
        now = time.monotonic()
        self._next = max(self._next + STEP_SECONDS, now)
        time.sleep(self._next - now)
        self._num_steps += 1
        return [self._advance(request) for request in list(self._requests.values())]

    def _advance(self, request: EngineRequest) -> EngineOutput:
        count = self._counts[request.request_id]
        self._counts[request.request_id] = count + 1
        ended = count + 1 >= request.max_tokens
        if ended:
            del self._requests[request.request_id]
        return EngineOutput(
            request.request_id, [self._text[count % len(self._text)]], finish_reason="length" if ended else None
        )

    def close(self) -> None:
        self._requests.clear()


def register() -> None:
    """Give the engine its name, and its processes a program that knows it."""
    from tandem.process import launch

    registry.ENGINES["paced"] = ("tests.benchmarks.front", "PacedEngine")
    launch.worker_command = lambda: [sys.executable, "-P", "-m", "tests.benchmarks.front", "worker"]


def run_worker() -> None:
    """The engine's process."""
    from tandem.process.worker import main as work

    register()
    work()


def run_server(profile: str) -> int:
    """The front."""
    from server.config import ServerConfig
    from server.run import serve
    from tandem.config import ModelOptions

    register()
    config = ServerConfig(
        model=ModelOptions(model=str(BUNDLED), backend="paced"), host="127.0.0.1", port=0, disable_access_log=True
    )
    if not profile:
        return serve(config)
    profiler = cProfile.Profile()
    try:
        return profiler.runcall(serve, config)
    finally:
        profiler.dump_stats(profile)


async def read_streams(port: int, path: str, body: dict[str, Any], num_streams: int, pid: int) -> dict[str, float]:
    """CPU seconds of the server, and events, between all streams' first events and the first stream's last."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    counts = [0] * num_streams
    ended = asyncio.Event()

    async def read(index: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + data)
        while b"[DONE]" not in (chunk := await reader.read(1 << 16)) and chunk:
            counts[index] += chunk.count(b"data: ")
        ended.set()
        writer.close()

    tasks = [asyncio.create_task(read(index)) for index in range(num_streams)]
    while min(counts) < 3:
        await asyncio.sleep(0.01)
    before, began, server = sum(counts), time.monotonic(), psutil.Process(pid)
    cpu = sum(server.cpu_times()[:2])
    await ended.wait()
    cpu, events, seconds = sum(server.cpu_times()[:2]) - cpu, sum(counts) - before, time.monotonic() - began
    await asyncio.gather(*tasks)
    return {"cpu_seconds": cpu, "events": events, "seconds": seconds}


ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}]},
}


def measure(route: str, num_streams: int, num_tokens: int, profile: str) -> dict[str, Any]:
    """One server for one measurement."""
    limit = "max_output_tokens" if route == "/v1/responses" else "max_tokens"
    command = [sys.executable, "-m", "tests.benchmarks.front", "server", *([profile] if profile else [])]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert server.stderr is not None
    try:
        log = ""
        while "running on" not in log or "Model loaded" not in log:
            log += server.stderr.readline()
        port = int(re.search(r"running on http://127.0.0.1:(\d+)", log)[1])
        body = {**ROUTES[route], "stream": True, limit: num_tokens}
        asyncio.run(read_streams(port, route, {**body, limit: 32}, 1, server.pid))  # what is cached is cached
        return {"route": route, "streams": num_streams, **asyncio.run(
            read_streams(port, route, body, num_streams, server.pid)
        )}  # fmt: skip
    finally:
        server.terminate()
        server.wait()


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks front", description=__doc__)
    parser.add_argument("--routes", nargs="+", default=["/v1/chat/completions", "/v1/completions"], choices=ROUTES)
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--tokens", type=int, default=1000, help="of each stream")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", default="", help="a file for the server's profile, of the last measurement")
    options = parser.parse_args(words)
    results = []
    print(f"{'route':24} {'streams':>7} {'tokens/s':>9} {'µs a token':>10}")
    for route in options.routes:
        for streams in options.streams:
            runs = [measure(route, streams, options.tokens, options.profile) for _ in range(options.rounds)]
            cost = statistics.median(1e6 * run["cpu_seconds"] / run["events"] for run in runs)
            rate = statistics.median(run["events"] / run["seconds"] for run in runs)
            results.append({"route": route, "streams": streams, "tokens_per_second": rate, "us_per_token": cost})
            print(f"{route:24} {streams:7} {rate:9.0f} {cost:10.1f}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker"]:
            run_worker()
        case ["server", *profile]:
            sys.exit(run_server(profile[0] if profile else ""))
