"""The table of the CUDA kernels' registers, and what refuses a spill."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "cpp" / "cuda" / "registers.py"
LISTING = """13.0.88
conv_gather 80 120 0 void race::cuda::(anonymous namespace)::gather_kernel<float, false>(int)
conv_gather 80 128 {spilled} void race::cuda::(anonymous namespace)::gather_kernel<float, true>(int)
conv_gather 90 118 0 void race::cuda::(anonymous namespace)::gather_kernel<float, true>(int)
sorted_edges 80 22 0 race::cuda::(anonymous namespace)::receiver_kernel(long const*)
sorted_edges 90 24 0 race::cuda::(anonymous namespace)::receiver_kernel(long const*)
"""


def run(folder: Path, spilled: int, *options: str) -> tuple[int, str]:
    (folder / "registers.py").write_text(SCRIPT.read_text())  # writes beside itself
    (folder / "listing").write_text(LISTING.format(spilled=spilled))
    command = [sys.executable, folder / "registers.py", folder / "listing", *options]
    ended = subprocess.run(command, capture_output=True, text=True)
    return ended.returncode, ended.stdout


def test_table(tmp_path):
    """The largest numbers of a kernel's instances."""
    assert run(tmp_path, 0, "--write") == (0, "registers: 2 kernels, none spills\n")
    rows = [
        line for line in (tmp_path / "REGISTERS.md").read_text().splitlines() if line[:1] == "|"
    ]
    assert rows[2:] == [
        "| conv_gather | gather_kernel | float | 2 | 128 | 118 | 0 | 0 |",
        "| sorted_edges | receiver_kernel | - | 1 | 22 | 24 | 0 | 0 |",
    ]


def test_a_spill_is_refused(tmp_path):
    status, said = run(tmp_path, 16)
    assert status == 1
    assert said == (
        "conv_gather: gather_kernel (float, sm_80): expected no spilled registers, got 16 bytes; "
        "give it fewer live numbers\n"
    )
