"""A browser with the page. Whatever a test does, no script may fail, and nothing may be asked of another host."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.page.driver import ChatPage
from tests.server.process import ServerProcess

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--no-sandbox",  # which root cannot have
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


# Not for the session: while it is open its event loop counts as running, and tests elsewhere start their own.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None or not Path(path).exists():
        pytest.fail("tests/page needs Chromium: run `make browser`, or set CHROMIUM to its path", pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def server(built_kernels: None) -> Iterator[ServerProcess]:
    """The bundled model, which calls functions, and thinks when it is asked to."""
    with ServerProcess("") as running:
        yield running


@pytest.fixture(scope="package")
def guarded(built_kernels: None) -> Iterator[ServerProcess]:
    """A server with all that makes a page's life hard."""
    options = ("--api-key", "the-key", "--root-path", "/tandem", "--metrics-port", "0", "--max-logprobs", "2")
    names = ("--served-model-name", "first", "--served-model-name", "second")
    with ServerProcess("", *options, *names) as running:
        yield running


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    context.set_default_timeout(15_000)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A tab that remembers what it asked for, and what went wrong in it."""
    page = context.new_page()
    requested: list[str] = []
    failed: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.on("console", lambda message: message.type in ("error", "warning") and failed.append(message.text))
    yield page
    hosts = {url.split("/")[2] for url in requested if not url.startswith(("data:", "blob:"))}
    assert len(hosts) <= 1, hosts
    # the browser reports each refusal of the server, which tests are about
    assert [text for text in failed if not text.startswith("Failed to load resource")] == []


@pytest.fixture
def chat(page: Page, server: ServerProcess) -> ChatPage:
    return ChatPage(page).open(server.url + "/")
