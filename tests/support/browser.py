"""A headless Chromium, driven by its DevTools protocol over a pipe: no package and no network is needed."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page. `events` holds every event that has arrived, as (method, parameters)."""

    def __init__(self, write: int, read: int) -> None:
        self.write, self.read = write, read
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.waiting, self.number, self.session = b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{part}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(
        self, path: Path, *, width: int, height: int = 844, scheme: str = "light", scripts: bool = True
    ) -> None:
        """Load a file at a window size and a colour scheme; `events` is reset."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while "Page.loadEventFired" not in [method for method, _ in self.events]:
            self._next()

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives, as data."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def complaints(self) -> list[str]:
        """Console messages, errors and exceptions since the page was opened."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event) for event in self.events if event[0] in kinds]

    def requests(self) -> list[str]:
        """Return the addresses requested since the page was opened, except data in the page itself."""
        urls = [
            found["request"]["url"] for method, found in self.events if method == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith("data:")]

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.waiting:
            piece = os.read(self.read, 1 << 20)
            assert piece, "the browser has ended"
            self.waiting += piece
        text, _, self.waiting = self.waiting.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self.events.append((message["method"], message["params"]))
        return message


@contextmanager
def started() -> Iterator[Browser]:
    """A browser that ends with the block."""
    assert PROGRAM
    from_us, to_it = os.pipe()
    from_it, to_us = os.pipe()
    # Its children may still write into the profile while it is removed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = f"--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking " \
                  f"--user-data-dir={profile} --remote-debugging-pipe"  # fmt: skip
        # the browser reads commands from descriptor 3 and writes to 4
        command = f'exec "{PROGRAM}" {options} 3<&{from_us} 4>&{to_us}'
        process = subprocess.Popen(
            ["bash", "-c", command],
            pass_fds=(from_us, to_us),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(from_us), os.close(to_us)
        try:
            yield Browser(to_it, from_it)
        finally:
            process.terminate()
            process.wait(timeout=20)
            os.close(to_it), os.close(from_it)


# WCAG 2: texts whose contrast with what is behind them is below 4.5 to 1
POOR_CONTRAST = """
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = colour.slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255];
  };
  const poor = new Set(), texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || element.closest("script") || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const text = light(rgba(element.closest("svg") ? style.fill : style.color)), back = light(behind(element));
    const ratio = (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
    if (ratio < 4.5) poor.add(`${element.tagName}.${element.className}: ${ratio.toFixed(2)}`);
  }
  return [...poor];
})()
"""
