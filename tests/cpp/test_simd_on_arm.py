"""The CPU's kernels compiled for AArch64 (NEON) and run under qemu, against the same kernels of
this machine's baseline, which tests/model holds to stock torch. Without torch, which is not
needed here, every kernel gets the same fixed problems.
"""

import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.test_project import ROOT

CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
TOLERANCE = {"double": 1e-14, "float": 2e-6}  # the order of sums, and fused multiply-adds
pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not all(map(shutil.which, (CROSS, EMULATOR))),
    reason=f"{CROSS} and {EMULATOR} are not here (Debian: g++-aarch64-linux-gnu, qemu-user)",
)


def results(compiler: str, folder: Path, emulator: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Of every kernel, by name, from a program of this compiler."""
    program = folder / compiler
    cache = ["ccache"] if shutil.which("ccache") else []
    objects = []
    for source in [ROOT / "tests/cpp/simd/kernels.cpp", *(ROOT / "cpp/simd").glob("*_kernel.cpp")]:
        objects.append(folder / f"{compiler}-{source.stem}.o")
        options = ("-std=c++20", "-O2", "-Wno-psabi", "-DRACE_BYTES=16")
        define = "-DRACE_KERNELS=kernels_baseline"
        command = [*cache, compiler, *options, define, "-c", source, "-o", objects[-1]]
        subprocess.run(command, check=True)
    subprocess.run([compiler, "-static", *objects, "-o", program], check=True)
    text = subprocess.run([*emulator, program], check=True, capture_output=True, text=True).stdout
    lines = [line.split() for line in text.splitlines()]
    return {name: np.array(numbers, dtype=float) for name, *numbers in lines}


def test_neon_is_the_baseline(tmp_path):
    here, there = results("g++", tmp_path), results(CROSS, tmp_path, (EMULATOR,))
    assert here.keys() == there.keys() and len(here) > 90
    for name, expected in here.items():
        largest = np.abs(expected).max()
        assert largest > 0.1, name
        np.testing.assert_allclose(
            there[name],
            expected,
            rtol=0,
            atol=TOLERANCE[name.split("/")[0]] * largest,
            err_msg=name,
        )
