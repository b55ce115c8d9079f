"""A headless Chromium, driven over the Chrome DevTools Protocol (https://chromedevtools.github.io/devtools-protocol)."""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.support.process import Process

START_TIMEOUT = 120.0
"""Seconds until a browser that does not start, or does not answer, fails the test."""
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0"),
    "--window-size=1400,1000",  # Prefect's page of runs renders what is in view
]


def find_chromium() -> str:
    """Return the path of Chromium; without one the test is skipped (in CI it fails)."""
    found = shutil.which("chromium")
    if found is None:
        if os.getenv("CI"):
            raise RuntimeError("chromium is not installed")
        pytest.skip("chromium is not installed")
    return found


class Browser:
    """One browser with one page and a profile of its own in `directory`; `flags` are further ones of Chromium."""

    def __init__(self, directory: Path, *flags: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        profile = directory / "profile"
        command = [find_chromium(), *FLAGS, *flags, f"--user-data-dir={profile}", "about:blank"]
        self._process = Process(command, log=directory / "chromium.log")
        self._port = profile / "DevToolsActivePort"
        self._session: str | None = None
        self._last = 0
        self.refused: list[str] = []
        """Requests of the page that failed, or were answered with 400 or more, with the reason."""

    def open(self, url: str) -> None:
        """Load a page."""
        self._call("Page.navigate", url=url)

    def text(self) -> str:
        """Return what the page shows."""
        return self.run("document.body.innerText")

    def run(self, expression: str) -> str:
        """Return the value of an expression of JavaScript in the page, once it is there."""
        found = self._call("Runtime.evaluate", expression=expression, awaitPromise=True)
        return str(found["result"].get("value", ""))

    def picture(self) -> bytes:
        """Return what the page looks like (PNG)."""
        return base64.b64decode(self._call("Page.captureScreenshot")["data"])

    def __enter__(self) -> Self:
        self._process.start()
        # the file is written at once, but for its second line
        self._process.wait_until(lambda: self._port.exists() and "\n" in self._port.read_text(), START_TIMEOUT)
        port, path = self._port.read_text().splitlines()
        self._socket: ClientConnection = connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None)
        (page,) = (one for one in self._call("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        self._call("Network.enable")
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._socket.close()
        self._process.kill()

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        session = {} if self._session is None else {"sessionId": self._session}
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": params, **session}))
        while True:
            message = json.loads(self._socket.recv(START_TIMEOUT))
            if message.get("id") == self._last:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._note(message.get("method"), message.get("params", {}))

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Network.responseReceived" and params["response"]["status"] >= 400:
            self.refused.append(f"{params['response']['status']} {params['response']['url']}")
        elif method == "Network.webSocketFrameError":
            self.refused.append(params["errorMessage"])
