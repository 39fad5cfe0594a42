"""Everything here needs a GPU and a librace built with RACE_CUDA=ON; elsewhere it is
skipped, with the reason. RACE_GPU_DEVICE=cpu runs it on the CPU: the tests are tested.
"""

import os

import pytest
import race._race  # noqa: F401  registers the operators
import torch

from tests.lammps.conftest import plugin  # noqa: F401  the same fixture
from tests.lammps.harness import Lammps

DEVICE = os.environ.get("RACE_GPU_DEVICE", "cuda")


def why_not() -> str:
    if DEVICE == "cpu":
        return ""
    if not torch.cuda.is_available():
        return "torch.cuda.is_available() is False: no GPU, or a CPU build of torch"
    if not torch._C._dispatch_has_kernel_for_dispatch_key("race::conv", "CUDA"):
        return "librace was built without its CUDA kernels: cmake -DRACE_CUDA=ON"
    return ""


@pytest.fixture
def lammps_run(request, tmp_path) -> Lammps:
    pytest.importorskip("lammps", reason="the Python package lammps is not installed")
    return Lammps(request.getfixturevalue("plugin"), tmp_path)


def pytest_collection_modifyitems(items):
    reason = why_not()
    for item in items:
        if reason and "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason=reason))
