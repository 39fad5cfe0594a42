"""A page in headless Chromium, by the DevTools protocol over a pipe: no other package is needed.

python -m tests.browser PAGE.html WIDTH PICTURE.png
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
SECONDS = 120  # for one answer
HEIGHT = 900


@dataclass(frozen=True)
class Seen:
    """width: of the content, which a reader scrolls to where it exceeds the screen's; problems:
    errors and warnings of the console; png: the whole page.
    """

    width: int
    problems: list[str]
    png: bytes


class Browser:
    """One tab, as a context."""

    def __init__(self) -> None:
        self.profile = tempfile.TemporaryDirectory(
            prefix="race-browser-", ignore_cleanup_errors=True
        )
        commands, self.commands = _pipe()
        self.answers, answers = _pipe()
        words = [PROGRAM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        words += ["--remote-debugging-pipe", f"--user-data-dir={self.profile.name}"]
        # The browser reads from 3 and writes to 4
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{answers}', "browser", *words],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self.rest, self.number, self.events = b"", 0, list[dict[str, Any]]()
        self.session: dict[str, str] = {}
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        opened = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": opened["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.commands)
        os.close(self.answers)
        self.profile.cleanup()

    def visit(self, page: Path, width: int) -> Seen:
        """Opens a page on a screen of that width, in pixels; a narrow one is a phone's."""
        screen = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **screen)
        self.events.clear()
        self.ask("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message())
        asked = self.ask("Runtime.evaluate", expression="document.documentElement.scrollWidth")
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": width, "height": size["height"], "scale": 1}
        shot = self.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        problems = [said for event in self.events if (said := _problem(event))]
        return Seen(asked["result"]["value"], problems, base64.b64decode(shot["data"]))

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command; what happens before it is kept in `events`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while "id" not in (answer := self._message()):
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            if not select.select([self.answers], [], [], SECONDS)[0]:
                raise TimeoutError(f"no answer of {PROGRAM} in {SECONDS} s")
            if not (part := os.read(self.answers, 1 << 20)):
                raise RuntimeError(f"{PROGRAM} has ended with status {self.process.wait()}")
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)


def _pipe() -> tuple[int, int]:
    """Its two ends, with numbers that are neither 3 nor 4."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


def _problem(event: dict[str, Any]) -> str:
    """What an event says that is wrong, or nothing."""
    about = event["params"]
    if event["method"] == "Runtime.exceptionThrown":
        return str(about["exceptionDetails"].get("exception", {}).get("description", "exception"))
    if event["method"] == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
        return " ".join(str(part.get("value")) for part in about["args"])
    if event["method"] == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
        return f"{about['entry']['text']} {about['entry'].get('url', '')}"
    return ""


if __name__ == "__main__":
    with Browser() as tab:
        seen = tab.visit(Path(sys.argv[1]), int(sys.argv[2]))
    Path(sys.argv[3]).write_bytes(seen.png)
    print(f"content {seen.width} pixels wide; {len(seen.problems)} problems", *seen.problems)
