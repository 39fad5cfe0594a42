"""Runs the code blocks of a page, in order, in the working directory:

    python docs/execute.py docs/tutorials/first-potential.md [--quick]

- A block whose first line is `# file: NAME` is written to that file.
- `bash` and `python` blocks run; Python keeps its names from block to block.
- `<!-- not run: REASON -->` before a block: it does not run.
- `<!-- quick: A -> B -->` before a block: with --quick, B stands for A in it. The tests run
  pages so.
"""

import argparse
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from race.cli import main as race

BLOCK = re.compile(r"((?:^<!--[^\n]*-->\n)*)^```(\w+)\n(.*?)^```", flags=re.M | re.S)
REMARK = re.compile(r"^<!-- (quick|not run): (.*) -->$", flags=re.M)
FILE = re.compile(r"# file: (\S+)\n")


@dataclass(frozen=True)
class Block:
    """quick: pairs of texts, the first to be replaced; not_run: the reason, or empty."""

    language: str
    text: str
    quick: tuple[tuple[str, str], ...] = ()
    not_run: str = ""

    @property
    def file(self) -> str:
        """The file that it is, or empty."""
        found = FILE.match(self.text)
        return found[1] if found else ""

    def quickly(self) -> str:
        """Its text with less work to do.

        Raises:
            ValueError: what is to be replaced is not there.
        """
        text = self.text
        for old, new in self.quick:
            if old not in text:
                raise ValueError(f"`{old}` is not in the block\n{text}")
            text = text.replace(old, new)
        return text


def blocks(page: Path) -> list[Block]:
    """The blocks of a page that have a language."""
    found = []
    for remarks, language, text in BLOCK.findall(page.read_text()):
        said = REMARK.findall(remarks)
        changes = [f"{rest} ".partition(" -> ") for kind, rest in said if kind == "quick"]
        quick = tuple((old, new.strip()) for old, _, new in changes)
        reasons = [rest for kind, rest in said if kind == "not run"]
        found.append(Block(language, text, quick, " ".join(reasons)))
    return found


def execute(page: Path, quick: bool = False) -> dict[str, Any]:
    """Runs a page.

    Returns:
        The names that its Python defined.

    Raises:
        Exception: what a block raised.
        RuntimeError: a command ended with another status than 0.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        text = block.quickly() if quick else block.text
        if block.not_run:
            continue
        if block.file:
            Path(block.file).write_text(text)
        elif block.language == "python":
            exec(compile(text, str(page), "exec"), names)
        elif block.language == "bash":
            run(text)
    return names


def run(text: str) -> None:
    """Commands of a shell. Those of race run in this process, which has imported torch."""
    lines = text.replace("\\\n", " ").strip().splitlines()
    for line in lines if all(_is_ours(line) for line in lines) else [text]:
        if _is_ours(line):
            status = race(shlex.split(line, comments=True)[1:])
        else:
            status = subprocess.run(["bash", "-euo", "pipefail", "-c", line]).returncode
        if status:
            raise RuntimeError(f"status {status}: {line}")


def _is_ours(line: str) -> bool:
    return line.startswith("race ") and not line.startswith("race lmp") and "|" not in line


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--quick", action="store_true", help="as the tests run it")
    arguments = parser.parse_args()
    execute(arguments.page.resolve(), arguments.quick)
