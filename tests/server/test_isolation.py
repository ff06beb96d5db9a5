"""What one client does to the server stays with that client; code that comes with a model stays where it is."""

from __future__ import annotations

import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import MODEL
from tests.server.process import CHAT, ENDLESS, SERVE, Open, ServerProcess, connect, events, eventually, raw

SAMPLED = "vllm:generation_tokens_total"
CHATS, TEXT = "/v1/chat/completions", "/v1/completions"
CANARY = {"prompt": "the lazy dog", "max_tokens": 1500, "ignore_eos": True, "seed": 3, "stream": True}
HI = [{"role": "user", "content": "hi"}]
NESTED: Any = "x"
for _ in range(200):
    NESTED = [NESTED]
HOSTILE: list[tuple[str, Any]] = [
    (TEXT, {"prompt": "a", "structured_outputs": {"regex": "(a"}}),
    (TEXT, {"prompt": "a", "structured_outputs": {"grammar": "start: nowhere"}}),
    (TEXT, {"prompt": "a", "structured_outputs": {"regex": "((a{1,99}){1,99}){1,99}"}, "max_tokens": 3}),
    (TEXT, {"prompt": "a", "structured_outputs": {"json": {"$ref": "#/$defs/none"}}}),
    (TEXT, {"prompt": "a", "structured_outputs": {"json": {"type": "object", "properties": {"a": NESTED}}}}),
    (TEXT, {"prompt": NESTED}),
    (TEXT, {"prompt": [2**31]}),
    (TEXT, {"prompt": "a" * 200_000}),
    (TEXT, {"prompt": "a", "allowed_token_ids": [7], "bad_words": ["the"], "logit_bias": {"7": -100}}),
    (TEXT, {"prompt": "a", "repetition_penalty": 1e-30, "max_tokens": 3}),
    (TEXT, {"prompt": "a", "priority": 10**30}),
    (CHATS, {"messages": HI, "chat_template": "{% for i in range(10**9) %}x{% endfor %}"}),
    (CHATS, {"messages": HI, "tools": [{"type": "function", "function": {"name": "f", "parameters": NESTED}}]}),
    (CHATS, {"messages": HI, "model": "an/adapter", "lora": NESTED}),
    ("/v1/responses", {"input": [{"type": "function_call_output", "call_id": "none", "output": NESTED}]}),
    ("/v1/messages", {"messages": HI, "model": MODEL, "max_tokens": 2**70}),
]
MARKED = """
import pathlib
pathlib.Path({marker!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Own(LlamaConfig): pass
class OwnModel(LlamaForCausalLM): pass
class OwnTokenizer(PreTrainedTokenizerFast): pass
"""


def test_a_canary_beside_hostile_requests(server: ServerProcess) -> None:
    """All of them at once, again and again, while a stream runs: it tells what it told alone; no engine is lost."""
    alone = Open(server, TEXT, CANARY).wait()
    worker = server.worker.pid
    canary = Open(server, TEXT, CANARY)
    assert canary.started.wait(20)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for answer in pool.map(lambda asked: server.post(*asked), HOSTILE):
                assert answer.status_code < 500, answer.text
                assert answer.status_code == 200 or answer.json()["error"]["message"]
    assert raw(server, b"POST /v1/completions HTTP/1.1\r\ncontent-length: x\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert told(canary.wait().text) == told(alone.text)
    assert server.worker.pid == worker
    eventually(server.is_idle)


def told(text: str) -> tuple[str, str, str]:
    """Text, finish reason and end of a stream of completions."""
    *chunks, done = events(text)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"], done


@pytest.mark.parametrize(
    ("path", "body"),
    [(TEXT, {"prompt": "the quick"}), (CHATS, {"messages": HI}), ("/inference/v1/generate", {"token_ids": [5, 6]})],
)
def test_equal_request_ids_are_requests_of_their_own(server: ServerProcess, path: str, body: dict[str, Any]) -> None:
    """A client's id names its answer, and no generation: when one client leaves, the others with its id stay."""
    mine = {"request_id": "the-same", "stream": True}
    headers = {"x-request-id": "the-same"}
    body |= {"sampling_params": {"max_tokens": 300, "ignore_eos": True, "seed": 4}} if "token_ids" in body else {
        "max_tokens": 300, "ignore_eos": True, "seed": 4,
    }  # fmt: skip

    def whole() -> list[Any]:
        return server.post(path, body | mine | {"stream": False}, headers=headers).json()["choices"]

    alone = whole()
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(whole) for _ in range(4)]
        for _ in range(4):
            leaving = connect(server, path, body | mine)
            assert leaving.recv(100)
            leaving.close()
        assert all(answer.result() == alone for answer in answers)
    eventually(server.is_idle)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (TEXT, ENDLESS),
        (TEXT, ENDLESS | {"n": 3}),
        (CHATS, CHAT),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 3900, "ignore_eos": True}),
        ("/v1/messages", {"messages": HI, "max_tokens": 3900, "model": MODEL}),
        ("/api/chat", {"messages": HI, "model": MODEL}),
        ("/inference/v1/generate", {"token_ids": [5], "sampling_params": {"max_tokens": 1000, "ignore_eos": True}}),
    ],
)
@pytest.mark.parametrize("phase", ["queued", "prefill"])
def test_who_leaves_before_the_first_token_leaves_nothing(
    one_at_a_time: ServerProcess, phase: str, path: str, body: dict[str, Any], stream: bool
) -> None:
    server = one_at_a_time
    first = None
    if phase == "queued":
        first = connect(server, TEXT, ENDLESS | {"stream": True})
        assert first.recv(100)
    else:
        long = "fox " * 1400  # in chunks of 16 tokens: a hundred steps and more
        changed = {
            "prompt": long,
            "input": long,
            "messages": [{"role": "user", "content": long}],
            "token_ids": [5] * 3000,
        }
        body = body | {name: value for name, value in changed.items() if name in body}
        body |= {name: 1000 for name in ("max_tokens", "max_output_tokens") if name in body}
    num_sampled = server.metric(SAMPLED)
    num_mine = body.get("n", 1) + (first is not None)
    leaving = connect(server, path, body | {"stream": stream})
    eventually(lambda: server.load()["num_requests_unfinished"] == num_mine)
    if phase == "queued":
        eventually(lambda: server.load()["num_requests_waiting"] == num_mine - 1)
    leaving.setblocking(False)
    with pytest.raises(BlockingIOError):  # not a byte of an answer yet
        leaving.recv(1)
    began = time.monotonic()
    leaving.close()
    eventually(lambda: server.load()["num_requests_unfinished"] == (first is not None), 2)
    if first is not None:
        first.close()
    eventually(server.is_idle, 2)
    assert time.monotonic() - began < 2
    assert first is not None or server.metric(SAMPLED) == num_sampled  # it was in its prompt, indeed
    assert server.post(TEXT, ENDLESS | {"max_tokens": 2}).status_code == 200


@pytest.fixture(scope="module")
def one_at_a_time(model_dir: Path) -> Any:
    options = ("--max-num-seqs", "1", "--max-num-batched-tokens", "16", "--enable-ollama-api")
    with ServerProcess(model_dir, "--served-model-name", MODEL, "--no-enable-prefix-caching", *options) as running:
        yield running


@pytest.mark.parametrize("backend", ["optimized", "reference"])
@pytest.mark.parametrize("optimize", [False, True], ids=["", "-O"])
def test_code_of_a_checkpoint_is_not_run(model_dir: Path, tmp_path: Path, backend: str, optimize: bool) -> None:
    """``auto_map`` names code beside the weights; the model is one that needs none, so it is served without."""
    marker = tmp_path / "ran"
    own = shutil.copytree(model_dir, tmp_path / "model")
    (own / "own.py").write_text(MARKED.format(marker=str(marker)))
    maps = {
        "config.json": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"},
        "tokenizer_config.json": {"AutoTokenizer": [None, "own.OwnTokenizer"]},
    }
    for name, auto_map in maps.items():
        settings = json.loads((own / name).read_text())
        (own / name).write_text(json.dumps(settings | {"auto_map": auto_map}))
    command = (sys.executable, "-O", *SERVE[1:]) if optimize else SERVE
    with ServerProcess(own, "--backend", backend, command=command) as server:
        answer = httpx.post(server.url + CHATS, json={"messages": HI, "max_tokens": 2}, timeout=30)
        assert answer.status_code == 200
    assert not marker.exists()
