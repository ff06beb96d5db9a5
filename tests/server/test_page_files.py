"""The page's files on the wire."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest

from server.app import create_app
from server.config import ServerConfig
from server.routes.page import FILES, FOLDER
from server.state import ServerState

KEY = ("the-key",)


def get(path: str, config: ServerConfig, method: str = "GET", **headers: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(ServerState(config)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(ask())


@pytest.mark.parametrize("path", sorted(FILES))
def test_each_file_needs_no_key_and_is_kept_until_it_changes(path: str) -> None:
    answer = get(path, ServerConfig(api_keys=KEY))
    assert (answer.status_code, answer.content) == (200, FILES[path].read_bytes())
    kinds = {
        "html": "text/html; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
        "css": "text/css; charset=utf-8",
    }
    assert answer.headers["content-type"] == kinds.get(FILES[path].suffix[1:], "image/svg+xml")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    tag = answer.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = get(path, ServerConfig(), **{"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert get(path, ServerConfig(), **{"if-none-match": '"other"'}).status_code == 200
    assert get(path, ServerConfig(root_path="/below"), "HEAD").status_code == 200
    assert get("/below" + path, ServerConfig(api_keys=KEY, root_path="/below")).content == answer.content
    assert get(path, ServerConfig(), "POST").status_code == 405


def test_without_the_page_there_is_nothing_of_it() -> None:
    for path in FILES:
        assert get(path, ServerConfig(disable_ui=True)).status_code == 404
        assert get(path, ServerConfig(disable_ui=True, api_keys=KEY)).status_code == 401


@pytest.mark.parametrize(
    "path", ["/page", "/page/", "/page/index.html", "/page/../gate.py", "/page/%2e%2e/app.py", "/page/x.js"]
)
def test_nothing_else_is_there(path: str) -> None:
    assert get(path, ServerConfig()).status_code == 404
    assert get(path, ServerConfig(api_keys=KEY)).status_code == 401


def test_what_the_files_name_is_there_and_addresses_are_relative() -> None:
    names = {path.removeprefix("/") for path in FILES}
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    named = set(re.findall(r'(?:src|href)="([^"#]+)"', page))
    assert named <= names and "page/main.js" in named
    for file in FOLDER.glob("*.js"):
        text = file.read_text(encoding="utf-8")
        imported = re.findall(r'(?:from|import) "([^"]+)"', text)
        assert {name.replace("./", "page/", 1) for name in imported} <= names
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)
    assert {file.name for file in FOLDER.iterdir()} == {file.name for file in FILES.values()}
