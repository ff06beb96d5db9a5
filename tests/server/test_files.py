"""``/v1/files``: what is uploaded comes back, to its owner alone; nothing that is sent exceeds the limits."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import FileObject

from server.errors import ApiError
from server.files.form import MAX_FORM_BYTES, MAX_PARTS, UploadForm
from server.files.store import FileStore, Limits
from tandem.errors import ConfigError, RequestError
from tests.server.process import ServerProcess, raw

BOUNDARY = b"x0x"


def part(name: str, value: bytes, extra: str = "") -> bytes:
    head = f'--x0x\r\ncontent-disposition: form-data; name="{name}"{extra}\r\n\r\n'
    return head.encode() + value + b"\r\n"


def form(data: bytes, filename: str = "a.jsonl", purpose: str = "batch", more: bytes = b"") -> bytes:
    file = part("file", data, f'; filename="{filename}"')
    return part("purpose", purpose.encode()) + file + more + b"--x0x--\r\n"


def upload(server: ServerProcess, body: bytes, content_type: str = "multipart/form-data; boundary=x0x") -> Any:
    headers = {"content-type": content_type}
    return httpx.post(server.url + "/v1/files", content=body, headers=headers, timeout=30)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStore]:
    made = FileStore(str(tmp_path / "files"), Limits(file_bytes=1000, files=3, bytes=1500))
    yield made
    made.close()


# ------------------------------------------------------- the form


@settings(max_examples=60)
@given(
    data=st.one_of(
        st.binary(max_size=300), st.lists(st.sampled_from([b"\r", b"\n", b"--x0x", b"-", b"a"])).map(b"".join)
    ),
    cuts=st.lists(st.integers(0, 600), max_size=8),
)
def test_any_bytes_come_through_any_cuts(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int]
) -> None:
    if b"\r\n--x0x" in b"\r\n" + data:
        data = data.replace(b"--x0x", b"")
    store = FileStore(str(tmp_path_factory.mktemp("drawn")), Limits(file_bytes=1000))
    draft = store.draft("me")
    reader, body = UploadForm(draft, BOUNDARY), form(data)
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    for start, end in zip(places, places[1:], strict=False):
        reader.feed(body[start:end])
    file = draft.keep(*reader.finish())
    assert store.path(file).read_bytes() == data and (file.bytes, file.filename) == (len(data), "a.jsonl")
    store.close()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "ends before"),
        (form(b"a")[:-8], "ends before"),
        (form(b"a").replace(b"x0x", b"y0y"), "the form"),
        (b"--x0x\r\n\r\nabc\r\n--x0x--\r\n", "Content-Disposition"),
        (b"--x0x\r\nx: " + b"y" * 10000, "header"),
        (b"--x0x\r\n" + b"x: y\r\n" * 100, "header"),
        (part("purpose", b"batch") + b"--x0x--\r\n", "file is required"),
        (part("file", b"a", '; filename="a"') + b"--x0x--\r\n", "purpose is required"),
        (form(b"a", more=part("file", b"b", '; filename="b"')), "twice"),
        (form(b"a", more=part("purpose", b"batch")), "twice"),
        (form(b"a", more=part("colour", b"red")), "colour"),
        (form(b"a", more=part("colour", b"red" * 1000)), "colour"),
        (b"".join(part(f"a{i}", b"") for i in range(MAX_PARTS + 1)), "parts"),
        (form(b"a", purpose="fine-tune"), "fine-tune"),
        (form(b"a", more=part("expires_after[seconds]", b"7200")), "anchor"),
        (form(b"a", more=part("expires_after[anchor]", b"created_at")), "seconds"),
        (
            form(b"a", more=part("expires_after[anchor]", b"created_at") + part("expires_after[seconds]", b"5")),
            "3600",
        ),
    ],
)
def test_hostile_forms_are_refused(store: FileStore, body: bytes, words: str) -> None:
    draft = store.draft("me")
    with pytest.raises(RequestError, match=words):
        reader = UploadForm(draft, BOUNDARY)
        reader.feed(body)
        reader.finish()
    draft.discard()
    assert [path.name for path in store.directory.iterdir()] == ["lock"]


def test_a_form_is_bounded_besides_its_file(store: FileStore) -> None:
    reader = UploadForm(store.draft("me"), BOUNDARY)
    with pytest.raises((ApiError, RequestError)):
        for _ in range(MAX_FORM_BYTES // 1000 + 1):
            reader.feed(b"\r\n" * 500)  # a preamble without an end


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\\..\\passwd", "a\x01\x7f/passwd", "passwd"])
def test_names_are_no_paths(store: FileStore, name: str) -> None:
    draft = store.draft("me")
    reader = UploadForm(draft, BOUNDARY)
    reader.feed(form(b"a", name))
    assert reader.finish()[0] == "passwd"


# ------------------------------------------------------- the store


def keep(store: FileStore, data: bytes, owner: str = "me", seconds: int = 3600) -> str:
    draft = store.draft(owner)
    draft.write(data)
    return draft.keep("a", "batch", seconds).id


def test_limits_hold_and_deleting_makes_room(store: FileStore) -> None:
    with pytest.raises(ApiError, match="a file has at most"):
        keep(store, b"a" * 1001)
    for draft in list(store._drafts.values()):
        draft.discard()
    first = keep(store, b"a" * 1000)
    crowded = store.draft("me")
    with pytest.raises(ApiError, match="delete some"):
        crowded.write(b"a" * 501)
    crowded.discard()
    store.delete("me", first)
    ids = [keep(store, b"a" * 400) for _ in range(3)]
    with pytest.raises(ApiError, match="3 files"):
        store.draft("me")
    for file_id in ids:
        store.delete("me", file_id)
    assert [path.name for path in store.directory.iterdir()] == ["lock"] and store._num_bytes == 0


def test_a_directory_is_private_survives_and_is_used_once(tmp_path: Path) -> None:
    now = 1000.0
    directory = tmp_path / "files"
    store = FileStore(str(directory), clock=lambda: now)
    short, long = keep(store, b"short"), keep(store, b"long", seconds=7200)
    left = store.draft("me")
    left.write(b"left")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in directory.glob("file-*")} == {0}
    with pytest.raises(ConfigError, match="another server"):
        FileStore(str(directory))
    store.close()
    now += 3600
    again = FileStore(str(directory), clock=lambda: now)
    with pytest.raises(ApiError, match=short):
        again.find("me", short)
    assert again.path(again.find("me", long)).read_bytes() == b"long"
    assert sorted(path.name for path in directory.iterdir()) == sorted([f"{long}.data", f"{long}.json", "lock"])
    again.close()


def test_a_temporary_directory_goes_with_its_store() -> None:
    store = FileStore()
    keep(store, b"a")
    directory = store.directory
    store.close()
    assert not directory.exists()


# ------------------------------------------------------- the routes


def test_the_sdk_uploads_lists_reads_and_deletes(client: openai.OpenAI) -> None:
    data = b'{"a": 1}\n' * 100_000
    file = client.files.create(
        file=("naïve.jsonl", data), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    FileObject.model_validate(file.model_dump(), strict=True)
    assert (file.bytes, file.filename, file.purpose) == (len(data), "naïve.jsonl", "batch")
    assert file.expires_at == file.created_at + 3600
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == data
    others = [client.files.create(file=b"x", purpose="batch").id for _ in range(4)]
    ids = [file.id, *others]
    for order in ("asc", "desc"):
        for limit in (1, 2, 100):
            found = [f.id for f in client.files.list(order=order, limit=limit, purpose="batch") if f.id in ids]
            assert found == (ids if order == "asc" else ids[::-1])
    assert not {f.id for f in client.files.list(purpose="batch_output")} & {*ids}
    for file_id in ids:
        assert client.files.delete(file_id).deleted
        for use in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError):
                use(file_id)


def test_another_key_sees_nothing(guarded: ServerProcess) -> None:
    own, other = (openai.OpenAI(base_url=guarded.url + "/v1", api_key=f"{n}-key") for n in ("first", "second"))
    file = own.files.create(file=b"secret", purpose="batch")
    assert not list(other.files.list())
    for use in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError):
            use(file.id)
    with pytest.raises(openai.BadRequestError):
        other.files.list(after=file.id)
    assert own.files.content(file.id).read() == b"secret"


def test_wrong_requests_are_refused(server: ServerProcess) -> None:
    good = form(b"a")
    assert upload(server, good, "application/json").status_code == 415
    for content_type in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + 71 * "a",
    ):
        answer = upload(server, good, content_type)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_form")
    assert upload(server, good[:-9]).status_code == 400
    assert upload(server, form(b"a", purpose="poem")).json()["error"]["param"] == "purpose"
    for query in ("limit=0", "limit=10001", "order=up", "after=file-none"):
        answer = httpx.get(f"{server.url}/v1/files?{query}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, query.partition("=")[0])
    head = b"POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-type: multipart/form-data; boundary=x0x\r\n"
    assert b" 413 " in raw(server, head + b"content-length: 999999999999\r\n\r\n").split(b"\r\n")[0]
    name = 'a"\r\nset-cookie: b=c\r\nx: "'
    answer = upload(server, form(b"a", name))
    if answer.status_code == 200:
        content = httpx.get(f"{server.url}/v1/files/{answer.json()['id']}/content")
        assert "set-cookie" not in content.headers


def test_a_client_that_leaves_leaves_nothing(server: ServerProcess) -> None:
    before = len(httpx.get(server.url + "/v1/files").json()["data"])
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = b"POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-type: multipart/form-data; boundary=x0x\r\n"
        connection.sendall(head + b"content-length: 100000\r\n\r\n" + form(b"a" * 1000)[:-10])
    assert len(httpx.get(server.url + "/v1/files").json()["data"]) == before
