"""Debian's Chromium, driven over a pipe by the Chrome DevTools protocol: JSON messages that end with NUL."""

import base64
import contextlib
import fcntl
import json
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.conftest import service_program

PATIENCE_S = 60


class Page:
    """One tab. Clicks and keys go through the browser's input, as a person's do."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing
        self._received = b""
        self._num_sent = 0
        self._session: dict[str, str] = {}
        self.requested: list[str] = []
        """Addresses of all that was asked for."""
        self.thrown: list[str] = []
        """Exceptions of scripts that nobody caught."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command."""
        self._num_sent += 1
        sent = {"id": self._num_sent, "method": method, "params": parameters, **self._session}
        os.write(self._writing, json.dumps(sent).encode() + b"\0")
        while (message := self._next()).get("id") != self._num_sent:
            if message.get("method") == "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
            if message.get("method") == "Runtime.exceptionThrown":
                self.thrown.append(json.dumps(message["params"]["exceptionDetails"]))
        assert "error" not in message, message
        return message["result"]

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE_S
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._reading], [], [], max(0, until - time.monotonic()))
            assert ready, "the browser says nothing"
            more = os.read(self._reading, 1_000_000)
            assert more, "the browser has gone"
            self._received += more
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)

    def open(self, url: str, width: int, height: int = 844) -> None:
        """Load an address on a screen of this size; a narrow one is a phone's."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """Of an expression, or of the promise that it is."""
        done = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, (expression, done)
        return done["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Go on once it holds."""
        look = (
            f"new Promise(done => {{ const look = () => ({condition}) ? done(true) : setTimeout(look, 10); look(); }})"
        )
        assert self.value(look)

    @property
    def text(self) -> str:
        """All that is seen."""
        return self.value("document.body.innerText")

    def find(self, selector: str, containing: str = "") -> str:
        """An expression for the first such element whose text contains so much."""
        wanted = f"each => each.innerText.includes({json.dumps(containing)})"
        return f"[...document.querySelectorAll({json.dumps(selector)})].find({wanted})"

    def click(self, selector: str, containing: str = "") -> None:
        """Press and release in the middle of an element, once it is there."""
        element = self.find(selector, containing)
        self.wait_for(element)
        self.value(f"{element}.scrollIntoView({{block: 'center', inline: 'center'}})")
        box = f"(box => ({{x: box.x + box.width / 2, y: box.y + box.height / 2}}))({element}.getBoundingClientRect())"
        place = self.value(box)
        for event in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=event, button="left", clickCount=1, **place)

    def write(self, selector: str, text: str) -> None:
        """Click into a field and type."""
        self.click(selector)
        self.call("Input.insertText", text=text)

    def screenshot(self, place: Path) -> None:
        """The whole page as PNG, for people to look at."""
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        place.write_bytes(base64.b64decode(taken["data"]))


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A new browser with an empty tab; it has ended afterwards."""
    program = str(service_program("chromium", "chromium"))
    command = [
        program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        f"--user-data-dir={profile}", "--remote-debugging-pipe",
    ]  # fmt: skip
    its_reading, writing = os.pipe()
    reading, its_writing = os.pipe()
    # It reads from 3 and writes to 4: the pipe's ends are first moved out of the way of these.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (its_reading, its_writing)]
    actions = [(os.POSIX_SPAWN_DUP2, ends[0], 3), (os.POSIX_SPAWN_DUP2, ends[1], 4)]
    quiet = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
    process = os.posix_spawn(program, command, os.environ, file_actions=[*actions, quiet])
    for end in (its_reading, its_writing, *ends):
        os.close(end)
    page = None
    try:
        page = Page(reading, writing)
        yield page
    finally:
        if page is not None:
            page._session = {}
            with contextlib.suppress(AssertionError, OSError):
                page.call("Browser.close")
        os.close(writing)  # it ends with its pipe
        os.close(reading)
        os.waitpid(process, 0)
