"""A process that has loaded a model on the CPU keeps memory it has once used (RACE_KEEP_MEMORY=0: as glibc would)."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch, race._race
race._race.load(sys.argv[1])
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.zeros(12 << 20)  # 48 MiB, as adjoints of eight members on thousands of atoms: glibc maps such blocks anew each time
before = faults()
for _ in range(5):
    torch.zeros(12 << 20)
print((faults() - before) / 5)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other allocators")
def test_memory_is_kept(artifact):
    faults = {}
    for keep in ("1", "0"):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | {"RACE_KEEP_MEMORY": keep}
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT, artifact], env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        faults[keep] = float(result.stdout)
    assert faults["1"] < 5 and faults["0"] > 20  # pages of 4 KiB, or 24 of 2 MiB
