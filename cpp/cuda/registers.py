"""What nvcc says of the kernels, as a table.

    registers.py LISTING           fails if a kernel spills
    registers.py LISTING --write   writes REGISTERS.md

LISTING is what compile.sh writes: `file architecture registers spilled name` on each line, the
first line is the version of nvcc.
"""

import re
import sys
from pathlib import Path

Found = dict[tuple[str, str, str], dict[str, tuple[int, int, int]]]

TABLE = Path(__file__).parent / "REGISTERS.md"
HEAD = """# Registers of the CUDA kernels

`make cuda-compile` compiles every kernel, and fails if one spills registers.
`python cpp/cuda/registers.py LISTING --write` makes the table anew from
`build/cuda-compile/registers`. A kernel has several instances (degrees, first
and second order): the largest numbers are given, of bytes those that are stored. None
of these kernels was run on a GPU.

The convolution's kernels of float32 come nearest to a spill: their launch bounds ask for
four blocks on a multiprocessor, which leaves 128 registers to a thread.

"""
NAME = re.compile(r"\(anonymous namespace\)::(\w+)(?:<(float|double))?")


def read(listing: Path) -> tuple[str, Found]:
    """nvcc's version, and (file, kernel, type) -> architecture -> (instances, registers, bytes)."""
    version, *lines = listing.read_text().splitlines()
    found: Found = {}
    for line in lines:
        file, architecture, registers, spilled, name = line.split(maxsplit=4)
        match = NAME.search(name)
        assert match, f"{listing}: no kernel's name: {name}"
        of = found.setdefault((file, match[1], match[2] or "-"), {})
        count, most, bytes_ = of.get(architecture, (0, 0, 0))
        of[architecture] = (count + 1, max(most, int(registers)), max(bytes_, int(spilled)))
    return version, found


def table(version: str, found: Found) -> str:
    """REGISTERS.md."""
    rows = [
        f"{HEAD}nvcc {version}\n",
        "| file | kernel | type | instances | registers, sm_80 | sm_90 | spilled, sm_80 | sm_90 |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for (file, kernel, kind), of in sorted(found.items()):
        a, b = of["80"], of["90"]
        rows.append(f"| {file} | {kernel} | {kind} | {a[0]} | {a[1]} | {b[1]} | {a[2]} | {b[2]} |")
    return "\n".join(rows) + "\n"


def faults(found: Found) -> list[str]:
    """One line for every kernel that spills."""
    return [
        f"{file}: {kernel} ({kind}, sm_{architecture}): expected no spilled registers, got "
        f"{spilled} bytes; give it fewer live numbers"
        for (file, kernel, kind), of in found.items()
        for architecture, (_, _, spilled) in of.items()
        if spilled > 0
    ]


def main() -> None:
    """Reads the listing, and fails with what is wrong."""
    version, found = read(Path(sys.argv[1]))
    if "--write" in sys.argv[2:]:
        TABLE.write_text(table(version, found))
    wrong = faults(found)
    print("\n".join(wrong) or f"registers: {len(found)} kernels, none spills")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
