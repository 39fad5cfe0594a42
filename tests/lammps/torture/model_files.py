"""Model files that must be refused: damaged, of another kind, hostile, of another version,
with bad metadata.

Hostile archives and bad metadata are sealed with a right digest, so that they get past
the check of integrity. Whoever is to blame for a file like that: LAMMPS must end with a
message, and nothing in the file may run.
"""

import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from race.deploy.artifact import FORMAT_VERSION, seal

from .runner import Case, refused

INPUT = """
units metal
atom_style atomic
region box block 0 1 0 1 0 1
create_box 3 box
plugin load {plugin}
pair_style race {file}
"""
MARKER = "executed"  # the file that hostile code would make


class Trap:
    """Pickles as a call that makes MARKER."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return (exec, (f"open({str(self.folder / MARKER)!r}, 'w').close()",))


def cases(
    artifact: Path,
    folder: Path,
    plugin: Path,
    seed: int = 0,
    n_truncations: int = 64,
    n_flips: int = 256,
) -> list[Case]:
    """Writes the files into `folder`, and names what each message must say."""
    found = []
    for name, content, words in _files(artifact.read_bytes(), folder, seed, n_truncations, n_flips):
        path = folder / f"{name.replace(' ', '_').replace('/', '_')}.race.pt"
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
        found.append(Case(name, INPUT.format(plugin=plugin, file=path), refused(path.name, *words)))
    return found


def _files(
    whole: bytes, folder: Path, seed: int, n_truncations: int, n_flips: int
) -> Iterator[tuple[str, bytes | None, tuple[str, ...]]]:
    draw = random.Random(seed)
    for length in [
        0,
        1,
        4,
        len(whole) - 1,
        len(whole) - 64,
        *(draw.randrange(5, len(whole)) for _ in range(n_truncations - 5)),
    ]:
        yield f"truncated to {length}", whole[:length], ()
    for _ in range(n_flips):
        byte, bit = draw.randrange(len(whole)), draw.randrange(8)
        yield (
            f"bit {bit} of byte {byte}",
            whole[:byte] + bytes([whole[byte] ^ 1 << bit]) + whole[byte + 1 :],
            (),
        )
    yield from _wrong_kinds(whole, folder)
    for version in ("0", str(FORMAT_VERSION + 1), "99", "-1", "one", ""):
        current = f"race-artifact/{FORMAT_VERSION}".encode()
        assert current in whole
        yield (
            f"version {version or 'empty'}",
            whole.replace(current, f"race-artifact/{version}".encode()),
            (),
        )
    yield from _hostile(whole, folder)
    yield from _metadata(whole)


def _wrong_kinds(whole: bytes, folder: Path) -> Iterator[tuple[str, bytes | None, tuple[str, ...]]]:
    array, archive = io.BytesIO(), io.BytesIO()
    np.save(array, np.arange(9))
    with zipfile.ZipFile(archive, "w") as plain:
        plain.writestr("hello.txt", "hello")
    yield "text", b"not a model\n", ("not a RACE artifact",)
    yield "json", json.dumps({"format": 1}).encode(), ("not a RACE artifact",)
    yield "pickle", pickle.dumps(Trap(folder)), ("not a RACE artifact",)
    yield "numpy", array.getvalue(), ("not a RACE artifact",)
    yield "zip", archive.getvalue(), ("artifact",)
    yield "ELF", b"\x7fELF" + bytes(4096), ("not a RACE artifact",)
    yield "zeros", bytes(100_000), ("not a RACE artifact",)
    yield "folder", None, ("folder",)


def _resealed(
    whole: bytes, change: Callable[[str, bytes], bytes | None], more: dict[str, bytes] | None = None
) -> bytes:
    """The archive with members changed (None: left out) or added; torch wants them stored,
    at multiples of 64 bytes.
    """
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(whole)) as old,
        zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new,
    ):
        members = [(name, change(name, old.read(name))) for name in old.namelist()] + list(
            (more or {}).items()
        )
        for name, content in members:
            if content is None:
                continue
            start = out.tell() + 30 + len(name)
            info = zipfile.ZipInfo(name)
            info.extra = struct.pack("<HH", 0x4246, (padding := -(start + 4) % 64)) + bytes(padding)
            new.writestr(info, content)
    return seal(out.getvalue())


def same(whole: bytes) -> bytes:
    """Taken apart and sealed again without a change: must load, or refusals below would be
    of the archive, not of what was changed.
    """
    return _resealed(whole, lambda _, content: content)


def _hostile(whole: bytes, folder: Path) -> Iterator[tuple[str, bytes | None, tuple[str, ...]]]:
    trap = pickle.dumps(Trap(folder), protocol=2)

    names = zipfile.ZipFile(io.BytesIO(whole)).namelist()
    source = next(name for name in names if "/code/" in name and name.endswith(".py"))

    def replace(ending: str, new: Callable[[bytes], bytes | None]) -> bytes:
        assert any(name.endswith(ending) for name in names), ending
        return _resealed(
            whole, lambda name, content: new(content) if name.endswith(ending) else content
        )

    yield "hostile data.pkl", replace("/data.pkl", lambda _: trap), ()
    yield "hostile constants.pkl", replace("/constants.pkl", lambda _: trap), ()
    yield (
        "hostile os.system",
        replace("/data.pkl", lambda _: b"cos\nsystem\n(S'touch executed'\ntR."),
        (),
    )
    yield (
        "hostile code",
        replace(source, lambda c: b"import os\nos.system('touch executed')\n" + c),
        (),
    )
    yield "hostile no code", replace(source, lambda _: None), ()
    yield "hostile data.pkl cut", replace("/data.pkl", lambda c: c[: len(c) // 2]), ()
    yield "hostile data.pkl empty", replace("/data.pkl", lambda _: b""), ()
    yield "hostile weights cut", replace("/data/0", lambda c: c[: len(c) // 2]), ()
    yield "hostile weights missing", replace("/data/0", lambda _: None), ()
    yield "hostile no selftest", replace("/extra/selftest.json", lambda _: None), ("selftest.json",)
    yield (
        "hostile selftest without cases",
        replace("/extra/selftest.json", lambda _: b'{"tolerance": {"float32": 1, "float64": 1}}'),
        ("cases",),
    )
    yield (
        "hostile deep json",
        replace("/extra/metadata.json", lambda _: b"[" * 1_000_000),
        ("metadata.json",),
    )


def _metadata(whole: bytes) -> Iterator[tuple[str, bytes | None, tuple[str, ...]]]:
    def changed(**changes) -> bytes:
        def edit(name: str, content: bytes) -> bytes:
            if not name.endswith("/extra/metadata.json"):
                return content
            data = {**json.loads(content), **changes}
            return json.dumps(
                {key: value for key, value in data.items() if value is not ...}
            ).encode()

        return _resealed(whole, edit)

    def text(new: bytes) -> bytes:
        return _resealed(
            whole, lambda name, content: new if name.endswith("/extra/metadata.json") else content
        )

    yield "metadata format", changed(format=FORMAT_VERSION + 1), (f"artifact/{FORMAT_VERSION + 1}",)
    yield "metadata no r_max", changed(r_max=...), ("r_max",)
    yield "metadata r_max text", changed(r_max="3.2"), ("r_max",)
    yield "metadata r_max 0", changed(r_max=0), ("metadata.json",)
    yield "metadata members", changed(n_members=7), ()
    yield "metadata layers", changed(n_layers=9), ("metadata.json",)
    yield "metadata elements empty", changed(elements=[]), ("metadata.json",)
    yield "metadata dtype", changed(dtype="float16"), ("float16",)
    yield "metadata halo", changed(halo_widths=[3]), ("halo_widths",)
    yield "metadata not json", text(b"{'format': 1}"), ("metadata.json",)
