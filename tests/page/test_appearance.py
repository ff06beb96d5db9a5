"""Colours, narrow windows, and hands that have a keyboard only."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.page.driver import ENDLESS, ChatPage, text_chunks
from tests.server.process import ServerProcess, eventually

RICH = """# A heading
Some *text* with `code`, [a link](https://example.com/) and averyveryveryveryveryveryveryveryveryveryveryverylongword

| a | table | of | many | columns | that | are | wide |
|---|---|---|---|---|---|---|---|
| 1 | 22222222222222 | 3 | 4 | 5 | 66666666666666 | 7 | 8 |

> quoted

```python
print("a line of code that is a good deal longer than a narrow window is wide")
```
"""
BACKGROUND = "getComputedStyle(document.documentElement).backgroundColor"
WCAG_AA = 4.5


def is_dark(page: Page) -> bool:
    return page.evaluate(f"{BACKGROUND}.match(/\\d+/g).every((part) => part < 64)")


def test_the_system_decides_between_light_and_dark_and_so_can_the_user(chat: ChatPage, page: Page) -> None:
    assert not is_dark(page)
    page.emulate_media(color_scheme="dark")
    assert is_dark(page)
    for label, dark in (("system", False), ("light", True)):
        chat.button(f"Colours: {label}").click()
        assert is_dark(page) == dark
    page.emulate_media(color_scheme="light")
    assert is_dark(page)
    page.reload()
    assert is_dark(page)
    chat.button("Colours: dark").click()
    assert not is_dark(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(chat: ChatPage, page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    chat.set(temperature="2", seed="7", max_tokens="80")
    chat.ask("Tell me about Tandem.")
    chat.answer_with(*text_chunks(RICH))
    chat.ask("Show me everything.")
    chat.answer_with({"error": {"message": "something is wrong", "code": "bad", "param": "seed"}})
    chat.ask("And now?")
    chat.button("Token probabilities").click()
    chat.answers.first.locator(".token").last.hover()
    expect(page.get_by_role("tooltip")).to_be_visible()
    page.locator("#settings-toggle").evaluate("button => button.click()")  # the pointer stays where it is
    page.locator("[name=tools]").evaluate(
        "f => { f.value = '{'; f.dispatchEvent(new Event('input', {bubbles: true})) }"
    )
    found = chat.contrasts()
    assert len(found) > 60
    assert [text for contrast, text in found if contrast < WCAG_AA] == []


def test_a_narrow_window_is_never_scrolled_sideways(chat: ChatPage, page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    assert chat.overflow() <= 0
    chat.answer_with(*text_chunks(RICH))
    chat.ask("a" * 200)
    chat.answers.last.locator(".actions button").last.scroll_into_view_if_needed()
    assert chat.overflow() <= 0
    scroller = page.locator("#log-scroller")
    assert scroller.evaluate("node => node.scrollWidth <= node.clientWidth")
    assert page.locator(".code pre").evaluate("node => node.scrollWidth > node.clientWidth")  # it scrolls by itself
    chat.button("Settings").click()
    assert chat.overflow() <= 0
    expect(chat.button("Close settings")).to_be_focused()
    page.keyboard.press("Escape")
    expect(chat.button("Settings")).to_be_focused()
    for button in page.locator("header button").all():
        box = button.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360
        assert min(box["width"], box["height"]) >= 24  # WCAG 2.2, 2.5.8


def test_nothing_moves_where_motion_is_not_wanted(browser: Browser, server: ServerProcess) -> None:
    with browser.new_context(reduced_motion="reduce") as context:
        page = context.new_page()
        ChatPage(page).open(server.url + "/")
        durations = "[...document.querySelectorAll('*')].map((n) => getComputedStyle(n).transitionDuration)"
        assert set(page.evaluate(durations)) == {"0s"}


def test_a_keyboard_is_enough(chat: ChatPage, page: Page, server: ServerProcess) -> None:
    keyboard = page.keyboard
    expect(chat.prompt).to_be_focused()
    keyboard.type("My name is Ada.")
    keyboard.press("Shift+Enter")
    keyboard.type("What is my name?")
    keyboard.press("Enter")
    expect(chat.questions).to_have_text(["My name is Ada.\nWhat is my name?"])
    expect(chat.ended()).to_contain_text("Ada")
    expect(page.locator("#status")).to_have_text("The answer is complete.")

    order = [tab(page, "Shift+Tab") for _ in range(4)]
    assert order == ["Delete answer", "Show the request as curl", "Regenerate", "Copy answer"]
    tab(page, "Tab")
    keyboard.press("Enter")
    expect(chat.ended()).to_contain_text("Ada")

    chat.set(**ENDLESS)
    chat.prompt.focus()
    keyboard.type("Tell me about Tandem.")
    keyboard.press("Enter")
    expect(chat.answers.last).to_have_attribute("aria-busy", "true")
    eventually(lambda: chat.answers.last.inner_text() != "")
    keyboard.press("Escape")
    expect(chat.ended()).to_contain_text("stopped")
    expect(chat.prompt).to_be_focused()

    skip = "Skip to the message field"
    assert any(tab(page, "Shift+Tab") == skip for _ in range(40))
    keyboard.press("Enter")
    expect(chat.prompt).to_be_focused()


def test_every_control_has_a_name(chat: ChatPage, page: Page) -> None:
    chat.answer_with(*text_chunks(RICH))
    chat.ask("Hello")
    chat.button("Settings").click()
    nameless = page.evaluate("""() =>
      [...document.querySelectorAll("button, input, select, textarea, a")]
        .filter((node) => !(node.getAttribute("aria-label") || node.labels?.length || node.textContent.trim()))
        .map((node) => node.outerHTML)""")
    assert nameless == []


def tab(page: Page, keys: str) -> str:
    """Press them, and return the name of what has the focus then."""
    page.keyboard.press(keys)
    return page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent.trim()")
