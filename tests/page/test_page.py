"""The web page as a person uses it, in a real browser against a real server.

Every page opened here must end without a complaint in its console and without a request to another origin. Set
PAGE_SCREENSHOTS to a folder to keep pictures of the page's states.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.page.browser import Browser, Opener, Page
from tests.page.conftest import talker
from tests.server.live import Live

READY = "document.querySelector('#state').className === 'ready'"
IDLE = "document.querySelector('#stop').classList.contains('hidden')"
MARKDOWN = """# A heading

Some **bold** text, *emphasis* and `code`.

- one
- two

```python
print("<b>hello</b>")
```
"""


@pytest.fixture
def visit(browser: Browser) -> Iterator[Opener]:
    pages: list[tuple[Page, str]] = []

    def open_page(url: str, **options: object) -> Page:
        page = browser.open(url, **options)  # type: ignore[arg-type]
        pages.append((page, "/".join(url.split("/")[:3])))
        return page

    yield open_page
    for page, origin in pages:
        assert page.complaints == []
        elsewhere = [url for url in page.asked if not url.startswith((origin + "/", "data:"))]
        assert elsewhere == []
        page.send("Page.close")


def ask(page: Page, text: str) -> None:
    page.js("document.querySelector('#prompt').focus()")
    page.type(text)
    page.press("Enter")


def answered(page: Page, turns: int = 1) -> str:
    """Wait until that many answers are complete; the text of the last."""
    page.until(f"document.querySelectorAll('.turn.assistant').length === {turns} && {IDLE}")
    return page.text(".turn.assistant:last-child .text")


def shoot(page: Page, name: str) -> None:
    if folder := os.environ.get("PAGE_SCREENSHOTS"):
        page.shoot(Path(folder) / f"{name}.png")


def test_an_answer_streams_in_and_shows_its_figures(live: Live, visit: Opener) -> None:
    page = visit(live.url + "/")
    page.until(READY)
    assert page.text("#model") == "fake"
    shoot(page, "welcome")
    ask(page, "Hello there")
    assert answered(page) == "Hello there"
    figures = page.text(".turn.assistant .figures")
    assert "12 tokens" in figures
    assert "tok/s" in figures
    assert "first token" in figures


def test_markdown_becomes_elements_and_markup_stays_text(live: Live, visit: Opener) -> None:
    page = visit(live.url + "/")
    page.until(READY)
    ask(page, MARKDOWN)
    answered(page)
    shoot(page, "markdown")
    inside = "document.querySelector('.turn.assistant .text')"
    assert page.js(f"{inside}.querySelector('h3').textContent") == "A heading"
    assert page.js(f"{inside}.querySelector('strong').textContent") == "bold"
    assert page.js(f"{inside}.querySelector('em').textContent") == "emphasis"
    assert page.js(f"[...{inside}.querySelectorAll('li')].map((item) => item.textContent)") == ["one", "two"]
    assert page.js(f"{inside}.querySelector('pre code').textContent") == 'print("<b>hello</b>")'
    assert page.js(f"{inside}.querySelector('b')") is None


@pytest.mark.parametrize(
    "attack",
    [
        "<img src=x onerror=\"document.title='owned'\">",
        "<script>document.title='owned'</script>",
        "[click](javascript:document.title='owned')",
        "```<svg onload=alert(1)>\n<script>document.title='owned'</script>\n```",
    ],
)
def test_markup_in_a_message_is_shown_and_never_run(live: Live, visit: Opener, attack: str) -> None:
    page = visit(live.url + "/")
    page.until(READY)
    ask(page, attack)
    answered(page)
    assert page.js("document.querySelectorAll('#log img, #log script, #log a, #log svg').length") == 0
    assert "owned" not in page.js("document.title")


def test_the_stop_button_ends_the_answer_and_keeps_what_was_said(slow: Live, visit: Opener) -> None:
    page = visit(slow.url + "/")
    page.until(READY)
    ask(page, "a long tale " * 60)
    page.until("document.querySelector('.turn.assistant .text')?.textContent.length > 40")
    assert page.js(f"!({IDLE})")
    shoot(page, "streaming")
    page.click("#stop")
    said = answered(page)
    assert said.startswith("a long tale a long")
    assert len(said) < 700
    assert "stopped" in page.text(".turn.assistant .figures")
    slow.at_rest()


def test_escape_stops_and_regenerate_answers_again(slow: Live, visit: Opener) -> None:
    page = visit(slow.url + "/")
    page.until(READY)
    ask(page, "words " * 60)
    page.until("document.querySelector('.turn.assistant .text')?.textContent.length > 10")
    page.press("Escape")
    assert len(answered(page)) < 300
    page.js("[...document.querySelectorAll('.under button')].find((b) => b.textContent === 'Regenerate').click()")
    page.until(f"!({IDLE})")
    page.until(IDLE)
    assert len(answered(page)) == 359
    slow.at_rest()


def test_a_conversation_survives_a_reload_and_a_new_chat_begins_empty(live: Live, visit: Opener) -> None:
    page = visit(live.url + "/")
    page.until(READY)
    ask(page, "First words")
    answered(page)
    ask(page, "Second words")
    answered(page, 2)
    page.reload()
    page.until(f"document.querySelectorAll('.turn').length === 4 && {READY}")
    page.click("#new")
    page.until("document.querySelector('#welcome')")
    ask(page, "Other words")
    assert answered(page) == "Other words"
    assert page.js("[...document.querySelectorAll('.chat')].map((b) => b.textContent)") == [
        "Other words",
        "First words",
    ]
    page.js("document.querySelectorAll('.chat')[1].click()")
    page.until("document.querySelectorAll('.turn').length === 4")
    drop = "document.querySelectorAll('.drop')[1]"
    page.js(f"{drop}.focus(); {drop}.click(); {drop}.click()")
    page.until("document.querySelectorAll('.chat').length === 1")
    assert page.js("Object.keys(localStorage).filter((name) => name.startsWith('bitnet.chat.')).length") == 1


def test_copy_puts_the_answer_as_it_was_written_on_the_clipboard(live: Live, visit: Opener) -> None:
    page = visit(live.url + "/")
    page.until(READY)
    ask(page, "Some **bold** text")
    answered(page)
    page.click(".turn.assistant .under button")
    page.until("document.querySelector('.turn.assistant .under button').textContent === 'Copied'")
    page.js("document.querySelector('#prompt').focus()")
    page.paste()
    assert page.js("document.querySelector('#prompt').value") == "Some **bold** text"


def test_settings_reach_the_server_and_the_rest_is_left_to_it(live: Live, visit: Opener) -> None:
    page = visit(live.url + "/")
    page.until(READY)
    script = """
        window.sent = [];
        const real = window.fetch;
        window.fetch = (url, options) => {
            if (options?.body) sent.push(JSON.parse(options.body));
            return real(url, options);
        };
    """
    page.js(script)
    page.click("#open-settings")
    for name, value in {
        "system": "Be brief.",
        "temperature": "0.25",
        "seed": "7",
        "max_tokens": "3",
        "stop": "##",
    }.items():
        page.js(f"document.querySelector('#set-{name}').focus()")
        page.type(value)
    shoot(page, "settings")
    page.press("Escape")
    ask(page, "Hello there")
    assert answered(page) == "Hel"
    assert "reached its limit" in page.text(".turn.assistant .figures")
    (sent,) = page.js("sent")
    assert sent == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.25,
        "max_tokens": 3,
        "seed": 7,
        "stop": ["##"],
    }
    assert page.js("document.querySelector('#set-top_p').placeholder") == "0.95"


def test_a_server_with_a_key_is_asked_for_it_once(visit: Opener) -> None:
    with talker(settings={"api_key": "secret"}) as server:
        page = visit(server.url + "/")
        page.until("document.activeElement.id === 'set-key'")
        shoot(page, "key")
        page.type("secret")
        page.press("Enter")
        page.until(READY)
        ask(page, "Hello")
        assert answered(page) == "Hello"


def test_a_refusal_is_shown_in_words(live: Live, visit: Opener) -> None:
    page = visit(live.url + "/")
    page.until(READY)
    ask(page, "x" * 5000)
    page.until("document.querySelector('.fault')")
    assert "Start a new chat" in page.text(".fault")
    # The browser itself notes every refused request.
    (noted,) = page.complaints
    assert "400" in noted
    page.complaints.clear()


def test_it_works_below_a_path_prefix_with_and_without_its_slash(visit: Opener) -> None:
    with talker(prefix="/models/bitnet") as server:
        page = visit(server.url + "/models/bitnet/")
        page.until(READY)
        ask(page, "Hello")
        assert answered(page) == "Hello"
        assert all("/models/bitnet/" in url for url in page.asked if not url.startswith("data:"))


def test_everything_is_reached_by_keyboard(live: Live, visit: Opener) -> None:
    page = visit(live.url + "/")
    page.until(READY)
    page.js("document.activeElement.blur()")
    reached = []
    for _ in range(11):
        page.press("Tab")
        reached.append(
            page.js("document.activeElement.id || document.activeElement.className || document.activeElement.tagName")
        )
    assert reached[0] == "skip"
    assert {"new", "theme", "open-settings", "prompt", "send"} <= set(reached)
    unnamed = """[...document.querySelectorAll('button, input, textarea')].filter((control) =>
        !control.textContent.trim() && !control.getAttribute('aria-label') && !control.labels?.length
        && !control.ariaHidden).map((control) => control.outerHTML)"""
    assert page.js(unnamed) == []


def test_shift_and_enter_makes_a_new_line(live: Live, visit: Opener) -> None:
    page = visit(live.url + "/")
    page.until(READY)
    page.js("document.querySelector('#prompt').focus()")
    page.type("one")
    page.press("Enter", shift=True)
    page.type("two")
    assert page.js("document.querySelector('#prompt').value") == "one\ntwo"
    page.press("Enter")
    assert answered(page) == "one\ntwo"


def test_a_phone_shows_the_conversation_and_opens_panels_over_it(live: Live, visit: Opener) -> None:
    page = visit(live.url + "/", width=390, height=780, phone=True)
    page.until(READY)
    shoot(page, "phone-welcome")
    assert page.js("document.documentElement.scrollWidth") == 390
    page.js("document.querySelector('#prompt').focus()")
    page.type(MARKDOWN)
    page.click("#send")
    answered(page)
    shoot(page, "phone")
    assert page.js("document.documentElement.scrollWidth") == 390
    page.click("#open-chats")
    page.until("document.querySelector('#chats').getBoundingClientRect().left === 0")
    shoot(page, "phone-chats")
    page.press("Escape")
    page.click("#open-settings")
    page.until("document.querySelector('#settings').getBoundingClientRect().right === 390")
    shoot(page, "phone-settings")


def test_dark_follows_the_system_until_a_theme_is_chosen(live: Live, visit: Opener) -> None:
    page = visit(live.url + "/", dark=True)
    page.until(READY)
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.js(background) == "rgb(22, 25, 27)"
    ask(page, MARKDOWN)
    answered(page)
    shoot(page, "dark")
    page.click("#theme")
    assert page.js(background) == "rgb(251, 250, 247)"
    page.reload()
    page.until(READY)
    assert page.js(background) == "rgb(251, 250, 247)"
