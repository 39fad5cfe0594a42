"""`make sanitize` sees what it is there to see: two errors, planted in a plugin of a few
lines, on one rank and on two.
"""

import os
import shutil
import subprocess

import pytest

SOURCE = """
volatile int four = 4, largest = 2147483647, result;
extern "C" void lammpsplugin_init(void*, void*, void*) {
  int* numbers = new int[4]();
  result = %s;
  delete[] numbers;
}
"""
ERRORS = {
    "numbers[four]": "AddressSanitizer: heap-buffer-overflow",
    "largest + 1": "runtime error: signed integer overflow",
}
FLAGS = (
    "-O1 -g1 -fPIC -shared -fsanitize=address,undefined -fno-sanitize=object-size "
    "-fno-sanitize-recover=all"
).split()

pytestmark = pytest.mark.skipif("RACE_SANITIZED" not in os.environ, reason="for make sanitize")


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("expression", [*ERRORS, "four + 1"])
def test_planted_error_is_found(lammps_run, expression, ranks):
    source, plugin = lammps_run.folder / "planted.cpp", lammps_run.folder / "plantedplugin.so"
    source.write_text(SOURCE % expression)
    compiler = os.environ.get("CXX") or shutil.which("g++")
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run([compiler, *FLAGS, source, "-o", plugin], check=True, env=plain)
    script = f"plugin load {plugin}"
    if expression in ERRORS:
        with pytest.raises(AssertionError, match=ERRORS[expression]):
            lammps_run.run(script, ranks)
    else:
        finished = lammps_run.run(script, ranks)
        assert finished.status == 0 and "failed" not in finished.output
