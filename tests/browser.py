"""A real Chromium, asked over the two pipes of its DevTools protocol: nothing beside it is needed.

with Browser() as browser:
    page = browser.open(path, width=390, dark=True)
    page.ask("document.title")      ->  what the expression gives, as JSON
    page.said                       ->  what stood on the console, and what the page's policy refused
    page.picture()                  ->  a PNG of the whole page
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
SWITCHES = [
    "--headless=new",
    "--no-sandbox",  # as root Chromium has none
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--remote-debugging-pipe",
]
SECONDS = 60  # for one answer, on a busy machine


class Browser:
    """Chromium, for as long as the block lasts."""

    def __enter__(self) -> Browser:
        assert CHROMIUM is not None
        self.folder = tempfile.TemporaryDirectory(prefix="replaykit-chromium-")
        theirs_in, self.write = os.pipe()
        self.read, theirs_out = os.pipe()
        # Chromium reads from 3 and writes to 4; numbers far above keep the two from meeting.
        far = [fcntl.fcntl(one, fcntl.F_DUPFD, 50) for one in (theirs_in, theirs_out)]

        def connect() -> None:
            os.dup2(far[0], 3)
            os.dup2(far[1], 4)

        self.process = subprocess.Popen(
            [CHROMIUM, *SWITCHES, f"--user-data-dir={self.folder.name}", "about:blank"],
            preexec_fn=connect,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for one in (theirs_in, theirs_out, *far):
            os.close(one)
        self.number = 0
        self.rest = b""
        self.events: list[dict[str, Any]] = []
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)
        os.close(self.write)
        os.close(self.read)
        shutil.rmtree(self.folder.name, ignore_errors=True)

    def send(self, method: str, session: str | None = None, **what: Any) -> dict[str, Any]:
        """Asks, and waits for the answer; events that come before it are kept."""
        self.number += 1
        asked: dict[str, Any] = {"id": self.number, "method": method, "params": what}
        if session is not None:
            asked["sessionId"] = session
        os.write(self.write, json.dumps(asked).encode() + b"\0")
        while True:
            found = self.message()
            if found.get("id") != self.number:
                self.events.append(found)
                continue
            assert "error" not in found, found
            return dict(found["result"])

    def message(self) -> dict[str, Any]:
        """The next message."""
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read], [], [], SECONDS)
            assert ready, "Chromium does not answer"
            part = os.read(self.read, 1 << 16)
            assert part, "Chromium has ended"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return dict(json.loads(message))

    def open(
        self,
        path: Path,
        *,
        width: int = 1100,
        height: int = 900,
        dark: bool = False,
        scripts: bool = True,
        fragment: str = "",
    ) -> Page:
        """The page, loaded in a tab of its own; a narrow one as a phone shows it."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        page.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.send("Emulation.setEmulatedMedia", features=[scheme])
        page.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        page.send("Page.navigate", url=path.resolve().as_uri() + fragment)
        page.wait("Page.loadEventFired")
        return page


class Page:
    """A tab."""

    def __init__(self, browser: Browser, session: str):
        self.browser = browser
        self.session = session

    def send(self, method: str, **what: Any) -> dict[str, Any]:
        return self.browser.send(method, self.session, **what)

    def events(self, *methods: str) -> list[dict[str, Any]]:
        """What happened so far."""
        return [
            dict(event["params"])
            for event in self.browser.events
            if event.get("sessionId") == self.session and event.get("method") in methods
        ]

    def wait(self, method: str) -> None:
        end = time.monotonic() + SECONDS
        while not self.events(method):
            assert time.monotonic() < end, f"{method} never came"
            self.browser.events.append(self.browser.message())

    def ask(self, expression: str) -> Any:
        """What an expression gives; a promise is waited for."""
        found = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    @property
    def said(self) -> list[dict[str, Any]]:
        """What stood on the console, what went wrong, and what dialogs were opened."""
        return self.events(
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Log.entryAdded",
            "Page.javascriptDialogOpening",
        )

    @property
    def fetched(self) -> list[str]:
        """The addresses that were asked for, the page's own among them."""
        return [event["request"]["url"] for event in self.events("Network.requestWillBeSent")]

    def picture(self) -> bytes:
        """A PNG of the whole page."""
        found = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(found["data"])
