"""Responses and conversations that are kept, for whom, in the background and over restarts."""

from __future__ import annotations

import json
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.conversations import Conversation, ConversationItem, ConversationItemList
from openai.types.responses import Response, ResponseItemList
from openai.types.responses.response_item import ResponseItem

from tests.server.conftest import MODEL
from tests.server.process import ServerProcess, connect, eventually
from tests.server.responses import (
    BODY,
    LONG,
    PATH,
    events,
    sdk,
    streamed,
    validated,
    whole,
)


@pytest.fixture(scope="module")
def bundled() -> Iterator[ServerProcess]:
    with ServerProcess("") as running:
        yield running


@pytest.fixture
def demo(bundled: ServerProcess) -> openai.OpenAI:
    return sdk(bundled)


# ---------------------------------------------------------------------- what is kept


def test_a_response_goes_on_another(demo: openai.OpenAI) -> None:
    options: Any = {"model": "tandem-demo", "temperature": 0}
    first = demo.responses.create(**options, input="My name is Ada.", instructions="Answer in upper case.")
    second = demo.responses.create(**options, input="What is my name?", previous_response_id=first.id)
    assert "Ada" in second.output_text  # the instructions are not carried over
    assert second.previous_response_id == first.id
    demo.responses.delete(first.id)  # what came of it has all it needs
    third = demo.responses.create(**options, input="What is my name?", previous_response_id=second.id)
    assert "Ada" in third.output_text
    with pytest.raises(openai.NotFoundError) as lost:
        demo.responses.create(**options, input="hi", previous_response_id=first.id)
    assert lost.value.param == "previous_response_id" and lost.value.code == "previous_response_not_found"


def test_responses_are_retrieved_and_deleted(server: ServerProcess, client: openai.OpenAI) -> None:
    response = whole(server, BODY)
    assert httpx.get(f"{server.url}{PATH}/{response['id']}").json() == response
    assert httpx.get(f"{server.url}{PATH}/{response['id']}?stream=true").json()["error"]["param"] == "stream"
    stream = streamed(server, BODY)
    own = f"{server.url}{PATH}/{stream[0]['response']['id']}"
    assert httpx.get(own).json() == stream[-1]["response"]
    assert events(httpx.get(own + "?stream=true").text) == stream
    assert events(httpx.get(own + "?stream=true&starting_after=4").text) == stream[5:]
    assert httpx.delete(own).json() == {"id": own.rpartition("/")[2], "object": "response", "deleted": True}
    for answer in (httpx.get(own), httpx.delete(own), httpx.get(own + "/input_items"), httpx.post(own + "/cancel")):
        assert answer.status_code == 404 and answer.json()["error"]["param"] == "response_id"
        assert answer.json()["error"]["type"] == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_unknown")


def test_what_is_not_stored_is_gone(server: ServerProcess) -> None:
    for body in (BODY | {"store": False}, BODY | {"store": False, "stream": True}):
        answer = server.post(PATH, body)
        response = events(answer.text)[-1]["response"] if "stream" in body else answer.json()
        assert response["store"] is False
        assert httpx.get(f"{server.url}{PATH}/{response['id']}").status_code == 404
        assert server.post(PATH, BODY | {"previous_response_id": response["id"]}).status_code == 404


def test_input_items_come_in_pages(client: openai.OpenAI, server: ServerProcess) -> None:
    items: Any = [{"role": "user", "content": str(number)} for number in range(7)]
    response = client.responses.create(model=MODEL, input=items, max_output_tokens=1)
    for order in ("asc", "desc"):
        found = list(client.responses.input_items.list(response.id, order=order, limit=3))
        texts = [item.content[0].text for item in found]
        assert texts == [str(number) for number in (range(7) if order == "asc" else reversed(range(7)))]
    url = f"{server.url}{PATH}/{response.id}/input_items"
    page = httpx.get(url, params={"order": "asc", "limit": 2, "after": found[4].id}).json()
    validated(ResponseItemList, page)
    assert [item["content"][0]["text"] for item in page["data"]] == ["3", "4"] and page["has_more"]
    assert page["first_id"] == page["data"][0]["id"] and page["last_id"] == page["data"][-1]["id"]
    for name, value in (("order", "up"), ("limit", "0"), ("limit", "101"), ("limit", "x"), ("after", "msg_x")):
        answer = httpx.get(url, params={name: value})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == name


def test_all_kinds_of_items_are_kept(server: ServerProcess) -> None:
    items: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}]},
        {"role": "assistant", "content": "well"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "x"},
    ]
    response = whole(server, BODY | {"input": items})
    page = httpx.get(f"{server.url}{PATH}/{response['id']}/input_items?order=asc").json()
    for item in page["data"]:
        validated(ResponseItem, item)
    kinds = ["message", "message", "reasoning", "message", "function_call", "function_call_output"]
    assert [item["type"] for item in page["data"]] == kinds
    # the items of one response may be referred to by another, and come back as they are
    references = [{"type": "item_reference", "id": page["data"][1]["id"]}, {"id": response["output"][0]["id"]}]
    again = whole(server, BODY | {"input": references})
    shown = httpx.get(f"{server.url}{PATH}/{again['id']}/input_items?order=asc").json()["data"]
    assert shown == [page["data"][1], response["output"][0]]
    assert whole(server, BODY | {"input": [*shown, items[1]]})


def test_a_conversation_remembers(demo: openai.OpenAI, bundled: ServerProcess) -> None:
    options: Any = {"model": "tandem-demo", "temperature": 0}
    before = ["My name is Ada.", "Nice to meet you, Ada!"]
    items: Any = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), before, strict=True)]
    conversation = demo.conversations.create(metadata={"a": "b"}, items=items)
    assert demo.conversations.retrieve(conversation.id) == conversation
    first = demo.responses.create(**options, input="What is my name?", conversation=conversation.id)
    assert "Ada" in first.output_text and first.conversation.id == conversation.id
    list(demo.responses.create(**options, input="hello", conversation={"id": conversation.id}, stream=True))
    url = f"{bundled.url}/v1/conversations/{conversation.id}"
    listed = validated(ConversationItemList, httpx.get(url + "/items?order=asc").json())
    texts = [item.content[0].text for item in listed.data]
    assert texts[:5] == [*before, "What is my name?", first.output_text, "hello"] and len(texts) == 6
    added = demo.conversations.items.create(conversation.id, items=[{"role": "user", "content": "more"}]).data
    item = httpx.get(f"{url}/items/{added[0].id}").json()
    assert validated(ConversationItem, item).content[0].text == "more"
    assert demo.conversations.items.delete(added[0].id, conversation_id=conversation.id).id == conversation.id
    with pytest.raises(openai.NotFoundError):
        demo.conversations.items.retrieve(added[0].id, conversation_id=conversation.id)
    assert demo.conversations.update(conversation.id, metadata={"c": "d"}).metadata == {"c": "d"}
    validated(Conversation, httpx.get(url).json())
    assert demo.conversations.delete(conversation.id).deleted
    for path in ("", "/items"):
        assert httpx.get(url + path).status_code == 404
    lost = bundled.post(PATH, {"input": "hi", "conversation": conversation.id})
    assert lost.status_code == 404 and lost.json()["error"]["param"] == "conversation"


def test_keys_keep_apart_what_is_theirs(guarded: ServerProcess) -> None:
    first, second = sdk(guarded, "first-key"), sdk(guarded, "second-key")
    options: Any = {"model": MODEL, "max_output_tokens": 2}
    response = first.responses.create(**options, input="secret")
    conversation = first.conversations.create(items=[{"role": "user", "content": "secret"}])
    (item,) = first.responses.input_items.list(response.id).data
    for attempt in (
        lambda: second.responses.retrieve(response.id),
        lambda: second.responses.delete(response.id),
        lambda: second.responses.cancel(response.id),
        lambda: second.responses.input_items.list(response.id),
        lambda: second.responses.create(**options, input="x", previous_response_id=response.id),
        lambda: second.responses.create(**options, input="x", conversation=conversation.id),
        lambda: second.conversations.retrieve(conversation.id),
        lambda: second.conversations.items.list(conversation.id),
        lambda: second.conversations.delete(conversation.id),
    ):
        with pytest.raises(openai.NotFoundError):
            attempt()
    with pytest.raises(openai.BadRequestError) as refused:
        second.responses.create(**options, input=[{"type": "item_reference", "id": item.id}])
    assert refused.value.param == "input[0].id"
    assert first.responses.retrieve(response.id).id == response.id
    by_header = httpx.get(f"{guarded.url}{PATH}/{response.id}", headers={"x-api-key": "first-key"})
    assert by_header.status_code == 200


# ---------------------------------------------------------------------- the background


def wait_for(client: openai.OpenAI, response_id: str, *statuses: str) -> Any:
    found: list[Any] = []

    def reached() -> bool:
        found.append(client.responses.retrieve(response_id))
        return found[-1].status in statuses

    eventually(reached, 30)
    return found[-1]


def test_work_in_the_background(server: ServerProcess, client: openai.OpenAI) -> None:
    queued = whole(server, BODY | {"background": True, "ignore_eos": True})
    assert queued["status"] == "queued" and queued["output"] == [] and queued["usage"] is None
    done = wait_for(client, queued["id"], "completed", "incomplete", "failed")
    same = whole(server, BODY | {"ignore_eos": True})
    assert done.output_text == same["output"][0]["content"][0]["text"] and done.background
    stream = events(httpx.get(f"{server.url}{PATH}/{queued['id']}?stream=true").text)
    assert [event["type"] for event in stream[:3]] == [
        "response.created", "response.queued", "response.in_progress",
    ]  # fmt: skip
    assert stream[-1]["response"]["output"][0]["content"][0]["text"] == done.output_text
    assert client.responses.cancel(queued["id"]).status == "incomplete"  # it stays as it is


def test_work_goes_on_without_its_client(server: ServerProcess, client: openai.OpenAI) -> None:
    body = {"input": "hi", "max_output_tokens": 2000, "ignore_eos": True, "background": True, "stream": True}
    with httpx.stream("POST", server.url + PATH, json=body, timeout=60) as answer:
        head = next(answer.iter_text())
    first = json.loads(head.split("\n")[1].removeprefix("data: "))
    response_id = first["response"]["id"]
    # another client takes it up where the first has left it, while it is being made
    own = f"{server.url}{PATH}/{response_id}"
    rest = events(httpx.get(own + "?stream=true&starting_after=0", timeout=60).text)
    assert rest[0]["sequence_number"] == 1 and rest[-1]["type"] == "response.incomplete"
    assert wait_for(client, response_id, "incomplete").usage.output_tokens == 2000
    assert events(httpx.get(own + "?stream=true").text)[1:] == rest


def test_background_work_is_cancelled(server: ServerProcess, client: openai.OpenAI) -> None:
    begun = client.responses.create(
        model=MODEL, input="hi", max_output_tokens=3900, background=True, extra_body={"ignore_eos": True}
    )
    wait_for(client, begun.id, "in_progress")
    unfinished = server.post(PATH, {"input": "x", "previous_response_id": begun.id})
    assert unfinished.status_code == 400 and unfinished.json()["error"]["param"] == "previous_response_id"
    for _ in range(2):
        assert client.responses.cancel(begun.id).status == "cancelled"
    cancelled = httpx.get(f"{server.url}{PATH}/{begun.id}").json()
    assert validated(Response, cancelled).status == "cancelled"
    eventually(server.is_idle)
    foreground = client.responses.create(model=MODEL, input="hi", max_output_tokens=1)
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(foreground.id)


def test_deleting_ends_background_work(server: ServerProcess, client: openai.OpenAI) -> None:
    begun = client.responses.create(
        model=MODEL, input="hi", max_output_tokens=3900, background=True, extra_body={"ignore_eos": True}
    )
    client.responses.delete(begun.id)
    eventually(server.is_idle)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(begun.id)


@pytest.mark.parametrize("stream", [False, True])
def test_work_in_the_foreground_ends_with_its_client(server: ServerProcess, stream: bool) -> None:
    connection = connect(server, PATH, LONG | {"stream": stream, "request_id": f"left-{stream}"})
    eventually(lambda: server.load()["num_requests_running"] == 1, 20)
    connection.close()
    eventually(server.is_idle)
    assert httpx.get(f"{server.url}{PATH}/resp_left-{stream}").status_code == 404


# ---------------------------------------------------------------------- failures and restarts


def test_failures_are_told_and_kept(model_dir: Path) -> None:
    with ServerProcess(model_dir) as server:
        begun = whole(server, LONG | {"background": True})
        with httpx.stream("POST", server.url + PATH, json=LONG | {"stream": True}, timeout=60) as answer:
            parts = answer.iter_text()
            text = next(parts)
            server.worker.kill()
            text += "".join(parts)
        *_, error, failed = events(text)
        assert error["type"] == "error" and error["code"] == "engine_dead" and error["message"]
        assert failed["type"] == "response.failed" and failed["response"]["status"] == "failed"
        assert failed["response"]["error"]["code"] == "server_error"
        kept = httpx.get(f"{server.url}{PATH}/{failed['response']['id']}").json()
        assert kept == failed["response"]
        client = sdk(server)
        assert wait_for(client, begun["id"], "failed").error.code == "server_error"
        server.wait_healthy()
        assert whole(server, BODY)["status"] in ("completed", "incomplete")


def test_a_file_survives_restarts(model_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "responses.db"
    options = ("--response-store", str(file), "--served-model-name", MODEL)
    with ServerProcess(model_dir, *options) as server:
        client = sdk(server)
        kept = streamed(server, BODY)
        response_id = kept[0]["response"]["id"]
        conversation = client.conversations.create(items=[{"role": "user", "content": "hi"}])
        unfinished = whole(server, LONG | {"background": True})["id"]
        wait_for(client, unfinished, "in_progress")
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
        with pytest.raises(AssertionError, match="another server uses it"):
            ServerProcess(model_dir, *options, wait=False)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    with ServerProcess(model_dir, *options) as server:
        client = sdk(server)
        own = f"{server.url}{PATH}/{response_id}"
        assert httpx.get(own).json() == kept[-1]["response"]
        assert events(httpx.get(own + "?stream=true").text) == kept
        lost = httpx.get(f"{server.url}{PATH}/{unfinished}").json()
        assert validated(Response, lost).status == "failed" and lost["error"]["code"] == "server_error"
        assert whole(server, BODY | {"previous_response_id": response_id})
        assert [item.content[0].text for item in client.conversations.items.list(conversation.id)] == ["hi"]


def test_a_drain_waits_for_background_work(model_dir: Path, tmp_path: Path) -> None:
    options = ("--response-store", str(tmp_path / "kept.db"))
    with ServerProcess(model_dir, *options) as server:
        begun = whole(server, LONG | {"background": True, "max_output_tokens": 1500})["id"]
        eventually(lambda: server.load()["num_requests_running"] == 1, 20)
        assert server.stop() == 0
    with ServerProcess(model_dir, *options) as server:
        done = httpx.get(f"{server.url}{PATH}/{begun}").json()
        assert done["status"] == "incomplete" and done["usage"]["output_tokens"] == 1500
