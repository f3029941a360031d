"""A headless Chromium, steered by its own protocol over a pipe."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
)
FLAGS += ("--disable-component-update", "--disable-sync", "--remote-debugging-pipe")


class Browser:
    """One page of a browser. `errors` is what its console says is wrong, `requests` what the page asks for."""

    def __init__(self, reader: Any, writer: Any) -> None:
        self._reader, self._writer, self._number = reader, writer, 0
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.errors: list[str] = []
        self.requests: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._writer.write(
            json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        self._writer.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._events.append(answer)

    def open(self, url: str, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Goes to a page and waits until it has loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._events.clear()
        self.errors, self.requests = [], []
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._next())
        self.evaluate("new Promise(requestAnimationFrame)")
        self._collect()

    def evaluate(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        self._collect()
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """A click of the mouse, so that what covers an element would take it."""
        middle = (
            f"(e => (e.scrollIntoView({{block: 'center'}}), "
            f"e.getBoundingClientRect()))(document.querySelector({json.dumps(selector)}))"
        )
        box = self.evaluate(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({middle})")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)

    def _next(self) -> dict[str, Any]:
        data = bytearray()
        while not data.endswith(b"\0"):
            byte = self._reader.read(1)
            assert byte, "the browser has gone away"
            data += byte
        return json.loads(data[:-1])

    def _collect(self) -> None:
        for event in self._events:
            details = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(details["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled":
                self.errors.append(json.dumps(details["args"]))
            elif event["method"] == "Log.entryAdded":
                self.errors.append(details["entry"]["text"])
            elif event["method"] == "Network.requestWillBeSent":
                self.requests.append(details["request"]["url"].partition(",")[0])
        self._events.clear()


@contextmanager
def start(program: str) -> Iterator[Browser]:
    """The browser while the block runs, with a new profile."""
    their_read, our_write = os.pipe()
    our_read, their_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS, f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            ["sh", "-c", f'exec "$@" 3</dev/fd/{their_read} 4>/dev/fd/{their_write}', "sh", *command],
            pass_fds=(their_read, their_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(their_read)
        os.close(their_write)
        try:
            with os.fdopen(our_read, "rb") as reader, os.fdopen(our_write, "wb") as writer:
                browser = Browser(reader, writer)
                yield browser
                browser._session = None
                browser.call("Browser.close")
        finally:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
