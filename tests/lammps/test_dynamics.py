"""Units and energy conservation; the plugin beside the Python module."""

import sys

import numpy as np
import pytest

from .conftest import ELEMENTS
from .harness import read_dump, thermo, write_data
from .systems import b2o3, boron_nitride

HARTREE, KCAL = 27.211386245988, 1 / 23.060547830619  # eV
# 1 Angstrom (LAMMPS's own factor), 1 eV and 1 eV/Angstrom^3 in each of LAMMPS's unit styles
UNITS = {
    "real": (1.0, 1 / KCAL, 1.602176634e6 / 1.01325),
    "si": (1e-10, 1.602176634e-19, 1.602176634e11),
    "electron": (1.88972612, 1 / HARTREE, 1.602176634e11),
}

UNIT_INPUT = """
units {units}
atom_style atomic
read_data system.data
plugin load {plugin}
pair_style race {artifact}
pair_coeff * * B N O
neighbor {skin} bin
compute u all race/atom force/cov energy/std
compute p all pressure NULL virial
thermo_style custom step pe vol c_p[1] c_p[4]
thermo_modify format float %.17g
dump d all custom 1 out.dump id fx fy fz c_u[*]
dump_modify d sort id format float %.17g
run 0
"""


@pytest.mark.parametrize("units", UNITS)
def test_units(lammps_run, artifact, units):
    atoms = b2o3()
    metal = lammps_run.single_point(atoms, f"{artifact}", ELEMENTS)
    length, energy, pressure = UNITS[units]
    write_data(lammps_run.folder / "system.data", atoms, ELEMENTS, length)
    finished = lammps_run.run(
        UNIT_INPUT.format(units=units, plugin=lammps_run.plugin, artifact=artifact, skin=length)
    )
    assert finished.status == 0, finished.output
    row, frame = thermo(finished.output)[0], read_dump(lammps_run.folder / "out.dump")[0]
    force = energy / length
    assert row["PotEng"] / energy == pytest.approx(metal.energy, rel=1e-9)
    np.testing.assert_allclose(
        np.stack([frame["fx"], frame["fy"], frame["fz"]], axis=1) / force, metal.forces, atol=1e-7
    )
    cov = np.stack([frame[f"c_u[{k}]"] for k in range(1, 7)], axis=1)
    np.testing.assert_allclose(cov / force**2, metal.columns["f_cov"], atol=1e-7)
    np.testing.assert_allclose(frame["c_u[7]"] / energy, metal.columns["e_std"], atol=1e-8)
    virial = np.array([row["c_p[1]"], row["c_p[4]"]]) / pressure * atoms.get_volume()
    # LAMMPS rounds its pressure factors to seven digits
    np.testing.assert_allclose(virial, metal.virial[[0, 3]], rtol=2e-6)


def drift(run, artifact, steps: int, timestep: float) -> tuple[float, float]:
    """Slope (meV/atom/ps) and root-mean-square fluctuation (meV/atom) of the total energy
    of NVE.
    """
    write_data(run.folder / "bn.data", boron_nitride((2, 2, 2), seed=2), ELEMENTS)
    script = f"""
    units metal
    atom_style atomic
    read_data bn.data
    plugin load {run.plugin}
    pair_style race {artifact}
    pair_coeff * * B N O
    velocity all create 300 7 loop geom
    fix nve all nve
    timestep {timestep}
    thermo_style custom step time etotal
    thermo_modify format float %.17g
    thermo {steps // 80}
    run {steps}
    """
    finished = run.run(script, timeout=300)
    assert finished.status == 0 and not finished.hung, finished.output
    rows = thermo(finished.output)
    time, energy = (np.array([row[name] for row in rows]) for name in ("Time", "TotEng"))
    energy = 1000 * (energy - energy[0]) / 64
    slope, offset = np.polyfit(time, energy, 1)
    return abs(slope), float(np.std(energy - slope * time - offset))


def test_energy_is_conserved(lammps_run, artifacts):
    """NVE of BN at 300 K with a soft untrained model: no drift, and fluctuations that fall
    with the square of the time step.
    """
    soft = artifacts("soft", n_members=1, head="point", n_layers=2, scale=[0.02, 0.02, 0.02])
    slope, fluctuation = drift(lammps_run, soft, steps=800, timestep=0.0005)
    _, coarse = drift(lammps_run, soft, steps=400, timestep=0.001)
    assert slope <= 0.01, f"{slope:.4f} meV/atom/ps"
    assert coarse / fluctuation == pytest.approx(4.0, abs=0.4), (
        f"{coarse:.2e} and {fluctuation:.2e} meV/atom"
    )


def test_plugin_next_to_python_module(lammps_run, artifact):
    """One process with the Python module and the plugin: two copies of librace and of its
    operators.
    """
    write_data(lammps_run.folder / "b2o3.data", b2o3(), ELEMENTS)
    script = f"""
import race, race._race
from lammps import lammps
race._race.load({str(artifact)!r})
lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
lmp.commands_string('''
units metal
atom_style atomic
read_data b2o3.data
plugin load {lammps_run.plugin}
pair_style race {artifact}
pair_coeff * * B N O
run 0
''')
print("ENERGY", repr(lmp.get_thermo("pe")))
"""
    finished = lammps_run.execute([sys.executable, "-c", script])
    assert finished.status == 0, finished.output
    energy = float(finished.output.split("ENERGY ")[1].split()[0])
    assert energy == pytest.approx(
        lammps_run.single_point(b2o3(), f"{artifact}", ELEMENTS).energy, abs=1e-9
    )
