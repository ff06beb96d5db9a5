"""``/v1/conversations``. Wire format: the Conversations API of OpenAI's published API."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.dialects.dialect import encode_json
from server.errors import ApiError
from server.intake.body import ignored_headers, read_body, state_of
from server.intake.pool import SHORT_BYTES
from server.middleware.gate import OWNER
from server.openapi import describe, queries
from server.responses.items import keep_items, new_id
from server.responses.paging import PAGING, Paging, listed
from server.responses.store import Entry, Page, Store
from server.schemas.openai.conversations import ConversationRequest, ConversationUpdate, ItemsRequest
from server.schemas.openai.items import MAX_ITEMS
from server.schemas.parse import BodyParser, Checked

CREATE = BodyParser(ConversationRequest, refusals={})
UPDATE = BodyParser(ConversationUpdate, refusals={})
ADD = BodyParser(ItemsRequest, refusals={})
R = TypeVar("R", bound=Checked)
T = TypeVar("T")
router = APIRouter(tags=["conversations"])


@router.post("/v1/conversations", **describe(ConversationRequest, "Begin a conversation."))
async def create_conversation(request: Request) -> Response:
    """With some items, perhaps."""

    def create(store: Store, owner: str, asked: ConversationRequest) -> dict[str, Any]:
        items = keep_items(asked.items, "items", lambda item_id: store.item(owner, item_id))
        conversation_id = new_id("conv")
        conversation = {
            "id": conversation_id,
            "object": "conversation",
            "created_at": int(time.time()),
            "metadata": asked.metadata or {},
        }
        store.put(Entry(owner, "conversation", conversation_id, conversation, items))
        return conversation

    return await _with_body(request, CREATE, create)


@router.get("/v1/conversations/{conversation_id}", summary="A conversation, without its items.")
async def retrieve_conversation(request: Request, conversation_id: str) -> Response:
    """404 for one that is not there."""
    return await _without_body(request, lambda store, owner: _body(store, owner, conversation_id))


@router.post(
    "/v1/conversations/{conversation_id}", **describe(ConversationUpdate, "Replace a conversation's metadata.")
)
async def update_conversation(request: Request, conversation_id: str) -> Response:
    """Answers the conversation as it is now."""

    def update(store: Store, owner: str, asked: ConversationUpdate) -> dict[str, Any]:
        body = store.update(owner, "conversation", conversation_id, metadata=asked.metadata or {})
        if body is None:
            raise _not_found(conversation_id)
        return body

    return await _with_body(request, UPDATE, update)


@router.delete("/v1/conversations/{conversation_id}", summary="Forget a conversation with its items.")
async def delete_conversation(request: Request, conversation_id: str) -> Response:
    """Responses made in it stay."""

    def delete(store: Store, owner: str) -> dict[str, Any]:
        if not store.delete(owner, "conversation", conversation_id):
            raise _not_found(conversation_id)
        return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}

    return await _without_body(request, delete)


@router.post("/v1/conversations/{conversation_id}/items", **describe(ItemsRequest, "Add items to a conversation."))
async def create_items(request: Request, conversation_id: str) -> Response:
    """Answers the items as they are kept."""

    def add(store: Store, owner: str, asked: ItemsRequest) -> dict[str, Any]:
        items = keep_items(asked.items, "items", lambda item_id: store.item(owner, item_id))
        if not store.append(owner, conversation_id, items, MAX_ITEMS):
            raise _not_found(conversation_id)
        return listed(Page(items, has_more=False))

    return await _with_body(request, ADD, add)


@router.get("/v1/conversations/{conversation_id}/items", summary="The items of a conversation.", **queries(**PAGING))
async def list_items(request: Request, conversation_id: str) -> Response:
    """The newest first, unless asked otherwise."""
    paging = Paging.of(request.query_params)

    def read(store: Store, owner: str) -> dict[str, Any]:
        page = store.page(owner, "conversation", conversation_id, paging.limit, paging.newest_first, paging.after)
        if page is None:
            raise _not_found(conversation_id)
        return listed(page)

    return await _without_body(request, read)


@router.get("/v1/conversations/{conversation_id}/items/{item_id}", summary="One of them.")
async def retrieve_item(request: Request, conversation_id: str, item_id: str) -> Response:
    """404 for one that is not there."""

    def read(store: Store, owner: str) -> dict[str, Any]:
        item = store.item(owner, item_id, conversation_id)
        if item is None:
            raise _no_item(item_id)
        return item

    return await _without_body(request, read)


@router.delete("/v1/conversations/{conversation_id}/items/{item_id}", summary="Take an item out of a conversation.")
async def delete_item(request: Request, conversation_id: str, item_id: str) -> Response:
    """Answers the conversation."""

    def remove(store: Store, owner: str) -> dict[str, Any]:
        if not store.remove(owner, conversation_id, item_id):
            raise _no_item(item_id)
        return _body(store, owner, conversation_id)

    return await _without_body(request, remove)


def _body(store: Store, owner: str, conversation_id: str) -> dict[str, Any]:
    body = store.body(owner, "conversation", conversation_id)
    if body is None:
        raise _not_found(conversation_id)
    return body


async def _with_body(
    http: Request, parser: BodyParser[R], work: Callable[[Store, str, R], dict[str, Any]]
) -> Response:
    """Parse a body, then work on the store in a thread."""
    state, owner = state_of(http), http.scope.get(OWNER, "")
    with state.capacity.reserve() as reservation:
        body = await read_body(http, reservation)
        asked, ignored = await state.pool.run(len(body), parser.parse, body)
        fields = await state.pool.run_in_thread(len(body), work, state.store, owner, asked)
        return _json(fields, ignored_headers(http.url.path, ignored))


async def _without_body(http: Request, work: Callable[[Store, str], dict[str, Any]]) -> Response:
    state, owner = state_of(http), http.scope.get(OWNER, "")
    return _json(await state.pool.run_in_thread(SHORT_BYTES, work, state.store, owner))


def _json(fields: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(encode_json(fields), headers=headers, media_type="application/json")


def _not_found(conversation_id: str) -> ApiError:
    message = f"Conversation with id {conversation_id!r} not found."
    return ApiError(404, message, "conversation_not_found", "conversation_id")


def _no_item(item_id: str) -> ApiError:
    return ApiError(404, f"Item with id {item_id!r} not found in this conversation.", "item_not_found", "item_id")
