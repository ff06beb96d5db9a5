"""``/v1/batches``: lines are answered as requests are, in their own time, and a batch ends in one of a few ways."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Batch

from server.files.batch import MAX_ERRORS, MAX_LINES, validate
from tests.server.conftest import MODEL
from tests.server.process import ServerProcess, eventually

COMPLETIONS = "/v1/completions"
BASE: dict[str, Any] = {"model": MODEL, "max_tokens": 6, "ignore_eos": True, "seed": 3}
HI = [{"role": "user", "content": "hi"}]
DRAWN: dict[str, list[dict[str, Any]]] = {
    COMPLETIONS: [
        BASE | {"prompt": "the quick"},
        BASE | {"prompt": ["a", "b"], "n": 2, "logprobs": 1},
        BASE | {"prompt": "a", "temperature": -1},
        BASE | {"prompt": "a", "model": "nobody"},
    ],
    "/v1/chat/completions": [BASE | {"messages": HI}, BASE | {"messages": HI, "n": 2}, BASE],
    "/v1/responses": [{"model": MODEL, "input": "hi", "max_output_tokens": 6, "temperature": 0, "store": False}],
    "/v1/messages": [
        {"model": MODEL, "messages": HI, "max_tokens": 6, "temperature": 0},
        {"model": MODEL, "messages": HI},
    ],
    "/inference/v1/generate": [
        {"model": MODEL, "token_ids": [5, 6], "sampling_params": {"max_tokens": 4, "temperature": 0}}
    ],
    "/generative_scoring": [{"model": MODEL, "query": "a", "items": ["b"], "label_token_ids": [5, 6]}],
}


def line(custom_id: str, body: dict[str, Any], url: str = COMPLETIONS, **fields: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body, **fields}


def begin(client: openai.OpenAI, lines: list[Any], endpoint: str = COMPLETIONS, **fields: Any) -> Batch:
    texts = [text if isinstance(text, bytes) else json.dumps(text).encode() for text in lines]
    file = client.files.create(file=("in.jsonl", b"\n".join(texts)), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,
        completion_window="24h",
        **fields,  # type: ignore[arg-type]
    )


def finished(client: openai.OpenAI, batch: Batch, seconds: float = 30) -> Batch:
    found = [batch]

    def has_ended() -> bool:
        found[0] = client.batches.retrieve(batch.id)
        return found[0].status in ("completed", "failed", "cancelled", "expired")

    eventually(has_ended, seconds)
    return found[0]


def answers(client: openai.OpenAI, batch: Batch) -> dict[str, Any]:
    """By custom id; each is in the file that it belongs to."""
    found: dict[str, Any] = {}
    for file_id, is_error in ((batch.output_file_id, False), (batch.error_file_id, True)):
        for text in client.files.content(file_id).text.splitlines() if file_id else []:
            result = json.loads(text)
            assert result["custom_id"] not in found and (result["error"] is not None) == is_error
            found[result["custom_id"]] = result
    return found


def same(body: Any) -> Any:
    """Without what is new in every answer."""
    if isinstance(body, dict):
        fresh = ("id", "created", "created_at", "completed_at", "request_id", "cached_tokens", "call_id")
        return {name: same(value) for name, value in body.items() if name not in fresh and "cache" not in name}
    return [same(item) for item in body] if isinstance(body, list) else body


def openai_client(server: ServerProcess, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def few_rows(model_dir: Path) -> Iterator[ServerProcess]:
    """A server that runs four requests at once, and takes eight."""
    options = ("--served-model-name", MODEL, "--max-num-seqs", "4", "--max-num-queued-reqs", "8")
    with ServerProcess(model_dir, *options) as running:
        yield running


# ------------------------------------------------------- answers


@settings(max_examples=12)
@given(data=st.data())
def test_a_line_is_answered_as_a_request(server: ServerProcess, client: openai.OpenAI, data: st.DataObject) -> None:
    url = data.draw(st.sampled_from(sorted(DRAWN)))
    bodies = data.draw(st.lists(st.sampled_from(DRAWN[url]), min_size=1, max_size=4))
    lines = [line(f"n{number}", body, url) for number, body in enumerate(bodies)]
    batch = finished(client, begin(client, lines, url))
    assert batch.status == "completed" and batch.errors is None, batch
    found = answers(client, batch)
    assert len(found) == len(lines)
    num_failed = 0
    for number, body in enumerate(bodies):
        direct, result = server.post(url, body), found[f"n{number}"]
        assert result["response"]["status_code"] == direct.status_code
        assert same(result["response"]["body"]) == same(direct.json())
        num_failed += direct.status_code >= 400
    counts = batch.request_counts
    assert counts and (counts.total, counts.failed, counts.completed) == (
        len(lines), num_failed, len(lines) - num_failed,
    )  # fmt: skip


def test_the_sdk_sees_a_whole_batch(client: openai.OpenAI) -> None:
    expiry = {"anchor": "created_at", "seconds": 3600}
    begun = begin(client, [line("a", BASE | {"prompt": "a"})], metadata={"k": "v"}, output_expires_after=expiry)
    Batch.model_validate(begun.model_dump(), strict=True)
    assert begun.status in ("validating", "in_progress") and begun.metadata == {"k": "v"}
    batch = finished(client, begun)
    assert batch.completed_at and batch.in_progress_at and batch.finalizing_at and not batch.failed_at
    assert batch.usage and batch.usage.output_tokens == 6
    assert batch.usage.total_tokens == batch.usage.input_tokens + 6
    assert batch.error_file_id is None and batch.output_file_id
    output = client.files.retrieve(batch.output_file_id)
    assert output.purpose == "batch_output" and output.expires_at == output.created_at + 3600
    others = [begin(client, [line("a", BASE | {"prompt": "a"})]).id for _ in range(3)]
    for limit in (1, 2, 100):
        ids = [found.id for found in client.batches.list(limit=limit)]
        assert ids[:4] == [*others[::-1], batch.id]
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


# ------------------------------------------------------- files that are none of requests


def test_every_wrong_line_is_named(client: openai.OpenAI) -> None:
    good = BASE | {"prompt": "a"}
    lines = [
        line("one", good),
        b"{",
        b"",
        line("one", good),
        line("two", good, url="/v1/chat/completions"),
        line("three", good, url="/v1/nothing"),
        line("four", good, method="GET"),
        line("five", good | {"stream": True}),
        line("six" * 400, good),
        {"custom_id": "seven", "method": "POST", "url": COMPLETIONS},
        b"\xff\xfe",
        b"[" * 100_000,
    ]
    batch = finished(client, begin(client, lines))
    assert batch.status == "failed" and batch.failed_at and not batch.output_file_id
    assert batch.errors and batch.errors.data
    assert [(error.line, error.code) for error in batch.errors.data] == [
        (2, "invalid_json_line"), (4, "duplicate_custom_id"), (5, "mismatched_url"), (6, "invalid_url"),
        (7, "invalid_method"), (8, "invalid_request"), (9, "invalid_custom_id"), (10, "invalid_json_line"),
        (11, "invalid_json_line"), (12, "invalid_json_line"),
    ]  # fmt: skip


def test_files_are_bounded_in_lines_errors_and_lengths() -> None:
    def problems(data: bytes, max_bytes: int = 1000) -> list[str]:
        return [problem.code for problem in validate(BytesIO(data), COMPLETIONS, max_bytes)[1]]

    def many(count: int) -> bytes:
        text = '{"custom_id": "%d", "method": "POST", "url": "/v1/completions", "body": {}}\n'
        return "".join(text % number for number in range(count)).encode()

    assert problems(many(MAX_LINES)) == [] and problems(many(MAX_LINES + 1)) == ["too_many_requests"]
    assert problems(b"{\n" * 1000) == ["invalid_json_line"] * MAX_ERRORS
    assert problems(many(2), 70) == ["line_too_long"]
    assert problems(b"\n \n") == problems(b"") == ["empty_file"]


def test_wrong_requests_are_refused(server: ServerProcess, client: openai.OpenAI) -> None:
    file = client.files.create(file=b"{}", purpose="batch")
    good = {"input_file_id": file.id, "endpoint": COMPLETIONS, "completion_window": "24h"}
    for wrong, status, param in (
        ({"input_file_id": "file-none"}, 404, "input_file_id"),
        ({"endpoint": "/v1/batches"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, 400, "output_expires_after.seconds"),
        ({"metadata": {"a": 5}}, 400, "metadata"),
    ):
        answer = server.post("/v1/batches", good | wrong)
        assert (answer.status_code, answer.json()["error"]["param"].partition("[")[0]) == (status, param)
    for path in ("/v1/batches/batch_none", "/v1/batches?after=batch_none"):
        assert httpx.get(server.url + path).status_code in (400, 404)


def test_another_key_sees_nothing(guarded: ServerProcess) -> None:
    own, other = (openai_client(guarded, f"{name}-key") for name in ("first", "second"))
    batch = finished(own, begin(own, [line("a", BASE | {"prompt": "a"})]))
    assert batch.status == "completed" and list(answers(own, batch)) == ["a"]
    assert not list(other.batches.list())
    for use in (other.batches.retrieve, other.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            use(batch.id)
    with pytest.raises(openai.NotFoundError):
        other.files.content(batch.output_file_id or "")
    with pytest.raises(openai.NotFoundError):
        other.batches.create(input_file_id=batch.input_file_id, endpoint=COMPLETIONS, completion_window="24h")


# ------------------------------------------------------- in its own time


def test_clients_do_not_wait_behind_a_batch(few_rows: ServerProcess) -> None:
    """With half of the engine's rows free, a request begins at once; alone, the batch would fill them all."""
    client = openai_client(few_rows)
    batch = begin(client, [line(str(i), BASE | {"prompt": "a", "max_tokens": 3000}) for i in range(40)])
    eventually(lambda: few_rows.load()["num_requests_running"] > 0)
    for _ in range(5):
        load = few_rows.load()
        assert load["num_requests_running"] <= 2 and load["num_requests_waiting"] == 0, load
        began = time.monotonic()
        assert few_rows.post(COMPLETIONS, BASE | {"prompt": "b"}).status_code == 200
        assert time.monotonic() - began < 2
    counts = client.batches.retrieve(batch.id).request_counts
    assert counts and counts.completed < 40, "the batch was over too soon to show anything"
    assert client.batches.cancel(batch.id).status == "cancelling"
    ended = finished(client, batch)
    assert ended.status == "cancelled" and ended.cancelling_at and ended.cancelled_at
    assert ended.request_counts and len(answers(client, ended)) == ended.request_counts.completed < 40
    eventually(few_rows.is_idle)


def test_a_full_server_makes_lines_wait(few_rows: ServerProcess) -> None:
    """Each line takes all of the capacity: two at once get 429, and none of them fails."""
    client = openai_client(few_rows)
    lines = [line(str(i), BASE | {"prompt": "a", "n": 8}) for i in range(6)]
    batch = finished(client, begin(client, lines))
    assert batch.request_counts and (batch.request_counts.completed, batch.request_counts.failed) == (6, 0)


def test_lines_survive_the_death_of_the_engine(few_rows: ServerProcess) -> None:
    client = openai_client(few_rows)
    batch = begin(client, [line(str(i), BASE | {"prompt": "a", "max_tokens": 500}) for i in range(8)])
    eventually(lambda: few_rows.load()["num_requests_running"] > 0)
    os.kill(few_rows.worker.pid, signal.SIGKILL)
    ended = finished(client, batch, 60)
    assert ended.status == "completed" and len(answers(client, ended)) == 8
    assert ended.request_counts and ended.request_counts.failed == 0


# ------------------------------------------------------- over the server's end


@pytest.mark.slow
def test_the_next_server_goes_on(model_dir: Path, tmp_path: Path) -> None:
    """Stopped between lines, then killed: each line has one answer in the end, and nothing is left over."""
    directory = tmp_path / "files"
    options = ("--served-model-name", MODEL, "--files-dir", str(directory), "--max-batch-lines", "2")
    with ServerProcess(model_dir, *options) as server:
        client = openai_client(server)
        batch = begin(client, [line(str(i), BASE | {"prompt": "a", "max_tokens": 150}) for i in range(40)])
        eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed > 3, 30)  # type: ignore[union-attr]
        assert server.stop() == 0
        assert "stops after" in server.log and "goes on" in server.log
    kept = (directory / f"{batch.id}.output.part").read_bytes()
    assert kept.endswith(b"\n") and 3 < kept.count(b"\n") < 40
    with ServerProcess(model_dir, *options) as server:
        client = openai_client(server)
        done = kept.count(b"\n")
        eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed > done, 30)  # type: ignore[union-attr]
        server.kill()
    with ServerProcess(model_dir, *options) as server:
        client = openai_client(server)
        ended = finished(client, batch)
        assert ended.status == "completed" and ended.request_counts and ended.request_counts.completed == 40
        found = answers(client, ended)
        assert ended.usage and ended.usage.output_tokens == 40 * 150
        texts = Counter(result["response"]["body"]["choices"][0]["text"] for result in found.values())
        assert sorted(found, key=int) == [str(i) for i in range(40)] and len(texts) == 1
        assert client.files.content(ended.output_file_id or "").content.startswith(kept)
        assert not list(directory.glob("*.part")) and not list(directory.glob("*.new"))


# ------------------------------------------------------- ends that are hard to wait for


@pytest.mark.slow
def test_what_the_day_does_not_suffice_for_is_said(model_dir: Path, tmp_path: Path) -> None:
    """The next server finds the batch a day old: what was answered stays, each other line has an error."""
    directory = tmp_path / "files"
    options = ("--served-model-name", MODEL, "--files-dir", str(directory), "--max-batch-lines", "1")
    with ServerProcess(model_dir, *options) as server:
        client = openai_client(server)
        batch = begin(client, [line(str(i), BASE | {"prompt": "a", "max_tokens": 300}) for i in range(20)])
        eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed > 1, 30)  # type: ignore[union-attr]
        server.kill()
    path = directory / f"{batch.id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"expires_at": 1}))
    with ServerProcess(model_dir, *options) as server:
        client = openai_client(server)
        ended = finished(client, batch)
        assert ended.status == "expired" and ended.expired_at
        found = answers(client, ended)
        assert sorted(found, key=int) == [str(i) for i in range(20)]
        codes = [result["error"]["code"] for result in found.values() if result["error"]]
        assert set(codes) == {"batch_expired"} and 0 < len(codes) < 19
        assert ended.request_counts and ended.request_counts.failed == len(codes)


def test_a_full_disk_fails_the_batch_and_keeps_its_answers(model_dir: Path) -> None:
    with ServerProcess(model_dir, "--served-model-name", MODEL, "--max-files-bytes", "8000") as server:
        client = openai_client(server)
        batch = finished(client, begin(client, [line(str(i), BASE | {"prompt": "a"}) for i in range(40)]))
        assert batch.status == "failed" and batch.errors and batch.errors.data
        assert [error.code for error in batch.errors.data] == ["file_storage_full"]
        assert batch.request_counts
        assert 0 < len(answers(client, batch)) == batch.request_counts.completed < 40
        with pytest.raises(openai.APIStatusError, match="delete some"):
            client.files.create(file=b"x" * 8000, purpose="batch")
