"""A headless Chromium, driven through its debugging pipe: no driver, no port, no network."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT_S = 60.0


def find_browser() -> str | None:
    """Return the program, or None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One tab, whose `problems` collect all errors of its console: exceptions, refused loads."""

    def __init__(self, program: str, profile: Path) -> None:
        pipes = [os.pipe(), os.pipe()]
        # away from 3 and 4, which the browser reads and writes and bash makes of these
        ours_read, theirs_write = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in pipes[0])
        theirs_read, ours_write = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in pipes[1])
        for end in (*pipes[0], *pipes[1]):
            os.close(end)
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        redirect = f'exec "$0" "$@" 3<&{theirs_read} 4>&{theirs_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirect, program, *options, f"--user-data-dir={profile}"],
            pass_fds=(theirs_read, theirs_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_read)
        os.close(theirs_write)
        self._read, self._write, self._buffer = ours_read, ours_write, b""
        self._calls, self._session = 0, {}  # type: int, dict[str, str]
        self.problems: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._session = {}
        self.call("Browser.close")
        self._process.wait(TIMEOUT_S)
        os.close(self._read)
        os.close(self._write)

    def open(self, page: Path, width: int = 1200, is_dark: bool = False) -> None:
        """Load a file; as `visit`."""
        self.visit(page.as_uri(), width, is_dark)

    def visit(self, url: str, width: int = 1200, is_dark: bool = False) -> None:
        """Load a page into a window of that width, and wait until its scripts have run."""
        colours = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[colours])
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setScrollbarsHidden", hidden=True)  # pictures have none
        self.call("Page.navigate", url=url)
        scheme = json.dumps(url.partition("//")[0])
        self.wait(f"document.readyState === 'complete' && location.protocol === {scheme}")

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression, as JSON carries it; a promise's is awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + TIMEOUT_S
        while not self.evaluate(f"Boolean({script})"):
            assert time.monotonic() < end, f"waited in vain for {script}"
            time.sleep(0.02)

    def point(self, selector: str, index: int = 0) -> None:
        """Move the mouse to the centre of an element."""
        self._mouse("mouseMoved", selector, index)

    def click(self, selector: str, index: int = 0) -> None:
        """Click on the centre of an element."""
        self._mouse("mouseMoved", selector, index)
        for kind in ("mousePressed", "mouseReleased"):
            self._mouse(kind, selector, index, button="left", clickCount=1)

    def screenshot(self, height: int | None = None) -> bytes:
        """Return the page as PNG: its first `height` pixels, or the whole."""
        width, whole = self.evaluate(
            "(e => [e.scrollWidth, e.scrollHeight])(document.documentElement)"
        )
        clip = {"x": 0, "y": 0, "width": width, "height": height or whole, "scale": 1}
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(picture["data"])

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and return its result."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": params} | self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._calls:
                assert "error" not in answer, (method, answer)
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _mouse(self, kind: str, selector: str, index: int, **how: Any) -> None:
        element = f"document.querySelectorAll({json.dumps(selector)})[{index}]"
        self.evaluate(f"{element}.scrollIntoView({{block: 'nearest', inline: 'nearest'}})")
        x, y = self.evaluate(
            f"(b => [b.x + b.width / 2, b.y + b.height / 2])({element}.getBoundingClientRect())"
        )
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **how)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._read], [], [], TIMEOUT_S)[0], "the browser is silent"
            part = os.read(self._read, 1 << 16)
            assert part, "the browser ended"
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event["method"] == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])
        elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in (
            "error",
            "warning",
            "assert",
        ):
            self.problems.append(json.dumps(params["args"]))
