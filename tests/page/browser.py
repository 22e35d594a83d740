"""Headless Chromium over the DevTools protocol, on two pipes: no driver, no WebSocket, nothing to download.

Everything the page logs, throws or asks for is kept, so that a test can say that nothing went wrong and nothing left.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

CANDIDATES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests may run as root, and open nothing but our own page
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9}


def find_chromium() -> str | None:
    return next((path for name in CANDIDATES if (path := shutil.which(name))), None)


class CommandError(Exception):
    """A command that the browser did not carry out."""


class Browser:
    """One Chromium process. `open` gives a page in a context of its own: no storage is shared between tests."""

    def __init__(self, program: str, profile: Path) -> None:
        ours, theirs = os.pipe(), os.pipe()
        # The protocol's pipes are file descriptors 3 (commands) and 4 (answers) of the browser.
        shell = f'exec "$0" "$@" 3<&{ours[0]} 4>&{theirs[1]}'
        command = ["bash", "-c", shell, program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            command, pass_fds=(ours[0], theirs[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(ours[0])
        os.close(theirs[1])
        self._commands: BinaryIO = os.fdopen(ours[1], "wb", buffering=0)
        self._answers: BinaryIO = os.fdopen(theirs[0], "rb")
        self._changed = threading.Condition()
        self._results: dict[int, dict[str, Any]] = {}
        self._pages: dict[str, Page] = {}
        self._last_id = 0
        self._reader = threading.Thread(target=self._read, name="devtools")
        self._reader.start()

    def _read(self) -> None:
        rest = b""
        while piece := self._answers.read1(1 << 16):  # type: ignore[attr-defined]
            *messages, rest = (rest + piece).split(b"\0")
            for message in map(json.loads, messages):
                with self._changed:
                    if "id" in message:
                        self._results[message["id"]] = message
                    elif page := self._pages.get(message.get("sessionId", "")):
                        page.hear(message["method"], message["params"])
                    self._changed.notify_all()

    def send(self, method: str, session: str = "", /, **parameters: Any) -> dict[str, Any]:
        """One command and its result."""
        with self._changed:
            self._last_id += 1
            number = self._last_id
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        self._commands.write(json.dumps(message).encode() + b"\0")
        with self._changed:
            assert self._changed.wait_for(lambda: number in self._results, 30), f"{method} was not answered"
            answer = self._results.pop(number)
        if "error" in answer:
            raise CommandError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    def open(self, url: str, width: int = 1280, height: int = 800, dark: bool = False, phone: bool = False) -> Page:
        """A new page on `url`, loaded."""
        context = self.send("Target.createBrowserContext")["browserContextId"]
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        page.send("Emulation.setDeviceMetricsOverride", **size)
        page.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.send("Emulation.setEmulatedMedia", features=[scheme])
        page.go(url)
        return page

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._commands.close()  # a browser without its pipe ends
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(5)
        self._answers.close()


class Page:
    """One page; `complaints` is what it logged as an error or threw, `asked` the addresses of all its requests."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser = browser
        self.session = session
        self.complaints: list[str] = []
        self.asked: list[str] = []

    def hear(self, method: str, event: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.asked.append(event["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(event["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{event['entry']['text']} {event['entry'].get('url', '')}")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.send(method, self.session, **parameters)

    def go(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def reload(self) -> None:
        self.js("window.isOld = true")
        self.send("Page.reload")
        self.until("!window.isOld && document.readyState === 'complete'")

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, condition: str, seconds: float = 10.0) -> None:
        """Wait until an expression in the page is true."""
        deadline = time.monotonic() + seconds
        while not self._holds(condition):
            assert time.monotonic() < deadline, f"in vain: {condition}; complaints: {self.complaints}"
            time.sleep(0.02)

    def _holds(self, condition: str) -> bool:
        try:
            return self.js(f"Boolean({condition})") is True
        except CommandError:  # the page is just being replaced by the next
            return False

    def type(self, text: str) -> None:
        """Type into whatever has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, shift: bool = False) -> None:
        code = KEYS[key]
        text = {"text": "\r"} if key == "Enter" else {}
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.send("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def paste(self) -> None:
        """As the key combination does it, which needs no leave to read the clipboard."""
        self.send("Input.dispatchKeyEvent", type="keyDown", key="v", modifiers=2, commands=["paste"])
        self.send("Input.dispatchKeyEvent", type="keyUp", key="v", modifiers=2)

    def click(self, selector: str) -> None:
        """A real click in the middle of an element, which must be there and in sight."""
        script = f"""(() => {{
            const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{block: "nearest"}});
            const box = element.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()"""
        x, y = self.js(script)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def text(self, selector: str) -> str:
        return str(self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def shoot(self, path: Path) -> None:
        """Save what is seen as a PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


Opener = Callable[..., Page]
