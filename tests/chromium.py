"""A headless Chromium (Debian's package) driven over its debugging pipe: no driver, no package, no port.

Commands and answers are JSON, each ended by a zero byte, on file descriptors 3 and 4 (Chrome DevTools Protocol).
"""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
         "--disable-extensions", "--disable-background-networking", "--disable-component-update"]  # fmt: skip


class Browser:
    """One page at a time; use as a context. requests: what was asked for beyond it; errors: of its console and its own."""

    def __enter__(self) -> "Browser":
        assert PROGRAM
        self.folder = tempfile.mkdtemp(prefix="chromium")
        (theirs_in, self.out), (self.into, theirs_out) = os.pipe(), os.pipe()

        def place() -> None:  # copied above 4 first, to numbers that are free: neither may overwrite the other
            high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 5) for fd in (theirs_in, theirs_out)]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        command = [PROGRAM, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={self.folder}", "about:blank"]
        self.process = subprocess.Popen(command, close_fds=False, preexec_fn=place, stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        self.number, self.rest, self.session = 0, b"", None
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self.out)
        os.close(self.into)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; events that come in between are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            found = self._receive()
            if found.get("id") == self.number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']['message']}")
                return found["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            more = os.read(self.into, 1 << 16)
            if not more:
                raise RuntimeError("chromium has ended")
            self.rest += more
        line, _, self.rest = self.rest.partition(b"\0")
        found = json.loads(line)
        self._event(found.get("method", ""), found.get("params", {}))
        return found

    def _event(self, method: str, given: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent" and not given["request"]["url"].startswith(("data:", "about:", self.url)):
            self.requests.append(given["request"]["url"])
        if method == "Runtime.exceptionThrown":
            details = given["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        if method == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
            self.errors.append(str([a.get("value") for a in given["args"]]))
        if method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.errors.append(given["entry"]["text"])
        self.loaded = self.loaded or method == "Page.loadEventFired"

    url, loaded = "about:blank", False

    def open(self, path: Path, width: int = 1200, dark: bool = False, height: int = 900) -> None:
        self.loaded, self.url = False, path.resolve().as_uri()
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self("Page.navigate", url=self.url)
        while not self.loaded:
            self._receive()

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        found = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"].get("description", "the script failed"))
        return found["result"].get("value")

    def press(self, key: str, code: int) -> None:
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            given = {"text": text} if text and kind == "keyDown" else {}
            self("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **given)

    def screenshot(self, path: Path) -> None:
        """The whole page."""
        found = self("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(found["data"]))
