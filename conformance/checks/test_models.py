"""``GET /models`` and ``GET /models/{id}``."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from ..capabilities import Capabilities
from ..client import Api, Json
from ..requirement import group, must, not_offered, should
from ..schema import validate

pytestmark = group("models", "models")
LIST = "api-reference/models/list"
RETRIEVE = "api-reference/models/retrieve"
OBJECT = "api-reference/models/object"


@must("the list is an object with object: list, and data with at least one model", LIST)
def test_list(api: Api) -> None:
    """The envelope."""
    body = api.client.get("/models").ok()
    assert body.get("object") == "list", f"expected object: list, got {body.get('object')!r}"
    assert isinstance(body.get("data"), list) and body["data"], "expected data to be a list that is not empty"


@must("every entry is a model object: id, object, created, owned_by", OBJECT)
def test_entries(api: Api) -> None:
    """Strictly typed."""
    for entry in api.client.get("/models").ok()["data"]:
        validate("model", entry)


@must("created is a Unix time in whole seconds", OBJECT + "#models-object-created")
def test_created(api: Api) -> None:
    """An integer, not a float, and neither in milliseconds nor before the first model."""
    for entry in api.client.get("/models").ok()["data"]:
        created = entry.get("created")
        assert type(created) is int, f"expected created to be an integer, got {created!r}"
        assert 0 <= created < 2**33, f"expected seconds, got {created}"


@should("ids are unique in the list", LIST)
def test_unique(api: Api) -> None:
    """A name that stands there twice cannot be told apart."""
    names = [entry["id"] for entry in api.client.get("/models").ok()["data"]]
    assert len(names) == len(set(names)), f"expected unique ids, got {names}"


def listed(api: Api) -> list[Json]:
    """The entries; that there is one is another check's business."""
    entries: list[Json] = api.client.get("/models").ok()["data"]
    return entries or not_offered("it lists no model")


@must("a model of the list can be retrieved, and is the same", RETRIEVE)
def test_retrieve(api: Api) -> None:
    """The id may hold a slash, as hub ids do: it is part of the path."""
    entry = listed(api)[0]
    found = api.client.get("/models/" + quote(entry["id"], safe="/")).ok()
    validate("model", found)
    same = {key: found.get(key) for key in ("id", "object", "owned_by")}
    assert same == {key: entry.get(key) for key in same}, f"expected {entry}, got {found}"


@should("an id with a slash can also be retrieved percent-encoded, as the official clients send it", RETRIEVE)
def test_retrieve_encoded(api: Api) -> None:
    """openai-python encodes path parameters."""
    names = [entry["id"] for entry in listed(api)]
    name = next((name for name in names if "/" in name), names[0])
    found = api.client.get("/models/" + quote(name, safe="")).ok()
    assert found.get("id") == name, f"expected id {name!r}, got {found.get('id')!r}"


@must("an unknown model gets 404", "guides/error-codes/api-errors")
@pytest.mark.parametrize("name", ["no-such-model", "no/such-model", "no%20such%20model"])
def test_unknown(api: Api, name: str) -> None:
    """With a slash in it too: not the list, nor another model."""
    api.client.get("/models/" + name).refused(404)


@should("every listed name, an alias too, answers", LIST)
def test_listed_names_answer(api: Api, capabilities: Capabilities) -> None:
    """Three at most: each may be a model to load."""
    capabilities.demand("chat")
    for entry in api.client.get("/models").ok()["data"][:3]:
        api.chat(model=entry["id"], **{api.limit: 1}).ok()
