"""Pages are written by hand except for what stands between `<!-- NAME -->` and
`<!-- end -->`: that is drawn from records.
"""

from collections.abc import Iterable, Mapping

END = "<!-- end -->\n"


def fill(page: str, parts: Mapping[str, Iterable[str]]) -> str:
    """The page with the lines of each part in its place.

    Raises:
        ValueError: the page has no such place.
    """
    for name, lines in parts.items():
        start = f"<!-- {name} -->\n"
        if page.count(start) != 1:
            raise ValueError(f"{page.count(start)} places {start.strip()}, expected 1")
        before, rest = page.split(start)
        body = "".join(f"{line}\n" for line in lines)
        page = before + start + body + END + rest.split(END, 1)[1]
    return page


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> list[str]:
    """Markdown."""
    head = list(head)
    lines = ["| " + " | ".join(map(str, head)) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]
