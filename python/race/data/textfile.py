"""Text files as people hand them over: compressed or not, with any line end, with a byte
order mark.
"""

import bz2
import gzip
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from race.errors import RaceError

# By content, because a file that was renamed is common.
MAGIC: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
COMPRESSED = (".gz", ".bz2", ".xz")


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """The file as text; line ends become \\n, a byte order mark is dropped.

    Raises:
        RaceError: on opening or reading: compressed data that ends early or is damaged, or
            no permission.
    """
    try:
        with open(path, "rb") as raw:
            start = raw.read(6)
        opener = next((opener for magic, opener in MAGIC.items() if start.startswith(magic)), open)
        # Bytes that are no UTF-8 can only be in a comment, or are refused where they are parsed.
        with opener(path, "rt", encoding="utf-8-sig", errors="replace") as stream:
            yield stream
    except (EOFError, OSError, lzma.LZMAError) as error:
        what = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise RaceError(
            f"cannot be read to its end ({what})",
            where=path,
            remedy="check that the file is whole and readable",
        ) from error


def stem_suffix(path: Path) -> str:
    """The suffix in lower case, that of a compressed file without .gz, .bz2 or .xz."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""
