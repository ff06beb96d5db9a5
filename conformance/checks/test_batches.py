"""``/files`` and ``/batches``: requests that are answered while clients are away."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from ..client import Api, Exchange
from ..requirement import group, must, not_able, should
from ..schema import validate

pytestmark = group("files and batches", "files", "batches")
FILES = "api-reference/files/"
BATCHES = "api-reference/batch/"
GUIDE = "guides/batch"
BOUNDARY = "conformance-boundary"
PATIENCE = 60.0  # seconds; a day is allowed, and no fault
ENDED = ("completed", "failed", "expired", "cancelled")
PATH = "/v1/chat/completions"


def upload(api: Api, data: bytes, name: str = "requests.jsonl", **values: str) -> Exchange:
    """A form with a file and some values."""
    parts = [f'name="{field}"\r\n\r\n{value}\r\n'.encode() for field, value in values.items()]
    parts.append(
        f'name="file"; filename="{name}"\r\ncontent-type: application/jsonl\r\n\r\n'.encode() + data + b"\r\n"
    )
    form = b"".join(f"--{BOUNDARY}\r\ncontent-disposition: form-data; ".encode() + part for part in parts)
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    return api.client.post("/files", form + f"--{BOUNDARY}--\r\n".encode(), headers=headers)


def kept(api: Api, data: bytes = b"{}\n") -> Any:
    """A file of the server's."""
    return upload(api, data, purpose="batch").ok()


def line(api: Api, custom_id: str, **fields: Any) -> Any:
    """A request of a batch."""
    body = api.chat_body(**{api.limit: 4, **fields})
    return {"custom_id": custom_id, "method": "POST", "url": PATH, "body": body}


def created(api: Api, lines: list[Any], **fields: Any) -> Any:
    """A batch of these lines."""
    data = "".join(text if isinstance(text, str) else json.dumps(text) + "\n" for text in lines).encode()
    body = {"input_file_id": kept(api, data)["id"], "endpoint": PATH, "completion_window": "24h", **fields}
    return api.client.post("/batches", body).ok()


def ended(api: Api, batch: Any) -> Any:
    """A batch when it is over."""
    deadline = time.monotonic() + PATIENCE
    while batch["status"] not in ENDED:
        if time.monotonic() > deadline:
            not_able(f"the batch is not over after {PATIENCE:.0f} s, which is allowed")
        time.sleep(0.1)
        batch = api.client.get(f"/batches/{batch['id']}").ok()
    return batch


def results(api: Api, file_id: str | None) -> list[Any]:
    """The lines of a file of answers."""
    if not file_id:
        return []
    answer = api.client.get(f"/files/{file_id}/content")
    assert answer.status == 200, f"expected 200, got {answer.status}"
    return [json.loads(text) for text in answer.text.splitlines()]


@must("an upload is answered by a file object, and can be retrieved", FILES + "create")
def test_upload(api: Api) -> None:
    """Strictly typed; bytes, name and purpose are those that were sent."""
    file = kept(api, b'{"a": 1}\n')
    validate("file", file)
    told = {name: file[name] for name in ("bytes", "filename", "purpose")}
    expected = {"bytes": 9, "filename": "requests.jsonl", "purpose": "batch"}
    assert told == expected, f"expected {expected}, got {told}"
    found = api.client.get(f"/files/{file['id']}").ok()
    assert found["id"] == file["id"], f"expected the file {file['id']}, got {found['id']}"


@must("the content of a file is the bytes that were uploaded", FILES + "retrieve-contents")
@pytest.mark.parametrize(
    "data", [b"a\r\n\r\n--b\r\n", "naïve 東京\n".encode(), b"x" * 100_000], ids=["lines", "utf8", "long"]
)
def test_content(api: Api, data: bytes) -> None:
    """Line ends too."""
    file = kept(api, data)
    found = api.client.get(f"/files/{file['id']}/content")
    assert found.status == 200, f"expected 200, got {found.status}"
    assert found.answer == data, f"expected the {len(data)} bytes sent, got {len(found.answer)} others"


@must("the list of files has every file once, whatever the size of its pages", FILES + "list")
def test_list(api: Api) -> None:
    """Pages join through after and has_more."""
    own = [kept(api)["id"] for _ in range(3)]
    seen: list[str] = []
    query = "?limit=2"
    for _ in range(50):
        page = api.client.get("/files" + query).ok()
        assert page.get("object") == "list", f"expected object: list, got {page.get('object')!r}"
        assert len(page["data"]) <= 2, f"expected at most 2 files, got {len(page['data'])}"
        seen += [file["id"] for file in page["data"]]
        if not page["has_more"] or set(own) <= set(seen):
            break
        query = f"?limit=2&after={seen[-1]}"
    counts = [seen.count(file_id) for file_id in own]
    assert counts == [1, 1, 1], f"expected each new file once, got {counts}"


@must("a deleted file is gone", FILES + "delete")
def test_delete(api: Api) -> None:
    """So is its content."""
    file_id = kept(api)["id"]
    answer = api.client.send("DELETE", f"/files/{file_id}").ok()
    expected = {"id": file_id, "object": "file", "deleted": True}
    assert answer == expected, f"expected {expected}, got {answer}"
    for path in (f"/files/{file_id}", f"/files/{file_id}/content"):
        api.client.get(path).refused(404)


@must("an upload without a file or a known purpose is refused", FILES + "create")
@pytest.mark.parametrize("values", [{}, {"purpose": "poem"}], ids=["missing", "unknown"])
def test_bad_upload(api: Api, values: dict[str, str]) -> None:
    """400, not 500."""
    upload(api, b"{}\n", **values).refused(400, 422)


@must("an unknown file or batch gets 404 and an error object", "guides/error-codes/api-errors")
@pytest.mark.parametrize("path", ["/files/file-none", "/files/file-none/content", "/batches/batch_none"])
def test_unknown(api: Api, path: str) -> None:
    """Not an empty one."""
    api.client.get(path).refused(404)


@must("a batch is an object that tells what was asked", BATCHES + "create")
def test_create(api: Api) -> None:
    """Strictly typed, and the same when retrieved."""
    batch = created(api, [line(api, "a")], metadata={"k": "v"})
    validate("batch", batch)
    told = {name: batch.get(name) for name in ("object", "endpoint", "completion_window", "metadata")}
    expected = {"object": "batch", "endpoint": PATH, "completion_window": "24h", "metadata": {"k": "v"}}
    assert told == expected, f"expected {expected}, got {told}"
    found = api.client.get(f"/batches/{batch['id']}").ok()
    assert found["id"] == batch["id"], f"expected the batch {batch['id']}, got {found['id']}"


@must("each request has one result, known by its custom_id", GUIDE + "#5-retrieve-the-results")
def test_results(api: Api) -> None:
    """In any order; each holds an answer of the route."""
    batch = ended(api, created(api, [line(api, name) for name in ("a", "b", "c")]))
    assert batch["status"] == "completed", f"expected completed, got {batch['status']}"
    counts = {"total": 3, "completed": 3, "failed": 0}
    assert batch["request_counts"] == counts, f"expected {counts}, got {batch['request_counts']}"
    found = results(api, batch["output_file_id"])
    ids = sorted(result["custom_id"] for result in found)
    assert ids == ["a", "b", "c"], f"expected one result for each of a, b, c, got {ids}"
    for result in found:
        assert result["response"]["status_code"] == 200, f"expected 200, got {result['response']['status_code']}"
        assert result["error"] is None, f"expected error: null, got {result['error']}"
        validate("chat", result["response"]["body"])


@must("a result of a batch is what the route answers", GUIDE)
def test_same(api: Api) -> None:
    """Greedy."""
    fields = {api.limit: 4}
    direct = api.chat("Say hello.", **fields).ok()
    batch = ended(api, created(api, [line(api, "a", content="Say hello.")]))
    (result,) = results(api, batch["output_file_id"])
    contents = [body["choices"][0]["message"]["content"] for body in (direct, result["response"]["body"])]
    assert contents[0] == contents[1], f"expected {contents[0]!r}, got {contents[1]!r}"


@must("a request that is refused fails alone, and is counted", GUIDE + "#5-retrieve-the-results")
def test_failed_request(api: Api) -> None:
    """The other one is answered."""
    batch = ended(api, created(api, [line(api, "good"), line(api, "bad", temperature=-5)]))
    counts = {"total": 2, "completed": 1, "failed": 1}
    assert batch["request_counts"] == counts, f"expected {counts}, got {batch['request_counts']}"
    good = [result["custom_id"] for result in results(api, batch["output_file_id"])]
    bad = [result["custom_id"] for result in results(api, batch["error_file_id"])]
    assert (good, bad) == (["good"], ["bad"]), f"expected good in the output and bad in the errors, got {good}, {bad}"


@must(
    "a file that is none of requests fails its batch, and the errors name the lines",
    BATCHES + "object#batch-object-errors",
)
@pytest.mark.parametrize("fault", ["json", "twice", "url"])
def test_bad_file(api: Api, fault: str) -> None:
    """No line of it is answered."""
    second = {"json": "{\n", "twice": line(api, "a"), "url": line(api, "b") | {"url": "/v1/completions"}}[fault]
    batch = ended(api, created(api, [line(api, "a"), second]))
    assert batch["status"] == "failed", f"expected failed, got {batch['status']}"
    lines = [error.get("line") for error in batch["errors"]["data"]]
    assert lines == [2], f"expected an error at line 2, got {lines}"


@must("a batch of an unknown file, route or window is refused", BATCHES + "create")
@pytest.mark.parametrize("field", ["input_file_id", "endpoint", "completion_window"])
def test_bad_batch(api: Api, field: str) -> None:
    """At once, not when it is run."""
    body = {"input_file_id": kept(api)["id"], "endpoint": PATH, "completion_window": "24h", field: "none"}
    api.client.post("/batches", body).refused(400, 404, 422)


@must("a batch that is cancelled ends so", BATCHES + "cancel")
def test_cancel(api: Api) -> None:
    """Unless it was faster."""
    batch = created(api, [line(api, str(number), **{api.limit: 64}) for number in range(20)])
    answer = api.client.post(f"/batches/{batch['id']}/cancel", None)
    if answer.status in (400, 409):
        not_able("the batch was over before it could be cancelled")
    status = ended(api, answer.ok())["status"]
    assert status in ("cancelled", "completed"), f"expected cancelled, got {status}"
    assert answer.json()["status"] in ("cancelling", "cancelled"), (
        f"expected cancelling, got {answer.json()['status']}"
    )


@should("batches are listed, the newest first", BATCHES + "list")
def test_batch_list(api: Api) -> None:
    """As the reference's example shows."""
    ids = [created(api, [line(api, "a")])["id"] for _ in range(2)]
    page = api.client.get("/batches?limit=100").ok()
    found = [batch["id"] for batch in page["data"] if batch["id"] in ids]
    assert found == ids[::-1], f"expected {ids[::-1]}, got {found}"
