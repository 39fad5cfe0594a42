"""A process that has loaded a model on the CPU, or trains there, keeps memory it has once
used (RACE_KEEP_MEMORY=0: as glibc would).
"""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
{start}
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    # 48 MiB, as adjoints of eight members on thousands of atoms: glibc maps such blocks
    # anew each time
    torch.zeros(12 << 20)
before = faults()
for _ in range(5):
    torch.zeros(12 << 20)
print((faults() - before) / 5)
"""


STARTS = {
    "load": "import race._race; race._race.load(sys.argv[1])",
    "train": """
import pathlib
from ase.build import molecule
from ase.calculators.emt import EMT
from race.config import RunConfig
from race.data import Dataset
from race.model.race import RACE
from race.train.trainer import Trainer
atoms = molecule("N2")
atoms.calc = EMT()
model = {"elements": ["N"], "irreps_hidden": "2x0e", "lmax": 0, "n_features": 2,
         "radial_mlp": [4], "head": "point"}
config = RunConfig.model_validate({"data": {"train": ["-"]}, "model": model,
                                   "train": {"loss": "mse"}, "constants": {"elements": ["N"]}})
data = Dataset([atoms], config.constants.elements, config.model.r_max, torch.float32)
Trainer(config, RACE(config.model, config.constants), data, data, pathlib.Path(sys.argv[1]).parent)
""",
}


@pytest.mark.skipif("RACE_SANITIZED" in os.environ, reason="sanitizers bring their own allocator")
@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries have other allocators"
)
@pytest.mark.parametrize("start", STARTS)
def test_memory_is_kept(artifact, start):
    faults = {}
    for keep in ("1", "0"):
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")
        } | {"RACE_KEEP_MEMORY": keep}
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT.replace("{start}", STARTS[start]), artifact],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        faults[keep] = float(result.stdout)
    assert faults["1"] < 5 and faults["0"] > 20  # pages of 4 KiB, or 24 of 2 MiB
